//! The queue from which a scan's tasks claim morsels.
//!
//! In a stage, morsels come from a scheduler's split queue instead.
//!
//! Files with row groups are planned by the task that claims them, since planning reads their
//! footers. A task that finds neither morsel nor file waits at a gate until those tasks have
//! finished planning. For a top-n many files are planned first, and the most promising row group
//! of them is read first. Lock: `inner`; the gate changes state under it.

use std::collections::VecDeque;

use datafusion::{
    datasource::{listing::PartitionedFile, physical_plan::FileScanConfig},
    error::Result,
};
use gatework_shared_state::{
    Dependency, DependencyKind, Gate, PopResult, StateLock,
    splits::{SplitGuard, SplitQueue},
};

use super::{
    group_order::{GroupOrder, GroupRank},
    morsels::{self, FileMorsel},
};
use crate::splits::{Split, SplitData};

pub(super) struct MorselQueue {
    inner: StateLock<Inner>,
    /// The split queue of a stage; `None` outside stages.
    splits: Option<SplitQueue<Split>>,
    /// Blocked while files are being planned and nothing else can be claimed.
    files_planned: Gate,
    /// Order of row groups, for a top-n.
    order: Option<GroupOrder>,
}

struct Inner {
    morsels: VecDeque<FileMorsel>,
    /// Row groups that are put in order once all files are planned.
    unordered: Vec<(GroupRank, FileMorsel)>,
    /// Files to be divided into row groups.
    files: VecDeque<PartitionedFile>,
    planning: usize,
}

/// Maximum number of row groups that wait to be put in order, since each keeps its file's footer.
const MAX_UNORDERED: usize = 256;

/// A task's next step.
pub(super) enum ScanWork {
    Read(Box<FileMorsel>),
    PlanFile(Box<PartitionedFile>),
    Blocked(Gate),
    Done,
}

impl MorselQueue {
    /// Creates a queue of the morsels of all files, or of those that arrive as `splits`.
    pub(super) fn new(
        config: &FileScanConfig,
        workers: usize,
        splits: Option<SplitQueue<Split>>,
        order: Option<GroupOrder>,
    ) -> Result<Self> {
        let groups = if splits.is_some() { &[][..] } else { config.file_groups.as_slice() };
        let all = groups.iter().flat_map(|group| group.files().iter().cloned());
        let mut inner = Inner {
            morsels: VecDeque::new(),
            unordered: Vec::new(),
            files: VecDeque::new(),
            planning: 0,
        };
        if morsels::has_row_groups(config) {
            inner.files.extend(all);
        } else {
            let ranges = all.flat_map(|file| morsels::byte_ranges(file, workers));
            inner.morsels.extend(ranges.map(FileMorsel::from));
        }
        let files_planned = Dependency::ready("file footers", DependencyKind::External);
        Ok(Self { inner: StateLock::new(inner), splits, files_planned, order })
    }

    /// Returns the next step of a task that has read the split of `guard`, which is replaced by the
    /// next split's.
    pub(super) fn take(&self, guard: &mut Option<SplitGuard<Split>>) -> ScanWork {
        let Some(splits) = &self.splits else { return self.take_own() };
        loop {
            *guard = None;
            match splits.take() {
                PopResult::Item((split, next_guard)) => {
                    *guard = Some(next_guard);
                    // A split of in-memory rows is the empty one that an empty table yields.
                    if let SplitData::Morsel(morsel) = split.data {
                        return ScanWork::Read(morsel);
                    }
                }
                PopResult::Blocked(gate) => return ScanWork::Blocked(gate),
                PopResult::Finished | PopResult::Aborted => return ScanWork::Done,
            }
        }
    }

    /// Claims a row group for a task that still reads another one. Never claims a stage's splits,
    /// which count as read when the next one is taken.
    pub(super) fn take_row_group(&self) -> Option<Box<FileMorsel>> {
        let mut inner = self.inner.lock();
        inner.morsels.front().filter(|morsel| morsel.group.is_some())?;
        inner.morsels.pop_front().map(Box::new)
    }

    fn take_own(&self) -> ScanWork {
        let mut inner = self.inner.lock();
        if let Some(morsel) = inner.morsels.pop_front() {
            return ScanWork::Read(Box::new(morsel));
        }
        if let Some(file) = inner.files.pop_front() {
            inner.planning += 1;
            return ScanWork::PlanFile(Box::new(file));
        }
        if inner.planning == 0 {
            return ScanWork::Done;
        }
        self.files_planned.block();
        ScanWork::Blocked(self.files_planned.clone())
    }

    /// Adds the morsels of a file that a task has planned.
    pub(super) fn finish_planning(&self, morsels: Vec<FileMorsel>) {
        let Some(order) = &self.order else {
            let mut inner = self.inner.lock();
            inner.planning -= 1;
            inner.morsels.extend(morsels);
            inner.set_ready(&self.files_planned);
            return;
        };
        let ranked: Vec<_> =
            morsels.into_iter().map(|morsel| (order.rank(&morsel), morsel)).collect();
        let mut inner = self.inner.lock();
        inner.planning -= 1;
        inner.unordered.extend(ranked);
        let is_last = inner.planning == 0 && inner.files.is_empty();
        if is_last || inner.unordered.len() >= MAX_UNORDERED {
            let mut ranked = std::mem::take(&mut inner.unordered);
            ranked.sort_by(|one, other| order.compare(&one.0, &other.0));
            inner.morsels.extend(ranked.into_iter().map(|(_, morsel)| morsel));
        }
        inner.set_ready(&self.files_planned);
    }
}
