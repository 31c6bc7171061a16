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
    memory::{ArbitrationParticipant, PendingRelease},
};
use parking_lot::Mutex;

use super::{
    Chaos, MemoryPool, PendingIo, Profile, ReservationDenied, SliceScope, SpillSpace,
    SpilledBatches, UnboundedPool,
    graph::{Pipeline, TaskStats},
    live::{TaskCounter, TaskGuard},
    started::{StartedGraph, StartedGraphs},
};
use crate::{
    Error, Executor, Result,
    scheduler::{
        Gates, OnIdle, Registry, ResourceGroup, ShutdownTarget, TaskGroup, TaskHandle, TaskState,
    },
};

/// How a query is set up.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// Its name in traces and dumps.
    pub name: Cow<'static, str>,
    /// Where its breakers reserve memory; by default there is no limit. A limit is kept but for
    /// small tables: where there is a place to spill to, each task of each breaker may hold up to
    /// [`SpillSpace::min_spill_bytes`] bytes (256 KiB) that it was refused.
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
    pub bypass_admission: bool,
    /// What is set up around each time slice of its tasks, on the worker; by default nothing.
    pub slice_scope: Option<Arc<dyn SliceScope>>,
    /// What a test does to the query's tasks; by default nothing.
    pub chaos: Option<Arc<Chaos>>,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            name: "query".into(),
            memory: Arc::new(UnboundedPool),
            spill: None,
            time_slice: Duration::from_millis(10),
            group: None,
            bypass_admission: false,
            slice_scope: None,
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
    registry: Arc<Registry>,
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
    memory_by_consumer: Mutex<MemoryByConsumer>,
    task_counter: TaskCounter,
    /// Open, for tasks that let others go first.
    yield_gate: Gate,
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
            registry: executor.registry().clone(),
            group: TaskGroup::in_resource_group(resources.clone()),
            resources,
            admitted: Mutex::new(false),
            span,
            cancelled: AtomicBool::new(false),
            reserved: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            memory_by_consumer: Mutex::default(),
            task_counter: TaskCounter::of_query(),
            yield_gate: Dependency::ready("yield", DependencyKind::Start),
            state: Mutex::default(),
        });
        let shutdown_target: Arc<dyn ShutdownTarget> = query.clone();
        query.registry.register(Arc::downgrade(&shutdown_target));
        let on_idle: Arc<dyn OnIdle> = query.clone();
        query.group.set_on_idle(Arc::downgrade(&on_idle));
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
    pub(super) fn should_yield(&self, ran: Duration) -> bool {
        self.registry.queue.should_preempt(&self.group, ran)
    }

    /// A gate that is open.
    pub(super) fn yield_gate(&self) -> &Gate {
        &self.yield_gate
    }

    pub(super) fn is_yield_gate(&self, gates: &Gates) -> bool {
        gates.iter().any(|gate| Arc::ptr_eq(gate, &self.yield_gate))
    }

    /// What is around each time slice of its tasks.
    pub(super) fn slice_scope(&self) -> Option<&Arc<dyn SliceScope>> {
        self.options.slice_scope.as_ref()
    }

    pub(super) fn chaos(&self) -> Option<&Arc<Chaos>> {
        self.options.chaos.as_ref()
    }

    /// The number of workers its tasks can run on.
    pub fn workers(&self) -> usize {
        self.registry.workers()
    }

    /// Whether this thread is one of its executor's workers, so that the wait for the query may
    /// never end; see [`Executor::is_worker_thread`].
    pub fn is_worker_thread(&self) -> bool {
        self.registry.is_worker_thread()
    }

    /// Tasks that have been started and have not ended.
    pub fn live_tasks(&self) -> usize {
        self.task_counter.count()
    }

    /// Bytes its breakers have reserved at the moment.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    /// Ready when no task of the query lives.
    pub fn idle(&self) -> &Gate {
        self.task_counter.idle()
    }

    /// The error that ended the query, if one did.
    pub fn error(&self) -> Option<Error> {
        self.state.lock().first_error.clone()
    }

    /// Names an operator that another engine runs on this query's behalf.
    pub fn record_fallback(&self, name: impl Into<String>) {
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

    pub(super) fn cancel_with_reason(&self, reason: &'static str) {
        self.fail(Error::Cancelled { reason });
    }

    /// Ends the query with `error`, unless another one was first.
    pub fn fail(&self, error: Error) {
        let handles = {
            let mut state = self.state.lock();
            match &state.first_error {
                // An echo says less than what it echoes, which may come later.
                Some(first) if !matches!(first, Error::ProducerAborted) || error.is_secondary() => {
                }
                _ => state.first_error = Some(error),
            }
            // SeqCst with the lock around it: a graph is either started before and woken below, or
            // sees the flag in `start_graph`.
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
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(Error::Cancelled { reason: "another task ended the query" });
        }
        Ok(())
    }

    /// Spawns and wakes the tasks of a graph. The gate opens when all have ended.
    pub(super) fn start_graph(
        self: &Arc<Self>,
        pipelines: &[Arc<Pipeline>],
        task_stats: Vec<Vec<Arc<TaskStats>>>,
    ) -> Result<(Arc<StartedGraph>, Gate)> {
        let mut handles = Vec::new();
        let (graph, idle) = {
            let mut state = self.state.lock();
            if self.cancelled.load(Ordering::SeqCst) {
                let error = state.first_error.clone();
                return Err(error.unwrap_or(Error::Cancelled { reason: "before it started" }));
            }
            if !self.registry.queue.owns(&self.resources) {
                let group = self.resources.name();
                let what = format!("the resource group '{group}' is one of another executor");
                return Err(Error::InvalidConfiguration(what));
            }
            self.registry.add_live_tasks(task_stats.iter().map(Vec::len).sum())?;
            let id = state.graphs.next_id();
            let graph_tasks = TaskCounter::of_graph(id);
            for (pipeline, task_stats) in pipelines.iter().zip(&task_stats) {
                for stats in task_stats {
                    let guard = TaskGuard::new(self.clone(), graph_tasks.clone());
                    let handle = self.registry.spawn(&self.group, stats.driver(pipeline, guard));
                    let _first = stats.handle.set(handle.clone());
                    handles.push(handle);
                }
            }
            // Only what a profile tells of the pipelines: their parts belong to the tasks alone.
            let infos = pipelines.iter().map(|pipeline| pipeline.info.clone()).collect();
            let task_stats = task_stats.into_iter().flatten().collect();
            let graph = Arc::new(StartedGraph::new(id, infos, task_stats));
            state.graphs.add(&graph);
            (graph, graph_tasks.idle().clone())
        };
        if let Err(error) = self.start_when_admitted(&handles) {
            self.fail(error.clone());
            return Err(error);
        }
        Ok((graph, idle))
    }

    /// Wakes tasks that have been spawned, when the query's resource group lets it run.
    fn start_when_admitted(&self, handles: &[TaskHandle]) -> Result<()> {
        let mut admitted = self.admitted.lock();
        if *admitted || self.options.bypass_admission {
            self.registry.wake_together(handles);
            return Ok(());
        }
        let (registry, handles) = (self.registry.clone(), handles.to_vec());
        self.resources
            .admit_or_queue(self.id, Box::new(move || registry.wake_together(&handles)))?;
        *admitted = true;
        // They may have been cancelled before, and have ended.
        self.release_admission(&mut admitted);
        Ok(())
    }

    /// What of it is alive.
    pub(super) fn task_counter(&self) -> &TaskCounter {
        &self.task_counter
    }

    /// The last task of the query, or what was done for it, has ended.
    pub(super) fn query_ended(&self) {
        self.release_admission(&mut self.admitted.lock());
    }

    /// The last task of one of its graphs has ended: only counters are kept of it.
    pub(super) fn graph_ended(&self, graph: u64) {
        // Dropped behind the lock.
        let _graph = self.state.lock().graphs.end(graph);
    }

    /// Gives its turn to others if nothing of the query is left.
    fn release_admission(&self, admitted: &mut bool) {
        if *admitted && self.task_counter.count() == 0 {
            *admitted = false;
            self.resources.release_admission(self.id);
        }
    }

    /// A place for a task among those that hold memory.
    pub(super) fn register_for_reclaim(&self) -> ArbitrationParticipant {
        self.registry.arbitrator.register(self.options.memory.pool_id(), self.id)
    }

    /// Memory that is held for work done elsewhere is about to come back.
    pub(super) fn announce_release(&self) -> PendingRelease {
        self.registry.arbitrator.announce_release(self.options.memory.pool_id())
    }

    /// Where its breakers put what does not fit.
    pub(super) fn spill_space(&self) -> Option<&Arc<dyn SpillSpace>> {
        self.options.spill.as_ref()
    }

    /// Gets batch number `batch` of `spilled` back.
    pub(super) fn restore(
        self: &Arc<Self>,
        spilled: &Arc<dyn SpilledBatches>,
        batch: usize,
        graph_tasks: Option<&Arc<TaskCounter>>,
    ) -> PendingIo<RecordBatch> {
        let (pending, done) = PendingIo::for_graph("spill read", self, graph_tasks, Vec::new());
        spilled.clone().read(batch, done);
        pending
    }

    pub(super) fn grow_memory(
        &self,
        consumer: &Arc<str>,
        bytes: usize,
    ) -> Result<(), ReservationDenied> {
        self.options.memory.try_grow(consumer, bytes).map_err(|denied| ReservationDenied {
            reason: format!("{}; {}", denied.reason, self.largest_consumers()),
        })?;
        let reserved = self.reserved.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.peak.fetch_max(reserved, Ordering::Relaxed);
        self.memory_by_consumer.lock().add(consumer, bytes);
        Ok(())
    }

    pub(super) fn shrink_memory(&self, consumer: &Arc<str>, bytes: usize) {
        self.memory_by_consumer.lock().subtract(consumer, bytes);
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        self.options.memory.shrink(bytes);
        self.registry.arbitrator.notify_released();
    }

    /// What was reserved for `from` is held by `to` now.
    pub(super) fn transfer_memory(&self, from: &Arc<str>, to: &Arc<str>, bytes: usize) {
        if from != to && bytes > 0 {
            let mut by_consumer = self.memory_by_consumer.lock();
            by_consumer.subtract(from, bytes);
            by_consumer.add(to, bytes);
        }
    }

    /// The operators of this query that hold most, in words.
    fn largest_consumers(&self) -> String {
        let mut by_consumer = self.memory_by_consumer.lock().0.clone();
        by_consumer.retain(|(_, reserved)| *reserved > 0);
        by_consumer.sort_by_key(|(_, reserved)| std::cmp::Reverse(*reserved));
        let named: Vec<_> = by_consumer
            .iter()
            .take(3)
            .map(|(name, reserved)| format!("{name} {reserved}"))
            .collect();
        match named.is_empty() {
            true => "this query has reserved nothing yet".to_owned(),
            false => format!("largest reservations of this query: {}", named.join(", ")),
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
    pub(super) fn with_graphs<T>(&self, read: impl FnOnce(&StartedGraphs) -> T) -> T {
        read(&self.state.lock().graphs)
    }
}

impl ShutdownTarget for QueryContext {
    fn shut_down(&self) {
        let running = {
            let state = self.state.lock();
            state.graphs.handles().any(|handle| handle.state() != TaskState::Finished)
        };
        if running {
            self.cancel_with_reason("its executor is shut down");
        }
    }
}

impl OnIdle for QueryContext {
    /// Fails the query if it has not ended, and nothing can be expected to wake a task of it.
    fn idle(&self) {
        let ended = self.cancelled.load(Ordering::Acquire) || self.live_tasks() == 0;
        if !ended && self.has_stalled() {
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
struct MemoryByConsumer(Vec<(Arc<str>, usize)>);

impl MemoryByConsumer {
    fn add(&mut self, consumer: &Arc<str>, bytes: usize) {
        match self.0.iter_mut().find(|(name, _)| name == consumer) {
            Some((_, reserved)) => *reserved += bytes,
            None => self.0.push((consumer.clone(), bytes)),
        }
    }

    fn subtract(&mut self, consumer: &Arc<str>, bytes: usize) {
        if let Some((_, reserved)) = self.0.iter_mut().find(|(name, _)| name == consumer) {
            *reserved -= bytes;
        }
    }
}
