//! Resource groups: which queries get how much of the workers, and how many run at a time.
//!
//! A group has a queue of its own, in levels by how much worker time a query has consumed, so that the first
//! slices of a short query come before the hundredth of a long one; a level below still gets its share,
//! because levels are picked by time used divided by weight. Groups are picked in the same way.

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

/// The level of a query that has consumed so much.
pub(super) fn level_of(consumed: Duration) -> usize {
    LEVEL_ENDS.iter().position(|end| consumed < *end).unwrap_or(LEVELS - 1)
}

/// What a [`ResourceGroup`] may use. Can be changed while queries run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Its part of the workers' time when others want it as well, in proportion to theirs; 100.
    pub weight: NonZeroU32,
    /// How many of its queries run at a time; the others wait for their turn, in order. No limit.
    pub max_running: Option<NonZeroUsize>,
    /// How many may wait; more are refused. No limit.
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
    /// Worker time given to this level, divided by its weight.
    vruntime: CachePadded<AtomicU64>,
}

/// Queries that share limits, on one executor: those of a tenant, or of a kind. Made by
/// [`Executor::group`](super::Executor::group).
///
/// There may be any number of groups: a group without a task in the queue costs nothing when a task
/// is picked, and a group that no handle and no query names is forgotten, but for its limits.
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
    /// Worker time given to this group, divided by its weight.
    vruntime: CachePadded<AtomicU64>,
    /// Whether it is among the groups with tasks, or is about to be; see `groups.rs`.
    listed: AtomicBool,
    admission: Arc<Admission>,
    /// Its number there.
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

/// What was idle may not save its share up: it starts this close to the busiest.
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

    /// Its name; that of the group of all other queries is empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it may use.
    pub fn limits(&self) -> GroupLimits {
        self.admission.limits(self.index)
    }

    /// Changes what it may use, from now on. Queries that run go on.
    pub fn set_limits(&self, limits: GroupLimits) {
        self.weight.store(limits.weight.get(), Ordering::Relaxed);
        self.admission.set_limits(self.index, limits);
    }

    /// Queries that run, and queries that wait for their turn.
    pub fn queries(&self) -> (usize, usize) {
        self.admission.queries(self.index)
    }

    /// Calls `start` when query `id` may run, perhaps at once. [`release_admission`](Self::release_admission) is to be called for it.
    pub(crate) fn admit_or_queue(&self, id: u64, start: StartFn) -> Result<()> {
        self.admission.admit_or_queue(self.index, id, start).map_err(
            |QueueFull { running, queued: waiting }| Error::QueueFull {
                group: self.name.to_string(),
                running,
                queued: waiting,
            },
        )
    }

    /// Query `id` has ended, or waits no longer.
    pub(crate) fn release_admission(&self, id: u64) {
        self.admission.release(self.index, id);
    }

    /// Whether a task of a level above `level` waits for a worker.
    pub(super) fn has_tasks_above(&self, level: usize) -> bool {
        self.levels[..level].iter().any(|level| !level.injector.is_empty())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.injector.is_empty())
    }

    /// Whether it is one of the executor with this admission.
    pub(super) fn belongs_to(&self, admission: &Arc<Admission>) -> bool {
        Arc::ptr_eq(&self.admission, admission)
    }

    /// Marks it as listed, behind a push. `true`: it was already.
    pub(super) fn list(&self) -> bool {
        // AcqRel here and below: a worker that takes the mark of a pusher away sees what that had
        // pushed.
        self.listed.swap(true, Ordering::AcqRel)
    }

    /// Takes the mark away from a group without tasks. `false`: one has come, and the mark is there
    /// again.
    pub(super) fn unlist(&self) -> bool {
        self.listed.swap(false, Ordering::AcqRel);
        // A pusher that comes now finds no mark, and enters the group anew.
        self.is_empty() || self.list()
    }

    pub(super) fn vruntime(&self) -> u64 {
        self.vruntime.load(Ordering::Relaxed)
    }

    /// Notes worker time given to a level, which has been divided by the level's weight. Answers
    /// how much the group has used.
    pub(super) fn charge(&self, level: usize, nanos: u64) -> u64 {
        self.levels[level].vruntime.fetch_add(nanos, Ordering::Relaxed);
        // Level l has paid 2^l times as much.
        let weight = u64::from(self.weight.load(Ordering::Relaxed));
        let nanos = (nanos >> level) * u64::from(DEFAULT_WEIGHT.get()) / weight;
        let nanos = nanos.max(1);
        self.vruntime.fetch_add(nanos, Ordering::Relaxed) + nanos
    }

    /// Starts close to a group that has used `max_vruntime`.
    pub(super) fn clamp_vruntime(&self, max_vruntime: u64) {
        let floor = max_vruntime.saturating_sub(MAX_VRUNTIME_LAG);
        self.vruntime.fetch_max(floor, Ordering::Relaxed);
    }

    /// The oldest task of the level that has had least of its share.
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
