//! Frames by rows and by peers.

use std::ops::Range;

use datafusion_common::ScalarValue;
use datafusion_expr::{WindowFrame, WindowFrameBound, WindowFrameUnits};

/// A frame whose bounds are rows or the ends of peers. Frames by values (`RANGE 5 PRECEDING`) and
/// by numbers of groups are not among them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    start: Bound,
    end: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// The start or the end of the partition.
    Unbounded,
    /// The first or the last peer of the current row.
    Peers,
    /// This number of rows after the current row, or before it if negative.
    Rows(isize),
}

impl Frame {
    /// Returns the frame, if its kind is supported.
    pub(super) fn of(frame: &WindowFrame) -> Option<Self> {
        let bound = |bound: &WindowFrameBound| -> Option<Bound> {
            let by_rows = frame.units == WindowFrameUnits::Rows;
            Some(match bound {
                WindowFrameBound::CurrentRow if by_rows => Bound::Rows(0),
                WindowFrameBound::CurrentRow => Bound::Peers,
                bound if bound.is_unbounded() => Bound::Unbounded,
                WindowFrameBound::Preceding(count) => Bound::Rows(-offset(count, by_rows)?),
                WindowFrameBound::Following(count) => Bound::Rows(offset(count, by_rows)?),
            })
        };
        Some(Self { start: bound(&frame.start_bound)?, end: bound(&frame.end_bound)? })
    }

    pub(super) fn needs_peers(&self) -> bool {
        [self.start, self.end].contains(&Bound::Peers)
    }

    /// Returns whether every frame starts at the start of its partition.
    pub(super) fn starts_at_partition(&self) -> bool {
        self.start == Bound::Unbounded
    }

    pub(super) fn ends_with_peers(&self) -> bool {
        self.end == Bound::Peers
    }

    /// Returns whether at most one row enters from each frame to the next.
    pub(super) fn grows_by_rows(&self) -> bool {
        matches!(self.end, Bound::Rows(..=0))
    }

    /// Returns the number of rows before and after a row that its frame reaches; `None` if there is
    /// no bound. A frame that `carries` may reach back to the start of the partition.
    pub(super) fn reach(&self, carries: bool) -> Option<(usize, usize)> {
        let start = match self.start {
            Bound::Rows(offset) => offset,
            Bound::Unbounded if carries => 0,
            Bound::Unbounded | Bound::Peers => return None,
        };
        let end = match self.end {
            Bound::Rows(offset) => offset,
            Bound::Peers => 0,
            Bound::Unbounded => return None,
        };
        let before = start.min(end).min(0).unsigned_abs();
        Some((before, start.max(end).max(0).unsigned_abs()))
    }

    /// Returns the rows of the frame of `row`, possibly none.
    #[inline]
    pub(super) fn rows(
        &self,
        row: usize,
        partition: &Range<usize>,
        peers: &Range<usize>,
    ) -> Range<usize> {
        let at =
            |offset: isize| row.saturating_add_signed(offset).clamp(partition.start, partition.end);
        let start = match self.start {
            Bound::Unbounded => partition.start,
            Bound::Peers => peers.start,
            Bound::Rows(offset) => at(offset),
        };
        let end = match self.end {
            Bound::Unbounded => partition.end,
            Bound::Peers => peers.end,
            Bound::Rows(offset) => at(offset.saturating_add(1)),
        };
        start..end.max(start)
    }
}

/// Returns the number of rows of a bound, at most as many as memory can hold.
fn offset(count: &ScalarValue, by_rows: bool) -> Option<isize> {
    match count {
        ScalarValue::UInt64(Some(count)) if by_rows => {
            Some(isize::try_from(*count).unwrap_or(isize::MAX / 2).min(isize::MAX / 2))
        }
        _ => None,
    }
}
