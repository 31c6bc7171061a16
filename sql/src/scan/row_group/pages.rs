//! The rows of pages that may match, window by window.

use arrow::{array::BooleanBufferBuilder, buffer::BooleanBuffer};
use datafusion::parquet::arrow::arrow_reader::{RowSelection, RowSelector};

/// The unread part of a row group's row selection. It is stored as runs: the row count of a damaged
/// row group is unbounded.
pub(super) struct PageRows {
    runs: std::vec::IntoIter<RowSelector>,
    /// Rows of the current run that have not been taken.
    remaining: usize,
    selected: bool,
}

impl PageRows {
    pub(super) fn new(selection: &RowSelection) -> Self {
        let runs: Vec<RowSelector> = selection.iter().copied().collect();
        Self { runs: runs.into_iter(), remaining: 0, selected: false }
    }

    /// Takes the next `rows` rows; rows after the last run are not selected.
    pub(super) fn take(&mut self, rows: usize) -> BooleanBuffer {
        let mut bits = BooleanBufferBuilder::new(rows);
        while bits.len() < rows {
            if self.remaining == 0 {
                let run = self.runs.next().unwrap_or(RowSelector::skip(usize::MAX));
                (self.remaining, self.selected) = (run.row_count, !run.skip);
            }
            let taken = self.remaining.min(rows - bits.len());
            bits.append_n(taken, self.selected);
            self.remaining -= taken;
        }
        bits.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cut_runs() {
        let runs = [RowSelector::skip(3), RowSelector::select(2), RowSelector::skip(1)];
        let mut pages = PageRows::new(&RowSelection::from(runs.to_vec()));
        let windows = [pages.take(4), pages.take(1), pages.take(3)];
        let bits: Vec<Vec<bool>> = windows.iter().map(|bits| bits.iter().collect()).collect();
        assert_eq!(bits, [vec![false, false, false, true], vec![true], vec![false; 3]]);
    }

    #[test]
    fn rows_that_nobody_has_take_no_memory() {
        let runs = vec![RowSelector::select(1 << 60), RowSelector::skip(1 << 60)];
        let mut pages = PageRows::new(&RowSelection::from(runs));
        assert_eq!(pages.take(8192).count_set_bits(), 8192);
    }
}
