//! The pairs of one chunk of the left side and one batch of the right side, block by block.

/// Where the enumeration of pairs stands: left rows in turn, each with all right rows.
#[derive(Debug)]
pub(super) struct Pairs {
    left: u32,
    left_rows: u32,
    /// The right rows to be paired.
    right: Vec<u32>,
    /// The next of them, for the left row whose turn it is.
    next: usize,
}

impl Pairs {
    /// All pairs of `left_rows` left rows and the right rows `right`.
    pub(super) fn new(left_rows: usize, right: Vec<u32>) -> Self {
        Self { left: 0, left_rows: left_rows as u32, right, next: 0 }
    }

    /// Whether no pair is left.
    pub(super) fn is_done(&self) -> bool {
        self.left == self.left_rows || self.right.is_empty()
    }

    /// Forgets right rows, if this is between two left rows.
    pub(super) fn retain_right(&mut self, keep: impl Fn(u32) -> bool) {
        if self.next == 0 {
            self.right.retain(|row| keep(*row));
        }
    }

    /// Appends up to `most` pairs to `left` and `right`, leaving out left rows that `skip` names. It
    /// stops between two left rows if it can, so that right rows can be forgotten there.
    pub(super) fn fill(
        &mut self,
        most: usize,
        skip: impl Fn(u32) -> bool,
        left: &mut Vec<u32>,
        right: &mut Vec<u32>,
    ) {
        let end = left.len() + most;
        while !self.is_done() && left.len() < end {
            if skip(self.left) {
                self.left += 1;
                self.next = 0;
                continue;
            }
            let rest = &self.right[self.next..];
            let room = end - left.len();
            if rest.len() > room && room < most {
                return;
            }
            let count = rest.len().min(room);
            left.resize(left.len() + count, self.left);
            right.extend_from_slice(&rest[..count]);
            self.next += count;
            if self.next == self.right.len() {
                self.left += 1;
                self.next = 0;
            }
        }
    }
}
