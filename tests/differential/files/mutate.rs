//! Damages a file: by its format's structure, or anywhere.

use super::{
    seeds::Format,
    thrift::{Number, decoded, encoded, numbers},
};
use crate::queries::random::Random;

/// Returns the damaged bytes, and a description of the damage.
pub(crate) fn mutant(format: Format, bytes: &[u8], random: &mut Random) -> (Vec<u8>, String) {
    let mut bytes = bytes.to_vec();
    let mut done = Vec::new();
    let times = *random.one(&[1, 1, 1, 2, 4]);
    for _ in 0..times {
        let structural = random.chance(70);
        done.push(match format {
            Format::Parquet if structural => parquet(&mut bytes, random),
            Format::Csv if structural => csv(&mut bytes, random),
            Format::Json if structural => json(&mut bytes, random),
            Format::Arrow if structural => arrow(&mut bytes, random),
            _ => anywhere(&mut bytes, random),
        });
    }
    (bytes, done.join(", "))
}

/// Picks a replacement for a size, count or offset.
fn odd(random: &mut Random, value: u64) -> u64 {
    let choices = [
        0,
        1,
        value.wrapping_add(1),
        value.wrapping_sub(1),
        value.wrapping_add(2),
        value ^ 1 << random.below(20),
        value.wrapping_mul(2),
        u64::from(u32::MAX) - 1,
        u64::from(u32::MAX),
        u64::MAX - 1,
        u64::MAX,
        1 << 20,
        1 << 34,
    ];
    *random.one(&choices)
}

fn range(bytes: &[u8], most: usize, random: &mut Random) -> (usize, usize) {
    if bytes.is_empty() {
        return (0, 0);
    }
    let start = random.below(bytes.len());
    (start, (start + 1 + random.below(most)).min(bytes.len()))
}

fn anywhere(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let (start, end) = range(bytes, 40, random);
    if bytes.is_empty() {
        return "the file is empty".to_owned();
    }
    match random.below(6) {
        0 => {
            let bit = random.below(8);
            bytes[start] ^= 1 << bit;
            format!("bit {bit} of byte {start} flipped")
        }
        1 => {
            bytes.truncate(start);
            format!("cut off at {start}")
        }
        2 => {
            let value = *random.one(&[0, 0xff, 0x7f, b'"']);
            bytes[start..end].fill(value);
            format!("{start}..{end} filled with {value}")
        }
        3 => {
            let copy = bytes[start..end].to_vec();
            bytes.splice(end..end, copy);
            format!("{start}..{end} doubled")
        }
        4 => {
            bytes.drain(start..end);
            format!("{start}..{end} taken out")
        }
        _ => {
            bytes[start..end].iter_mut().for_each(|byte| *byte = random.bits() as u8);
            format!("{start}..{end} made random")
        }
    }
}

/// Replaces one of the numbers of a Thrift structure.
fn replace(bytes: &mut Vec<u8>, numbers: &[Number], random: &mut Random) -> Option<String> {
    if numbers.is_empty() {
        return None;
    }
    let number = *random.one(numbers);
    let old = decoded(bytes, number);
    let new = odd(random, old);
    bytes.splice(number.start..number.end, encoded(new));
    Some(format!("number at {} set from {old} to {new}", number.start))
}

/// The start of a Parquet footer.
fn footer(bytes: &[u8]) -> Option<usize> {
    let tail = bytes.len().checked_sub(8)?;
    let length = u32::from_le_bytes(bytes[tail..tail + 4].try_into().unwrap());
    tail.checked_sub(length as usize)
}

fn parquet(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let Some(start) = footer(bytes) else { return anywhere(bytes, random) };
    let tail = bytes.len() - 8;
    let done = match random.below(8) {
        // A footer with another number, and the right length.
        0..=3 => numbers(bytes, start).and_then(|(found, _)| replace(bytes, &found, random)).map(
            |done| {
                let tail = bytes.len() - 8;
                let length = (tail - start) as u32;
                bytes[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
                format!("footer: {done}")
            },
        ),
        // A page header with another number; the footer stays at its offset.
        4 | 5 => page(bytes, start, random).and_then(|(header, _)| {
            let (found, _) = numbers(bytes, header)?;
            replace(bytes, &found, random).map(|done| format!("page header: {done}"))
        }),
        // A duplicated page.
        6 => page(bytes, start, random).map(|(header, end)| {
            let copy = bytes[header..end].to_vec();
            bytes.splice(header..header, copy);
            format!("page at {header}..{end} doubled")
        }),
        _ => {
            let length = odd(random, (tail - start) as u64) as u32;
            bytes[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
            Some(format!("length of the footer set to {length}"))
        }
    };
    done.unwrap_or_else(|| anywhere(bytes, random))
}

/// Returns the start of a page's header and the end of the page, found by walking from the first.
fn page(bytes: &[u8], footer: usize, random: &mut Random) -> Option<(usize, usize)> {
    let mut pages = Vec::new();
    let mut start = 4;
    while start < footer {
        let (found, end) = numbers(bytes, start)?;
        // The page's type, its size, and its size in the file, as zigzag numbers.
        let size = found.get(2).map(|number| decoded(bytes, *number) >> 1)?;
        let end = end.checked_add(usize::try_from(size).ok()?).filter(|&end| end <= footer);
        let Some(end) = end else { break };
        pages.push((start, end));
        start = end;
    }
    (!pages.is_empty()).then(|| *random.one(&pages))
}

/// Inserts a text at a random position.
fn insert(bytes: &mut Vec<u8>, texts: &[&[u8]], random: &mut Random) -> String {
    let place = random.below(bytes.len() + 1);
    let text = random.pick(texts);
    bytes.splice(place..place, text.iter().copied());
    let shown = String::from_utf8_lossy(&text[..text.len().min(20)]);
    format!("{shown:?} put in at {place}")
}

fn csv(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let long = [b'x'; 70_000];
    let texts: [&[u8]; 14] = [
        b"\"",
        b"\"\"",
        b",",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"\xff\xfe",
        b"not a number",
        b"1e999",
        b"99999999999999999999999",
        b",,,,,,,,",
        &long,
    ];
    insert(bytes, &texts, random)
}

fn json(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let deep = [b'['; 30_000];
    let deep_object = b"{\"a\":".repeat(20_000);
    let texts: [&[u8]; 17] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b"\\ud800",
        b"\\u00",
        b",",
        b"null",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"1e999",
        b"{\"id\":{\"id\":[1,{}]}}",
        &deep,
        &deep_object,
    ];
    insert(bytes, &texts, random)
}

/// Replaces an aligned number, as in the metadata of Arrow files.
fn arrow(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    if bytes.len() < 24 {
        return anywhere(bytes, random);
    }
    let size = *random.one(&[2, 4, 4, 8]);
    // Most metadata is at both ends.
    let most = if random.chance(50) { 600.min(bytes.len() / size) } else { bytes.len() / size };
    let place = random.below(most.max(1)).min(bytes.len() / size - 1) * size;
    let place = if random.chance(50) { place } else { (bytes.len() - size - place) / size * size };
    let mut old = [0; 8];
    old[..size].copy_from_slice(&bytes[place..place + size]);
    let old = u64::from_le_bytes(old);
    let new = odd(random, old);
    bytes[place..place + size].copy_from_slice(&new.to_le_bytes()[..size]);
    format!("number of {size} bytes at {place} set from {old} to {new}")
}
