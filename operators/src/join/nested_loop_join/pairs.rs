//! The pairs of one build chunk and one probe batch, block by block.

/// Position in the enumeration of pairs: build rows in turn, each with all probe rows.
#[derive(Debug)]
pub(super) struct Pairs {
    build_row: u32,
    num_build_rows: u32,
    /// The probe rows to be paired.
    probe_rows: Vec<u32>,
    /// Index of the next probe row for the current build row.
    next: usize,
}

impl Pairs {
    /// Creates all pairs of `num_build_rows` build rows and `probe_rows`.
    pub(super) fn new(num_build_rows: usize, probe_rows: Vec<u32>) -> Self {
        Self { build_row: 0, num_build_rows: num_build_rows as u32, probe_rows, next: 0 }
    }

    /// Returns whether all pairs were enumerated.
    pub(super) fn is_done(&self) -> bool {
        self.build_row == self.num_build_rows || self.probe_rows.is_empty()
    }

    /// Drops probe rows, if the position is between two build rows.
    pub(super) fn retain_probe_rows(&mut self, keep: impl Fn(u32) -> bool) {
        if self.next == 0 {
            self.probe_rows.retain(|row| keep(*row));
        }
    }

    /// Appends up to `max_pairs` pairs to `build_rows` and `probe_rows`, without build rows for
    /// which `skip` is true. It stops between two build rows where it can, so that probe rows can
    /// be dropped there.
    pub(super) fn fill(
        &mut self,
        max_pairs: usize,
        skip: impl Fn(u32) -> bool,
        build_rows: &mut Vec<u32>,
        probe_rows: &mut Vec<u32>,
    ) {
        let end = build_rows.len() + max_pairs;
        while !self.is_done() && build_rows.len() < end {
            if skip(self.build_row) {
                self.build_row += 1;
                self.next = 0;
                continue;
            }
            let remaining = &self.probe_rows[self.next..];
            let capacity = end - build_rows.len();
            if remaining.len() > capacity && capacity < max_pairs {
                return;
            }
            let count = remaining.len().min(capacity);
            build_rows.resize(build_rows.len() + count, self.build_row);
            probe_rows.extend_from_slice(&remaining[..count]);
            self.next += count;
            if self.next == self.probe_rows.len() {
                self.build_row += 1;
                self.next = 0;
            }
        }
    }
}
