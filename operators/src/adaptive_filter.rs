//! Whether a test of rows is worth its while.

/// Rows after which it is decided whether a test pays.
const SAMPLE_ROWS: usize = 1 << 15;
/// A test that drops less than one row in this many does not pay.
const MIN_DROP_ONE_IN: usize = 8;

/// How much a test drops, as seen by one task; one that drops next to nothing pauses for longer and
/// longer.
#[derive(Debug, Clone)]
pub struct AdaptiveFilter {
    rows: usize,
    dropped: usize,
    drop_ratio: f64,
    /// Rows to pass before it is tried again.
    rows_to_skip: usize,
    /// How long the next pause is, in rows.
    next_skip: usize,
}

impl Default for AdaptiveFilter {
    fn default() -> Self {
        Self { rows: 0, dropped: 0, drop_ratio: 0.5, rows_to_skip: 0, next_skip: SAMPLE_ROWS }
    }
}

impl AdaptiveFilter {
    /// Whether the test pauses for the next `rows` rows.
    pub fn should_skip(&mut self, rows: usize) -> bool {
        let skip = self.rows_to_skip > 0;
        self.rows_to_skip = self.rows_to_skip.saturating_sub(rows);
        skip
    }

    /// Takes note that `dropped` of `rows` rows were dropped.
    pub fn record(&mut self, rows: usize, dropped: usize) {
        self.rows += rows;
        self.dropped += dropped;
        if self.rows < SAMPLE_ROWS {
            return;
        }
        self.drop_ratio = self.dropped as f64 / self.rows as f64;
        if self.dropped * MIN_DROP_ONE_IN < self.rows {
            self.rows_to_skip = self.next_skip;
            self.next_skip = self.next_skip.saturating_mul(4);
        }
        self.rows = 0;
        self.dropped = 0;
    }

    /// The test is not tried again.
    pub fn disable(&mut self) {
        self.rows_to_skip = usize::MAX;
        self.next_skip = usize::MAX;
    }

    /// Which part of the rows the test drops, as far as known.
    pub fn drop_ratio(&self) -> f64 {
        self.drop_ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drops_little_pauses_for_longer_and_longer() {
        let mut filter = AdaptiveFilter::default();
        let mut tried = Vec::new();
        for batch in 0..100 {
            if !filter.should_skip(SAMPLE_ROWS) {
                filter.record(SAMPLE_ROWS, 1);
                tried.push(batch);
            }
        }
        assert_eq!(tried, [0, 2, 7, 24, 89]);
        let mut filter = AdaptiveFilter::default();
        filter.record(SAMPLE_ROWS, SAMPLE_ROWS / 4);
        assert!(!filter.should_skip(1) && filter.drop_ratio() == 0.25);
        filter.disable();
        assert!(filter.should_skip(1 << 40) && filter.should_skip(1));
    }
}
