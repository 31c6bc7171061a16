//! The pairs of one build chunk and one probe batch, block by block.

use std::ops::Range;

/// Position in the enumeration of the pairs of one chunk and one probe batch.
#[derive(Debug)]
pub(super) enum Pairs {
    All(AllPairs),
    InRange(PairsInRange),
}

/// Position in the enumeration of all pairs: build rows in turn, each with all probe rows.
#[derive(Debug)]
pub(super) struct AllPairs {
    build_row: u32,
    num_build_rows: u32,
    /// The probe rows to be paired.
    probe_rows: Vec<u32>,
    /// Index of the next probe row for the current build row.
    next: usize,
}

/// Position in the enumeration of pairs whose keys are within bounds.
#[derive(Debug)]
pub(super) struct PairsInRange {
    /// Whether the ranges are those of build rows.
    by_build_row: bool,
    /// Rows of the other side, in the order of their keys.
    sorted: Vec<u32>,
    /// The range of `sorted` of each row.
    ranges: Vec<Range<u32>>,
    /// The row whose range is enumerated, and the next row in it.
    row: usize,
    next: u32,
}

impl Pairs {
    /// Returns whether all pairs were enumerated.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::All(pairs) => pairs.is_done(),
            Self::InRange(pairs) => pairs.row == pairs.ranges.len(),
        }
    }

    /// Appends up to `max_pairs` pairs to `build_rows` and `probe_rows`, without those for whose
    /// build row or probe row `skip` is true.
    pub(super) fn fill(
        &mut self,
        max_pairs: usize,
        (skip_build, skip_probe): (impl Fn(u32) -> bool, impl Fn(u32) -> bool),
        build_rows: &mut Vec<u32>,
        probe_rows: &mut Vec<u32>,
    ) {
        match self {
            Self::All(pairs) => {
                pairs.retain_probe_rows(|row| !skip_probe(row));
                pairs.fill(max_pairs, skip_build, build_rows, probe_rows);
            }
            Self::InRange(pairs) => {
                pairs.fill(max_pairs, (skip_build, skip_probe), build_rows, probe_rows);
            }
        }
    }
}

impl PairsInRange {
    /// Creates the pairs of each row with the rows of `sorted` in its range.
    pub(super) fn new(by_build_row: bool, sorted: Vec<u32>, ranges: Vec<Range<u32>>) -> Self {
        let next = ranges.first().map_or(0, |range| range.start);
        Self { by_build_row, sorted, ranges, row: 0, next }
    }

    fn fill(
        &mut self,
        max_pairs: usize,
        (skip_build, skip_probe): (impl Fn(u32) -> bool, impl Fn(u32) -> bool),
        build_rows: &mut Vec<u32>,
        probe_rows: &mut Vec<u32>,
    ) {
        // Skipped pairs count as well, since the caller checks for cancellation in between.
        let mut room = max_pairs as u32;
        while room > 0
            && let Some(range) = self.ranges.get(self.row)
        {
            let row = self.row as u32;
            // A row whose output is decided needs no further pair.
            let is_decided = if self.by_build_row { skip_build(row) } else { skip_probe(row) };
            if is_decided {
                self.next = range.end;
            }
            let until = range.end.min(self.next.saturating_add(room));
            for other in &self.sorted[self.next as usize..until as usize] {
                let (build, probe) = if self.by_build_row { (row, *other) } else { (*other, row) };
                if !skip_build(build) && !skip_probe(probe) {
                    build_rows.push(build);
                    probe_rows.push(probe);
                }
            }
            // A row without pairs takes time, too.
            room = room.saturating_sub((until - self.next).max(1));
            self.next = until;
            if until == range.end {
                self.row += 1;
                self.next = self.ranges.get(self.row).map_or(0, |range| range.start);
            }
        }
    }
}

impl AllPairs {
    /// Creates all pairs of `num_build_rows` build rows and `probe_rows`.
    pub(super) fn new(num_build_rows: usize, probe_rows: Vec<u32>) -> Self {
        Self { build_row: 0, num_build_rows: num_build_rows as u32, probe_rows, next: 0 }
    }

    /// Returns whether all pairs were enumerated.
    fn is_done(&self) -> bool {
        self.build_row == self.num_build_rows || self.probe_rows.is_empty()
    }

    /// Drops probe rows, if the position is between two build rows.
    fn retain_probe_rows(&mut self, keep: impl Fn(u32) -> bool) {
        if self.next == 0 {
            self.probe_rows.retain(|row| keep(*row));
        }
    }

    /// Appends up to `max_pairs` pairs to `build_rows` and `probe_rows`, without build rows for
    /// which `skip` is true. It stops between two build rows where it can, so that probe rows can
    /// be dropped there.
    fn fill(
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
