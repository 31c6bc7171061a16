//! Whether a test of rows is worth its while.

/// Rows after which it is decided whether a test pays.
const SAMPLE_ROWS: usize = 1 << 15;
/// A test that drops less than one row in this many does not pay.
const PAYS_ONE_IN: usize = 8;

/// How much a test drops, as seen by one task; one that drops next to nothing pauses for longer and
/// longer.
#[derive(Debug, Clone)]
pub struct Worth {
    rows: usize,
    dropped: usize,
    drops: f64,
    /// Rows to pass before it is tried again.
    paused: usize,
    /// How long the next pause is, in rows.
    pause: usize,
}

impl Default for Worth {
    fn default() -> Self {
        Self { rows: 0, dropped: 0, drops: 0.5, paused: 0, pause: SAMPLE_ROWS }
    }
}

impl Worth {
    /// Whether the test pauses for the next `rows` rows.
    pub fn pauses(&mut self, rows: usize) -> bool {
        let pauses = self.paused > 0;
        self.paused = self.paused.saturating_sub(rows);
        pauses
    }

    /// Takes note that `dropped` of `rows` rows were dropped.
    pub fn note(&mut self, rows: usize, dropped: usize) {
        self.rows += rows;
        self.dropped += dropped;
        if self.rows < SAMPLE_ROWS {
            return;
        }
        self.drops = self.dropped as f64 / self.rows as f64;
        if self.dropped * PAYS_ONE_IN < self.rows {
            self.paused = self.pause;
            self.pause = self.pause.saturating_mul(4);
        }
        self.rows = 0;
        self.dropped = 0;
    }

    /// The test is not tried again.
    pub fn stop(&mut self) {
        self.paused = usize::MAX;
        self.pause = usize::MAX;
    }

    /// Which part of the rows the test drops, as far as known.
    pub fn drops(&self) -> f64 {
        self.drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drops_little_pauses_for_longer_and_longer() {
        let mut worth = Worth::default();
        let mut tried = Vec::new();
        for batch in 0..100 {
            if !worth.pauses(SAMPLE_ROWS) {
                worth.note(SAMPLE_ROWS, 1);
                tried.push(batch);
            }
        }
        assert_eq!(tried, [0, 2, 7, 24, 89]);
        let mut worth = Worth::default();
        worth.note(SAMPLE_ROWS, SAMPLE_ROWS / 4);
        assert!(!worth.pauses(1) && worth.drops() == 0.25);
        worth.stop();
        assert!(worth.pauses(1 << 40) && worth.pauses(1));
    }
}
