//! Resource groups: how much worker time queries get, and how many run at a time.
//!
//! A group has a queue of its own, with levels by the worker time that a query has consumed. So the
//! first time slices of a short query come before the hundredth of a long one. Lower levels still
//! get their share, because a level is picked by time used divided by weight (its vruntime). Groups
//! are picked in the same way.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use crossbeam::{
    deque::{Injector, Steal},
    utils::CachePadded,
};
use gatework_shared_state::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::{
    admission::{Admission, QueueFull, StartFn},
    task::Task,
};
use crate::{Error, Result};

/// Upper ends of the levels, in consumed worker time; the last level has none.
const LEVEL_ENDS: [Duration; LEVELS - 1] =
    [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(5)];
pub(super) const LEVELS: usize = 4;

/// Returns the level of a query that has consumed this worker time.
pub(super) fn level_of(consumed: Duration) -> usize {
    LEVEL_ENDS.iter().position(|end| consumed < *end).unwrap_or(LEVELS - 1)
}

/// Limits of a [`ResourceGroup`]. They can be changed while queries run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Share of the workers' time, relative to the weights of other groups with queued tasks.
    /// Default: 100.
    pub weight: NonZeroU32,
    /// Maximum number of queries of the group that run at a time. Further queries are queued, in
    /// order. Default: no limit.
    pub max_running: Option<NonZeroUsize>,
    /// Maximum number of queued queries. Further queries are rejected. Default: no limit.
    pub max_queued: Option<usize>,
}

const DEFAULT_WEIGHT: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

impl Default for GroupLimits {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, max_running: None, max_queued: None }
    }
}

#[derive(Debug)]
pub(super) struct Level {
    pub(super) injector: Injector<Arc<Task>>,
    /// Worker time given to this level, in ns, divided by its weight.
    vruntime: CachePadded<AtomicU64>,
}

/// Queries of one executor that share limits: those of a tenant, or of a kind. Created by
/// [`Executor::group`](super::Executor::group).
///
/// There may be any number of groups. A group without queued tasks costs nothing when a task is
/// picked. A group that no handle and no query refers to is dropped, except for its limits.
///
/// ```
/// use gatework_runtime::{Executor, scheduler::GroupLimits};
/// let executor = Executor::builder().threads(2).build()?;
/// let reports = executor.group("reports");
/// let one_at_a_time = GroupLimits { max_running: 1.try_into().ok(), ..GroupLimits::default() };
/// reports.set_limits(one_at_a_time);
/// assert_eq!(executor.group("reports").limits(), one_at_a_time);
/// # Ok::<(), gatework_runtime::Error>(())
/// ```
pub struct ResourceGroup {
    name: Box<str>,
    weight: AtomicU32,
    pub(super) levels: [Level; LEVELS],
    /// Worker time given to this group, in ns, divided by its weight.
    vruntime: CachePadded<AtomicU64>,
    /// Whether the group is among the groups with tasks, or is about to be; see `groups.rs`.
    listed: AtomicBool,
    admission: Arc<Admission>,
    /// The group's index in `admission`.
    index: usize,
}

impl Drop for ResourceGroup {
    fn drop(&mut self) {
        self.admission.remove_group(self.index);
    }
}

impl fmt::Debug for ResourceGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (running, queued) = self.queries();
        f.debug_struct("ResourceGroup")
            .field("name", &self.name)
            .field("limits", &self.limits())
            .field("running", &running)
            .field("queued", &queued)
            .finish_non_exhaustive()
    }
}

/// Maximum lag behind the largest vruntime, in ns: an idle group or level does not save up its
/// share.
const MAX_VRUNTIME_LAG: u64 = 100_000_000;

impl ResourceGroup {
    pub(super) fn new(name: &str, admission: &Arc<Admission>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            weight: AtomicU32::new(DEFAULT_WEIGHT.get()),
            levels: std::array::from_fn(|_| Level {
                injector: Injector::new(),
                vruntime: CachePadded::default(),
            }),
            vruntime: CachePadded::default(),
            listed: AtomicBool::new(false),
            admission: admission.clone(),
            index: admission.add_group(),
        })
    }

    /// Returns the group's name; empty for the group of queries without a group.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the group's limits.
    pub fn limits(&self) -> GroupLimits {
        self.admission.limits(self.index)
    }

    /// Changes the group's limits from now on. Running queries go on.
    pub fn set_limits(&self, limits: GroupLimits) {
        self.weight.store(limits.weight.get(), Ordering::Relaxed);
        self.admission.set_limits(self.index, limits);
    }

    /// Returns the numbers of running and of queued queries.
    pub fn queries(&self) -> (usize, usize) {
        self.admission.queries(self.index)
    }

    /// Calls `start` when query `id` is admitted, perhaps at once. The caller must call
    /// [`release_admission`](Self::release_admission) for it later.
    pub(crate) fn admit_or_queue(&self, id: u64, start: StartFn) -> Result<()> {
        self.admission.admit_or_queue(self.index, id, start).map_err(
            |QueueFull { running, queued: waiting }| Error::QueueFull {
                group: self.name.to_string(),
                running,
                queued: waiting,
            },
        )
    }

    /// Releases the admission of query `id`, which has ended or left the queue.
    pub(crate) fn release_admission(&self, id: u64) {
        self.admission.release(self.index, id);
    }

    /// Returns whether a task of a level above `level` waits for a worker.
    pub(super) fn has_tasks_above(&self, level: usize) -> bool {
        self.levels[..level].iter().any(|level| !level.injector.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.injector.is_empty())
    }

    /// Returns whether the group belongs to the executor with this admission.
    pub(super) fn belongs_to(&self, admission: &Arc<Admission>) -> bool {
        Arc::ptr_eq(&self.admission, admission)
    }

    /// Marks the group as listed, after a push. `true`: it was listed already.
    pub(super) fn list(&self) -> bool {
        // AcqRel here and below: a worker that clears a pusher's mark sees the pushed task.
        self.listed.swap(true, Ordering::AcqRel)
    }

    /// Clears the mark of a group without tasks. `false`: a task was pushed, and the mark is set
    /// again.
    pub(super) fn unlist(&self) -> bool {
        self.listed.swap(false, Ordering::AcqRel);
        // A pusher that comes now finds no mark, and lists the group again.
        self.is_empty() || self.list()
    }

    pub(super) fn vruntime(&self) -> u64 {
        self.vruntime.load(Ordering::Relaxed)
    }

    /// Records worker time given to a level, in ns multiplied by 2^level. Returns the group's
    /// vruntime.
    pub(super) fn charge(&self, level: usize, nanos: u64) -> u64 {
        self.levels[level].vruntime.fetch_add(nanos, Ordering::Relaxed);
        // The time of level l was multiplied by 2^l.
        let weight = u64::from(self.weight.load(Ordering::Relaxed));
        let nanos = (nanos >> level) * u64::from(DEFAULT_WEIGHT.get()) / weight;
        let nanos = nanos.max(1);
        self.vruntime.fetch_add(nanos, Ordering::Relaxed) + nanos
    }

    /// Raises the group's vruntime to `max_vruntime - MAX_VRUNTIME_LAG`, if it is smaller.
    pub(super) fn clamp_vruntime(&self, max_vruntime: u64) {
        let floor = max_vruntime.saturating_sub(MAX_VRUNTIME_LAG);
        self.vruntime.fetch_max(floor, Ordering::Relaxed);
    }

    /// Takes the oldest task of the level with the smallest vruntime.
    pub(super) fn take(&self) -> Option<Arc<Task>> {
        let vruntime = |level: &usize| self.levels[*level].vruntime.load(Ordering::Relaxed);
        let mut order: [usize; LEVELS] = std::array::from_fn(|level| level);
        order.sort_by_key(vruntime);
        let max_vruntime = vruntime(&order[LEVELS - 1]);
        for level in order {
            if let Some(task) = steal(|| self.levels[level].injector.steal()) {
                let floor = max_vruntime.saturating_sub(MAX_VRUNTIME_LAG);
                self.levels[level].vruntime.fetch_max(floor, Ordering::Relaxed);
                return Some(task);
            }
        }
        None
    }
}

pub(super) fn steal(mut attempt: impl FnMut() -> Steal<Arc<Task>>) -> Option<Arc<Task>> {
    loop {
        match attempt() {
            Steal::Success(task) => return Some(task),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
