//! What the tasks of one query share: its first error, cancellation, memory, counters.
//!
//! Lock: `state`. It is never held while a task is woken or a gate is opened by us.
//!
//! Who ends a query: its tasks (all done), an error or a panic of a task (`fail`: the first one
//! wins), or anybody with a handle (`cancel`). The last two set `cancelled` and wake all tasks in
//! front of the queue; each finds the flag at its next step, aborts its parts, and leaves. A graph
//! that is started afterwards is refused, so `cancel` before `start` works as well.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_array::RecordBatch;
use gatework_shared_state::{
    Dependency, DependencyKind, Gate,
    memory::{Giving, Holder},
};
use parking_lot::Mutex;

use super::{
    Chaos, MemoryPool, MemoryRefused, Pending, Profile, SliceScope, SpillSpace, Spilled, Unlimited,
    graph::{Pipeline, TaskRecord},
    live::{LiveCount, LiveTask},
    started::{StartedGraph, StartedGraphs},
};
use crate::{
    Error, Executor, Result,
    scheduler::{Core, Gates, OnIdle, ResourceGroup, Shutdown, TaskGroup, TaskHandle, TaskState},
};

/// How a query is set up.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// Its name in traces and dumps.
    pub name: Cow<'static, str>,
    /// Where its breakers reserve memory; by default there is no limit. A limit is kept but for
    /// small tables: where there is a place to spill to, each task of each breaker may hold up to
    /// [`SpillSpace::overdraft`] bytes (256 KiB) that it was refused.
    pub memory: Arc<dyn MemoryPool>,
    /// Where its breakers put what does not fit; without, a query that does not fit fails.
    pub spill: Option<Arc<dyn SpillSpace>>,
    /// How long a task runs before others get their turn, checked between two batches; 10 ms.
    /// 0 for one step at a time.
    pub time_slice: Duration,
    /// Whose limits hold for it; by default those of the queries without a group.
    pub group: Option<Arc<ResourceGroup>>,
    /// It is a part of a query that was admitted as a whole: it has a share of its group's time, and does not count
    /// against the group's limits. (A part that waited for others to end might be what they wait for.)
    pub admitted: bool,
    /// What is set up around each time slice of its tasks, on the worker; by default nothing.
    pub around: Option<Arc<dyn SliceScope>>,
    /// What a test does to the query's tasks; by default nothing.
    pub chaos: Option<Arc<Chaos>>,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            name: "query".into(),
            memory: Arc::new(Unlimited),
            spill: None,
            time_slice: Duration::from_millis(10),
            group: None,
            admitted: false,
            around: None,
            chaos: None,
        }
    }
}

/// From this number on, a fallback is named once.
const MANY_FALLBACKS: usize = 1000;

#[derive(Default)]
struct State {
    first_error: Option<Error>,
    graphs: StartedGraphs,
    fallbacks: Vec<String>,
}

/// One query. See the module's documentation.
pub struct QueryContext {
    id: u64,
    options: QueryOptions,
    core: Arc<Core>,
    group: Arc<TaskGroup>,
    resources: Arc<ResourceGroup>,
    /// Whether it is counted among the queries of its resource group, as running or waiting. Locked while
    /// that changes, before the group's own lock.
    admitted: Mutex<bool>,
    span: tracing::Span,
    cancelled: AtomicBool,
    reserved: AtomicUsize,
    peak: AtomicUsize,
    /// Who holds how much of what is reserved.
    holders: Mutex<Holders>,
    live: LiveCount,
    /// Open, for tasks that let others go first.
    breath: Gate,
    state: Mutex<State>,
}

impl QueryContext {
    /// A query on `executor` that has no tasks yet.
    pub fn new(executor: &Executor, options: QueryOptions) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!("query", id, name = %options.name);
        let resources = options.group.clone().unwrap_or_else(|| executor.group(""));
        let query = Arc::new(Self {
            id,
            options,
            core: executor.core().clone(),
            group: TaskGroup::within(resources.clone()),
            resources,
            admitted: Mutex::new(false),
            span,
            cancelled: AtomicBool::new(false),
            reserved: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            holders: Mutex::default(),
            live: LiveCount::of_query(),
            breath: Dependency::ready("its turn", DependencyKind::Execution),
            state: Mutex::default(),
        });
        let resident: Arc<dyn Shutdown> = query.clone();
        query.core.add_resident(Arc::downgrade(&resident));
        let on_idle: Arc<dyn OnIdle> = query.clone();
        query.group.watch(Arc::downgrade(&on_idle));
        query
    }

    /// Its number, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn span(&self) -> &tracing::Span {
        &self.span
    }

    pub(super) fn time_slice(&self) -> Duration {
        self.options.time_slice
    }

    /// Whether a task of another query is to run before one of this, which has run for so long.
    pub(super) fn gives_way(&self, ran: Duration) -> bool {
        self.core.queue.is_wanted(&self.group, ran)
    }

    /// A gate that is open.
    pub(super) fn breath(&self) -> &Gate {
        &self.breath
    }

    pub(super) fn is_breath(&self, gates: &Gates) -> bool {
        gates.iter().any(|gate| Arc::ptr_eq(gate, &self.breath))
    }

    /// What is around each time slice of its tasks.
    pub(super) fn around(&self) -> Option<&Arc<dyn SliceScope>> {
        self.options.around.as_ref()
    }

    pub(super) fn chaos(&self) -> Option<&Arc<Chaos>> {
        self.options.chaos.as_ref()
    }

    /// The number of workers its tasks can run on.
    pub fn workers(&self) -> usize {
        self.core.workers()
    }

    /// Whether this thread is one of its executor's workers, so that the wait for the query may
    /// never end; see [`Executor::is_worker_thread`].
    pub fn is_worker_thread(&self) -> bool {
        self.core.is_worker_thread()
    }

    /// Tasks that have been started and have not ended.
    pub fn live_tasks(&self) -> usize {
        self.live.count()
    }

    /// Bytes its breakers have reserved at the moment.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    /// Ready when no task of the query lives.
    pub fn idle(&self) -> &Gate {
        self.live.idle()
    }

    /// The error that ended the query, if one did.
    pub fn error(&self) -> Option<Error> {
        self.state.lock().first_error.clone()
    }

    /// Names an operator that another engine runs on this query's behalf.
    pub fn note_fallback(&self, name: impl Into<String>) {
        let name = name.into();
        let fallbacks = &mut self.state.lock().fallbacks;
        // A query that plans round by round names the same ones without end.
        if fallbacks.len() < MANY_FALLBACKS || !fallbacks.contains(&name) {
            fallbacks.push(name);
        }
    }

    /// Cancels the query. Can be called by anyone at any time, any number of times; only the first
    /// call counts, and none after an error.
    pub fn cancel(&self) {
        self.fail(Error::Cancelled { reason: "by its handle" });
    }

    pub(super) fn cancel_because(&self, reason: &'static str) {
        self.fail(Error::Cancelled { reason });
    }

    /// Ends the query with `error`, unless another one was first.
    pub fn fail(&self, error: Error) {
        let handles = {
            let mut state = self.state.lock();
            match &state.first_error {
                // An echo says less than what it echoes, which may come later.
                Some(first) if !matches!(first, Error::ProducerAborted) || error.is_echo() => {}
                _ => state.first_error = Some(error),
            }
            // SeqCst with the lock around it: a graph is either started before and woken below, or
            // sees the flag in `admit`.
            if self.cancelled.swap(true, Ordering::SeqCst) {
                return;
            }
            state.graphs.handles().cloned().collect::<Vec<_>>()
        };
        for handle in handles {
            handle.wake_urgently();
        }
    }

    /// Answers an error once the query has been cancelled or has failed.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(Error::Cancelled { reason: "another task ended the query" });
        }
        Ok(())
    }

    /// Spawns and wakes the tasks of a graph. The gate opens when all have ended.
    pub(super) fn admit(
        self: &Arc<Self>,
        pipelines: &[Arc<Pipeline>],
        records: Vec<Vec<Arc<TaskRecord>>>,
    ) -> Result<(Arc<StartedGraph>, Gate)> {
        let mut handles = Vec::new();
        let (graph, idle) = {
            let mut state = self.state.lock();
            if self.cancelled.load(Ordering::SeqCst) {
                let error = state.first_error.clone();
                return Err(error.unwrap_or(Error::Cancelled { reason: "before it started" }));
            }
            if !self.core.queue.owns(&self.resources) {
                let group = self.resources.name();
                let what = format!("the resource group '{group}' is one of another executor");
                return Err(Error::Setup(what));
            }
            self.core.enter(records.iter().map(Vec::len).sum())?;
            let id = state.graphs.next_id();
            let region = LiveCount::of_graph(id);
            for (pipeline, records) in pipelines.iter().zip(&records) {
                for record in records {
                    let live = LiveTask::new(self.clone(), region.clone());
                    let handle = self.core.spawn(&self.group, record.driver(pipeline, live));
                    let _first = record.handle.set(handle.clone());
                    handles.push(handle);
                }
            }
            // Only what a profile tells of the pipelines: their parts belong to the tasks alone.
            let infos = pipelines.iter().map(|pipeline| pipeline.info.clone()).collect();
            let records = records.into_iter().flatten().collect();
            let graph = Arc::new(StartedGraph::new(id, infos, records));
            state.graphs.add(&graph);
            (graph, region.idle().clone())
        };
        if let Err(error) = self.start_in_turn(&handles) {
            self.fail(error.clone());
            return Err(error);
        }
        Ok((graph, idle))
    }

    /// Wakes tasks that have been spawned, when the query's resource group lets it run.
    fn start_in_turn(&self, handles: &[TaskHandle]) -> Result<()> {
        let mut admitted = self.admitted.lock();
        if *admitted || self.options.admitted {
            self.core.wake_together(handles);
            return Ok(());
        }
        let (core, handles) = (self.core.clone(), handles.to_vec());
        self.resources.enter(self.id, Box::new(move || core.wake_together(&handles)))?;
        *admitted = true;
        // They may have been cancelled before, and have ended.
        self.leave_group(&mut admitted);
        Ok(())
    }

    /// What of it is alive.
    pub(super) fn live(&self) -> &LiveCount {
        &self.live
    }

    /// The last task of the query, or what was done for it, has ended.
    pub(super) fn has_ended(&self) {
        self.leave_group(&mut self.admitted.lock());
    }

    /// The last task of one of its graphs has ended: only counters are kept of it.
    pub(super) fn graph_ended(&self, graph: u64) {
        // Dropped behind the lock.
        let _graph = self.state.lock().graphs.end(graph);
    }

    /// Gives its turn to others if nothing of the query is left.
    fn leave_group(&self, admitted: &mut bool) {
        if *admitted && self.live.count() == 0 {
            *admitted = false;
            self.resources.leave(self.id);
        }
    }

    /// A place for a task among those that hold memory.
    pub(super) fn memory_holder(&self) -> Holder {
        self.core.arbiter.holder(self.options.memory.shares_with(), self.id)
    }

    /// Memory that is held for work done elsewhere is about to come back.
    pub(super) fn memory_giving(&self) -> Giving {
        self.core.arbiter.giving(self.options.memory.shares_with())
    }

    /// Where its breakers put what does not fit.
    pub(super) fn spill_space(&self) -> Option<&Arc<dyn SpillSpace>> {
        self.options.spill.as_ref()
    }

    /// Gets batch number `batch` of `spilled` back.
    pub(super) fn unspill(
        self: &Arc<Self>,
        spilled: &Arc<dyn Spilled>,
        batch: usize,
        region: Option<&Arc<LiveCount>>,
    ) -> Pending<RecordBatch> {
        let (pending, done) = Pending::within("spill read", self, region, Vec::new());
        spilled.clone().read(batch, done);
        pending
    }

    pub(super) fn grow_memory(&self, holder: &Arc<str>, bytes: usize) -> Result<(), MemoryRefused> {
        self.options.memory.try_grow(holder, bytes).map_err(|refused| MemoryRefused {
            reason: format!("{}; {}", refused.reason, self.largest_holders()),
        })?;
        let reserved = self.reserved.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.peak.fetch_max(reserved, Ordering::Relaxed);
        self.holders.lock().add(holder, bytes);
        Ok(())
    }

    pub(super) fn shrink_memory(&self, holder: &Arc<str>, bytes: usize) {
        self.holders.lock().take(holder, bytes);
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        self.options.memory.shrink(bytes);
        self.core.arbiter.released();
    }

    /// What was reserved for `from` is held by `to` now.
    pub(super) fn rename_memory(&self, from: &Arc<str>, to: &Arc<str>, bytes: usize) {
        if from != to && bytes > 0 {
            let mut holders = self.holders.lock();
            holders.take(from, bytes);
            holders.add(to, bytes);
        }
    }

    /// The operators of this query that hold most, in words.
    fn largest_holders(&self) -> String {
        let mut holders = self.holders.lock().0.clone();
        holders.retain(|(_, held)| *held > 0);
        holders.sort_by_key(|(_, held)| std::cmp::Reverse(*held));
        let named: Vec<_> =
            holders.iter().take(3).map(|(name, held)| format!("{name} {held}")).collect();
        match named.is_empty() {
            true => "this query holds nothing yet".to_owned(),
            false => format!("this query holds most in: {}", named.join(", ")),
        }
    }

    /// What every task does at this moment, and for each blocked task the gates it waits for.
    pub fn dump(&self) -> String {
        let state = self.state.lock();
        let mut text = format!(
            "query {} '{}': {} live tasks, {} bytes reserved\n",
            self.id,
            self.options.name,
            self.live_tasks(),
            self.reserved_bytes()
        );
        state.graphs.dump(&mut text);
        text
    }

    /// The most bytes that it had reserved at a time.
    pub(super) fn peak_memory_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// What the query did so far.
    pub fn profile(&self) -> Profile {
        let state = self.state.lock();
        let mut profile = Profile {
            fallbacks: state.fallbacks.clone(),
            peak_memory_bytes: self.peak_memory_bytes(),
            ..Profile::default()
        };
        state.graphs.add_to(&mut profile);
        profile
    }

    /// Whether it has not ended, and nothing can be expected to wake a task of it.
    fn has_stalled(&self) -> bool {
        let mut state = self.state.lock();
        let wake_ups = self.group.wake_ups();
        // Some may have run while others were looked at: the last of them to leave looks again.
        state.graphs.have_stalled() && self.group.wake_ups() == wake_ups
    }

    /// The graphs it has started.
    #[cfg(test)]
    pub(super) fn look_at_graphs<T>(&self, look: impl FnOnce(&StartedGraphs) -> T) -> T {
        look(&self.state.lock().graphs)
    }
}

impl Shutdown for QueryContext {
    fn shut_down(&self) {
        let running = {
            let state = self.state.lock();
            state.graphs.handles().any(|handle| handle.state() != TaskState::Finished)
        };
        if running {
            self.cancel_because("its executor is shut down");
        }
    }
}

impl OnIdle for QueryContext {
    /// Fails the query if it has not ended, and nothing can be expected to wake a task of it.
    fn idle(&self) {
        let over = self.cancelled.load(Ordering::Acquire) || self.live_tasks() == 0;
        if !over && self.has_stalled() {
            self.fail(Error::Stalled { dump: self.dump() });
        }
    }
}

impl fmt::Debug for QueryContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryContext")
            .field("id", &self.id)
            .field("live_tasks", &self.live_tasks())
            .finish_non_exhaustive()
    }
}

/// Bytes by the name of who reserved them.
#[derive(Default)]
struct Holders(Vec<(Arc<str>, usize)>);

impl Holders {
    fn add(&mut self, holder: &Arc<str>, bytes: usize) {
        match self.0.iter_mut().find(|(name, _)| name == holder) {
            Some((_, held)) => *held += bytes,
            None => self.0.push((holder.clone(), bytes)),
        }
    }

    fn take(&mut self, holder: &Arc<str>, bytes: usize) {
        if let Some((_, held)) = self.0.iter_mut().find(|(name, _)| name == holder) {
            *held -= bytes;
        }
    }
}
