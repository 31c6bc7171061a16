//! Adaptive decision whether a row filter is worth its cost.

/// Number of rows after which the filter's effect is evaluated.
const SAMPLE_ROWS: usize = 1 << 15;
/// A filter that drops fewer than 1 in this number of rows is ineffective.
const MIN_DROP_ONE_IN: usize = 8;

/// Drop statistics of a filter, as seen by one task. An ineffective filter is skipped for
/// exponentially growing numbers of rows (DuckDB `AdaptiveFilter`).
#[derive(Debug, Clone)]
pub struct AdaptiveFilter {
    rows: usize,
    dropped: usize,
    drop_ratio: f64,
    /// Rows to pass before the filter is tried again.
    rows_to_skip: usize,
    /// Rows that the next pause skips.
    next_skip: usize,
}

impl Default for AdaptiveFilter {
    fn default() -> Self {
        Self { rows: 0, dropped: 0, drop_ratio: 0.5, rows_to_skip: 0, next_skip: SAMPLE_ROWS }
    }
}

impl AdaptiveFilter {
    /// Returns true if the filter is skipped for the next `rows` rows.
    pub fn should_skip(&mut self, rows: usize) -> bool {
        let skip = self.rows_to_skip > 0;
        self.rows_to_skip = self.rows_to_skip.saturating_sub(rows);
        skip
    }

    /// Records that the filter dropped `dropped` of `rows` rows.
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

    /// Disables the filter permanently.
    pub fn disable(&mut self) {
        self.rows_to_skip = usize::MAX;
        self.next_skip = usize::MAX;
    }

    /// Returns the fraction of rows that the filter drops; 0.5 before the first sample is complete.
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
