//! Walks two results in the order of their keys and passes every group of ties to the multiset
//! comparison.
//!
//! Keys are compared one by one. The rows `start..end` must agree on the key. They are then divided
//! into runs of equal values, and each run is compared by the remaining keys. A float key is
//! compared within a tolerance, so two neighbours that are *nearly* equal may be sorted in either
//! order. The keys after it then say nothing about the sequence, and the run is compared as a
//! multiset at once.

use std::ops::Range;

use super::difference::{Difference, MismatchExample};
use super::multiset::{self, Unmatched};
use super::order::ResultOrder;
use super::table::Table;
use super::{Tolerance, multiset::MultisetMatch};

/// Equality of order keys down to the last bit, used to tell real ties from near ones.
const BITWISE: Tolerance = Tolerance { relative: 0.0, absolute: 0.0 };

/// Both sides of a comparison, ready to be walked.
pub(super) struct OrderedMatch<'a> {
    pub(super) actual: Table,
    pub(super) expected: Table,
    pub(super) unlimited: Option<Table>,
    /// The keys of the expected rows that no column of the result shows.
    pub(super) hidden_keys: Option<Table>,
    pub(super) order: &'a ResultOrder,
    pub(super) tolerance: Tolerance,
}

impl OrderedMatch<'_> {
    /// Compares all rows.
    pub(super) fn check(&self) -> Result<(), Difference> {
        let (actual, expected) = (self.actual.num_rows(), self.expected.num_rows());
        if actual != expected {
            let unmatched = self.unmatched(0..actual, 0..expected);
            let (surplus, missing) = self.examples(unmatched);
            return Err(Difference::RowCount { actual, expected, surplus, missing });
        }
        self.check_keys(0..actual, 0)
    }

    fn check_keys(&self, range: Range<usize>, key: usize) -> Result<(), Difference> {
        if key == self.order.keys.len() {
            return self.check_hidden(range);
        }
        if let Some(row) = range.clone().find(|&row| !self.same_key(key, row)) {
            return Err(Difference::OrderKey {
                key: self.order.key_name(key),
                actual: self.actual.example(row),
                expected: self.expected.example(row),
            });
        }
        let mut start = range.start;
        while start < range.end {
            let end = self.run_end(key, start, range.end);
            match self.is_real_tie(key, start..end) {
                true => self.check_keys(start..end, key + 1)?,
                false => self.check_multiset(start..end)?,
            }
            start = end;
        }
        Ok(())
    }

    /// Compares the runs of rows that tie on the hidden keys, if those are known.
    fn check_hidden(&self, range: Range<usize>) -> Result<(), Difference> {
        let Some(keys) = &self.hidden_keys else { return self.check_multiset(range) };
        let mut start = range.start;
        for row in range.start + 1..=range.end {
            if row == range.end || !keys.same_row(row - 1, keys, row, self.tolerance) {
                self.check_multiset(start..row)?;
                start = row;
            }
        }
        Ok(())
    }

    fn same_key(&self, key: usize, row: usize) -> bool {
        self.actual.same_key(key, row, &self.expected, row, self.tolerance)
    }

    /// Returns the index after the last row of the run that begins at `start`. Neighbours belong to
    /// one run if they do on either side.
    fn run_end(&self, key: usize, start: usize, end: usize) -> usize {
        let joined = |row: usize| {
            [&self.actual, &self.expected]
                .iter()
                .any(|side| side.same_key(key, row - 1, side, row, self.tolerance))
        };
        (start + 1..end).find(|&row| !joined(row)).unwrap_or(end)
    }

    fn is_real_tie(&self, key: usize, run: Range<usize>) -> bool {
        let first = run.start;
        [&self.actual, &self.expected]
            .iter()
            .all(|side| run.clone().all(|row| side.same_key(key, first, side, row, BITWISE)))
    }

    fn check_multiset(&self, run: Range<usize>) -> Result<(), Difference> {
        // Most runs of an ordered result are single rows; they need no sorting.
        if run.len() == 1
            && self.actual.same_row(run.start, &self.expected, run.start, self.tolerance)
        {
            return Ok(());
        }
        let unmatched = self.unmatched(run.clone(), run.clone());
        if unmatched.is_none() {
            return Ok(());
        }
        if self.is_cut(&run) {
            return self.check_choice(run);
        }
        let (surplus, missing) = self.examples(unmatched);
        let tie = !self.order.keys.is_empty();
        Err(Difference::Rows { within: (run.start, run.end), tie, surplus, missing })
    }

    /// Returns whether LIMIT or OFFSET may have removed rows that tie with this run.
    fn is_cut(&self, run: &Range<usize>) -> bool {
        (self.order.cut_start && run.start == 0)
            || (self.order.cut_end && run.end == self.expected.num_rows())
    }

    /// Checks that the rows of a run that a limit cuts through are among the rows that the limit
    /// chooses from. The run's keys are known to be right, and keys are part of the rows, so the
    /// search need not be limited to the tie.
    fn check_choice(&self, run: Range<usize>) -> Result<(), Difference> {
        let Some(unlimited) = &self.unlimited else {
            return Err(Difference::Undecided { within: (run.start, run.end) });
        };
        let found =
            MultisetMatch { left: &self.actual, right: unlimited, tolerance: self.tolerance };
        match found.subset(run.collect(), (0..unlimited.num_rows()).collect()) {
            Some(row) => Err(Difference::NotInUnlimited(self.actual.example(row))),
            None => Ok(()),
        }
    }

    fn unmatched(&self, actual: Range<usize>, expected: Range<usize>) -> Option<Unmatched> {
        let pair = multiset::MultisetMatch {
            left: &self.actual,
            right: &self.expected,
            tolerance: self.tolerance,
        };
        pair.equal(actual.collect(), expected.collect())
    }

    fn examples(
        &self,
        unmatched: Option<Unmatched>,
    ) -> (Option<MismatchExample>, Option<MismatchExample>) {
        let Some(Unmatched { left, right }) = unmatched else {
            return (None, None);
        };
        (left.map(|row| self.actual.example(row)), right.map(|row| self.expected.example(row)))
    }
}
