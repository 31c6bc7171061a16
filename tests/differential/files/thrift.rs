//! Finds the numbers in a structure of Thrift's compact protocol, which Parquet's footers and page
//! headers use, so that tests can replace single ones.

/// A number: the variable-length integer at `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Returns the numbers of the structure at `start`, including lengths of texts and lists, and the
/// structure's end. Returns `None` if there is no valid structure.
pub(crate) fn numbers(bytes: &[u8], start: usize) -> Option<(Vec<Number>, usize)> {
    let mut walk = Walk { bytes, next: start, numbers: Vec::new() };
    walk.fields(0)?;
    Some((walk.numbers, walk.next))
}

/// Encodes a number.
pub(crate) fn encoded(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Decodes the number at `number`.
pub(crate) fn decoded(bytes: &[u8], number: Number) -> u64 {
    let bytes = bytes[number.start..number.end].iter().rev();
    bytes.fold(0, |value, byte| (value << 7) | u64::from(byte & 0x7f))
}

struct Walk<'a> {
    bytes: &'a [u8],
    next: usize,
    numbers: Vec<Number>,
}

const DEEPEST: usize = 20;

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next).copied()?;
        self.next += 1;
        Some(byte)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.next = self.next.checked_add(count).filter(|&next| next <= self.bytes.len())?;
        Some(())
    }

    fn number(&mut self) -> Option<u64> {
        let start = self.next;
        while self.byte()? & 0x80 != 0 {}
        let number = Number { start, end: self.next };
        (number.end - number.start <= 10).then(|| self.numbers.push(number))?;
        Some(decoded(self.bytes, number))
    }

    fn fields(&mut self, depth: usize) -> Option<()> {
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(());
            }
            if header >> 4 == 0 {
                self.number()?;
            }
            // The value of a flag is its type.
            if !matches!(header & 15, 1 | 2) {
                self.value(header & 15, depth)?;
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.number().map(drop),
            7 => self.skip(8),
            8 => {
                let length = usize::try_from(self.number()?).ok()?;
                self.skip(length)
            }
            9 | 10 => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    15 => self.number()?,
                    count => u64::from(count),
                };
                (0..count).try_for_each(|_| self.value(header & 15, depth))
            }
            12 if depth < DEEPEST => self.fields(depth + 1),
            _ => None,
        }
    }
}
