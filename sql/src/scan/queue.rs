//! The queue of pieces that a scan's tasks take from.
//!
//! In a stage, pieces come from a scheduler's queue instead.
//!
//! Files with row groups are cut by the task that takes them, since that needs their footers; tasks
//! that find neither piece nor file wait at a gate until the cutters are done. Lock: `inner`; the
//! gate flips under it.

use std::collections::VecDeque;

use datafusion::{
    datasource::{listing::PartitionedFile, physical_plan::FileScanConfig},
    error::Result,
};
use gatework_shared_state::{
    Dependency, DependencyKind, Gate, Take, Wakeups,
    splits::{Reading, SplitQueue},
};
use parking_lot::Mutex;

use super::pieces::{self, Piece};
use crate::splits::{Part, Split};

pub(super) struct PieceQueue {
    inner: Mutex<Inner>,
    /// Where a stage's pieces come from.
    splits: Option<SplitQueue<Split>>,
    /// Shut while files are being cut and there is nothing else to take.
    cut: Gate,
}

struct Inner {
    pieces: VecDeque<Piece>,
    /// Files to be cut.
    files: VecDeque<PartitionedFile>,
    cutting: usize,
}

/// What a task is to do next.
pub(super) enum Work {
    Read(Box<Piece>),
    Cut(Box<PartitionedFile>),
    Wait(Gate),
    Done,
}

impl PieceQueue {
    /// The pieces of all files, or those that come as `splits`.
    pub(super) fn new(
        config: &FileScanConfig,
        workers: usize,
        splits: Option<SplitQueue<Split>>,
    ) -> Result<Self> {
        let groups = if splits.is_some() { &[][..] } else { config.file_groups.as_slice() };
        let all = groups.iter().flat_map(|group| group.files().iter().cloned());
        let mut inner = Inner { pieces: VecDeque::new(), files: VecDeque::new(), cutting: 0 };
        if pieces::has_row_groups(config) {
            inner.files.extend(all);
        } else {
            let ranges = all.flat_map(|file| pieces::byte_ranges(file, workers));
            inner.pieces.extend(ranges.map(Piece::from));
        }
        let cut = Dependency::ready("file footers", DependencyKind::External);
        Ok(Self { inner: Mutex::new(inner), splits, cut })
    }

    /// What is next for a task that has read all of `reading`, which becomes what it reads then.
    pub(super) fn take(&self, reading: &mut Option<Reading<Split>>) -> Work {
        let Some(splits) = &self.splits else { return self.take_own() };
        loop {
            *reading = None;
            match splits.take() {
                Take::Item((split, taken)) => {
                    *reading = Some(taken);
                    // A split of rows in memory is the one that an empty table has.
                    if let Part::Piece(piece) = split.part {
                        return Work::Read(piece);
                    }
                }
                Take::Blocked(gate) => return Work::Wait(gate),
                Take::Finished | Take::Aborted => return Work::Done,
            }
        }
    }

    /// A row group for a task that still reads another one; none of a stage's splits, which count as read
    /// when the next is taken.
    pub(super) fn take_row_group(&self) -> Option<Box<Piece>> {
        let mut inner = self.inner.lock();
        inner.pieces.front().filter(|piece| piece.group.is_some())?;
        inner.pieces.pop_front().map(Box::new)
    }

    fn take_own(&self) -> Work {
        let mut inner = self.inner.lock();
        if let Some(piece) = inner.pieces.pop_front() {
            return Work::Read(Box::new(piece));
        }
        if let Some(file) = inner.files.pop_front() {
            inner.cutting += 1;
            return Work::Cut(Box::new(file));
        }
        if inner.cutting == 0 {
            return Work::Done;
        }
        self.cut.block();
        Work::Wait(self.cut.clone())
    }

    /// Hands in the pieces of a file that was to be cut.
    pub(super) fn add(&self, pieces: Vec<Piece>) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        inner.cutting -= 1;
        inner.pieces.extend(pieces);
        self.cut.set_ready_later(&mut wakeups);
    }
}
