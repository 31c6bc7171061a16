//! Matches the rows of two tables regardless of order, floats within a tolerance.
//!
//! Nearness is not transitive, so rows cannot be hashed by rounded values: two near values may be
//! rounded apart. Instead:
//! 1. Rows are sorted by their exact columns, and only groups with equal bytes are matched.
//! 2. A group is cut, one float column after the other, where sorted neighbours of both sides are
//!    too far apart to be equal. No rows can match across such a gap.
//! 3. The remaining clusters contain nearly equal rows. Pairing them in sorted order almost always
//!    works; otherwise augmenting paths find a complete pairing if there is one.
//!
//! Step 3 is bounded by [`MAX_PROBES`]; a cluster that exceeds it counts as different, never as
//! equal.

use std::collections::VecDeque;

use super::Tolerance;
use super::table::{Table, float_order};

/// Maximum number of row pairs that are tried within one cluster before it counts as different.
const MAX_PROBES: usize = 50_000_000;

/// Two tables whose rows are to be matched.
#[derive(Clone, Copy)]
pub(super) struct MultisetMatch<'a> {
    pub(super) left: &'a Table,
    pub(super) right: &'a Table,
    pub(super) tolerance: Tolerance,
}

/// The first row on each side, by index in its table, that has no partner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Unmatched {
    pub(super) left: Option<usize>,
    pub(super) right: Option<usize>,
}

impl Unmatched {
    fn add(
        &mut self,
        left: impl IntoIterator<Item = usize>,
        right: impl IntoIterator<Item = usize>,
    ) {
        self.left = self.left.into_iter().chain(left).min();
        self.right = self.right.into_iter().chain(right).min();
    }
}

impl MultisetMatch<'_> {
    /// Compares the two selections as multisets; returns rows without a partner, `None` if equal.
    pub(super) fn equal(&self, left: Vec<usize>, right: Vec<usize>) -> Option<Unmatched> {
        let unmatched = self.unmatched(left, right);
        (unmatched != Unmatched::default()).then_some(unmatched)
    }

    /// Checks that every left row has a partner of its own on the right; returns a left row without
    /// one.
    pub(super) fn subset(&self, left: Vec<usize>, right: Vec<usize>) -> Option<usize> {
        self.unmatched(left, right).left
    }

    fn unmatched(&self, mut left: Vec<usize>, mut right: Vec<usize>) -> Unmatched {
        left.sort_unstable_by(|&a, &b| self.left.exact(a).cmp(self.left.exact(b)));
        right.sort_unstable_by(|&a, &b| self.right.exact(a).cmp(self.right.exact(b)));
        let mut unmatched = Unmatched::default();
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            let bytes = match (left.get(l), right.get(r)) {
                (Some(&a), Some(&b)) => self.left.exact(a).min(self.right.exact(b)),
                (Some(&a), None) => self.left.exact(a),
                (None, Some(&b)) => self.right.exact(b),
                (None, None) => break,
            };
            let in_left =
                left[l..].iter().take_while(|&&row| self.left.exact(row) == bytes).count();
            let in_right =
                right[r..].iter().take_while(|&&row| self.right.exact(row) == bytes).count();
            let (group_left, group_right) = (&left[l..l + in_left], &right[r..r + in_right]);
            if !self.is_plain_pair(group_left, group_right) {
                self.match_floats(group_left.to_vec(), group_right.to_vec(), 0, &mut unmatched);
            }
            l += in_left;
            r += in_right;
        }
        unmatched
    }

    /// Returns whether there is one row on each side and their floats are near: the most frequent
    /// case, which needs no further work.
    fn is_plain_pair(&self, left: &[usize], right: &[usize]) -> bool {
        match (left, right) {
            (&[a], &[b]) => self.left.near_floats(a, self.right, b, self.tolerance),
            _ => false,
        }
    }

    /// Cuts a group at the gaps of one float column and continues with the next column.
    fn match_floats(
        &self,
        left: Vec<usize>,
        right: Vec<usize>,
        column: usize,
        unmatched: &mut Unmatched,
    ) {
        if left.is_empty() || right.is_empty() {
            return unmatched.add(left, right);
        }
        if column == self.left.floats.len() {
            return self.match_cluster(left, right, unmatched);
        }
        let side = |rows: Vec<usize>,
                    values: &[Option<f64>],
                    is_left: bool|
         -> Vec<(Option<f64>, bool, usize)> {
            rows.into_iter().map(|row| (values[row], is_left, row)).collect()
        };
        let mut values = side(left, &self.left.floats[column], true);
        values.append(&mut side(right, &self.right.floats[column], false));
        values.sort_unstable_by(|a, b| float_order(a.0, b.0));
        for cluster in values.chunk_by(|a, b| self.tolerance.near(a.0, b.0)) {
            let rows =
                |wanted| cluster.iter().filter(move |value| value.1 == wanted).map(|value| value.2);
            self.match_floats(rows(true).collect(), rows(false).collect(), column + 1, unmatched);
        }
    }

    /// Pairs rows that are nearly equal.
    fn match_cluster(
        &self,
        mut left: Vec<usize>,
        mut right: Vec<usize>,
        unmatched: &mut Unmatched,
    ) {
        if self.left.floats.is_empty() {
            // Without floats the rows of a group are identical, and only their number counts.
            let paired = left.len().min(right.len());
            left.sort_unstable();
            right.sort_unstable();
            return unmatched.add(left.split_off(paired), right.split_off(paired));
        }
        let mut pairing = Pairing::new(self, left, right);
        pairing.pair_in_order();
        pairing.augment_all();
        let (left, right) = pairing.into_unpaired();
        unmatched.add(left, right);
    }

    fn sort_by_floats(table: &Table, rows: &mut [usize]) {
        let compare = |a: usize, b: usize| {
            let orders = table.floats.iter().map(|values| float_order(values[a], values[b]));
            orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
        };
        rows.sort_unstable_by(|&a, &b| compare(a, b));
    }
}

/// A bipartite matching within one cluster; positions are indices into `left` and `right`.
struct Pairing<'a> {
    tables: &'a MultisetMatch<'a>,
    left: Vec<usize>,
    right: Vec<usize>,
    partner_of_left: Vec<Option<usize>>,
    partner_of_right: Vec<Option<usize>>,
    remaining_probes: usize,
}

impl<'a> Pairing<'a> {
    fn new(tables: &'a MultisetMatch<'a>, mut left: Vec<usize>, mut right: Vec<usize>) -> Self {
        MultisetMatch::sort_by_floats(tables.left, &mut left);
        MultisetMatch::sort_by_floats(tables.right, &mut right);
        let (partner_of_left, partner_of_right) = (vec![None; left.len()], vec![None; right.len()]);
        Self {
            tables,
            left,
            right,
            partner_of_left,
            partner_of_right,
            remaining_probes: MAX_PROBES,
        }
    }

    fn near(&mut self, left: usize, right: usize) -> bool {
        self.remaining_probes = self.remaining_probes.saturating_sub(1);
        let tables = self.tables;
        tables.left.near_floats(self.left[left], tables.right, self.right[right], tables.tolerance)
    }

    fn pair(&mut self, left: usize, right: usize) {
        self.partner_of_left[left] = Some(right);
        self.partner_of_right[right] = Some(left);
    }

    /// Pairs the rows in sorted order, which is sufficient for most clusters.
    fn pair_in_order(&mut self) {
        for position in 0..self.left.len().min(self.right.len()) {
            if self.near(position, position) {
                self.pair(position, position);
            }
        }
    }

    /// Gives each unpaired left row a partner, if a chain of swaps can free one.
    fn augment_all(&mut self) {
        for left in 0..self.left.len() {
            if self.partner_of_left[left].is_some() {
                continue;
            }
            let all_right_paired = self.partner_of_right.iter().all(Option::is_some);
            if all_right_paired || self.remaining_probes == 0 {
                return;
            }
            self.augment(left);
        }
    }

    /// Searches breadth-first for an augmenting path that starts at an unpaired left row.
    fn augment(&mut self, start: usize) {
        let mut reached_from = vec![None; self.right.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(left) = queue.pop_front() {
            for right in 0..self.right.len() {
                if self.remaining_probes == 0 {
                    return;
                }
                if reached_from[right].is_some() || !self.near(left, right) {
                    continue;
                }
                reached_from[right] = Some(left);
                match self.partner_of_right[right] {
                    Some(next) => queue.push_back(next),
                    None => return self.swap_along(right, &reached_from),
                }
            }
        }
    }

    /// Pairs rows along the path that ends at `right`, back to the row where it started.
    fn swap_along(&mut self, mut right: usize, reached_from: &[Option<usize>]) {
        while let Some(left) = reached_from[right] {
            let previous = self.partner_of_left[left];
            self.pair(left, right);
            match previous {
                Some(previous) => right = previous,
                None => return,
            }
        }
    }

    fn into_unpaired(self) -> (Vec<usize>, Vec<usize>) {
        let unpaired = |rows: Vec<usize>, partners: Vec<Option<usize>>| {
            rows.into_iter()
                .zip(partners)
                .filter(|(_, partner)| partner.is_none())
                .map(|(row, _)| row)
                .collect()
        };
        (unpaired(self.left, self.partner_of_left), unpaired(self.right, self.partner_of_right))
    }
}

#[cfg(test)]
mod tests;
