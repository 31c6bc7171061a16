//! The state that the tasks of one query share: first error, cancellation, memory, counters.
//!
//! Lock: `state`. It is never held while this module wakes a task or makes a gate ready.
//!
//! A query ends when all its tasks are done, when a task fails or panics (`fail`: the first error
//! wins), or when a handle calls `cancel`. The last two set `cancelled` and wake all tasks at the
//! front of the queue. Each task sees the flag at its next step, aborts its local states and ends.
//! A graph started afterwards is refused, so `cancel` before `start` works as well.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_array::RecordBatch;
use gatework_shared_state::{
    Gate,
    memory::{ArbitrationParticipant, PendingRelease},
};
use parking_lot::Mutex;

use super::{
    Chaos, PendingIo, Profile, QueryOptions, ReservationDenied, SliceScope, SpillSpace,
    SpilledBatches,
    graph::{Pipeline, TaskStats},
    live::{TaskCounter, TaskGuard},
    started::{StartedGraph, StartedGraphs},
};
use crate::{
    Error, Executor, Result,
    scheduler::{
        OnIdle, Registry, ResourceGroup, ShutdownTarget, TaskGroup, TaskHandle, TaskState,
    },
};

/// From this number of fallbacks on, a name is recorded only once.
const MANY_FALLBACKS: usize = 1000;

#[derive(Default)]
struct State {
    first_error: Option<Error>,
    graphs: StartedGraphs,
    fallbacks: Vec<String>,
}

/// One query; see the module's documentation.
pub struct QueryContext {
    id: u64,
    options: QueryOptions,
    registry: Arc<Registry>,
    group: Arc<TaskGroup>,
    resources: Arc<ResourceGroup>,
    /// Whether the query counts as running or queued in its resource group. Locked while that
    /// changes, before the group's own lock.
    admitted: Mutex<bool>,
    span: tracing::Span,
    cancelled: AtomicBool,
    reserved: AtomicUsize,
    peak: AtomicUsize,
    /// Reserved bytes by operator name.
    memory_by_consumer: Mutex<MemoryByConsumer>,
    task_counter: TaskCounter,
    state: Mutex<State>,
}

impl QueryContext {
    /// Creates a query on `executor`, without tasks.
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
            state: Mutex::default(),
        });
        let shutdown_target: Arc<dyn ShutdownTarget> = query.clone();
        query.registry.register(Arc::downgrade(&shutdown_target));
        let on_idle: Arc<dyn OnIdle> = query.clone();
        query.group.set_on_idle(Arc::downgrade(&on_idle));
        query
    }

    /// Returns the query's id, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn span(&self) -> &tracing::Span {
        &self.span
    }

    pub(super) fn time_slice(&self) -> Duration {
        self.options.time_slice
    }

    /// Returns whether a task of another query should run before a task of this query that has run
    /// for `ran`.
    pub(super) fn should_yield(&self, ran: Duration) -> bool {
        self.registry.queue.should_preempt(&self.group, ran)
    }

    /// Returns the scope around each time slice of the query's tasks.
    pub(super) fn slice_scope(&self) -> Option<&Arc<dyn SliceScope>> {
        self.options.slice_scope.as_ref()
    }

    pub(super) fn chaos(&self) -> Option<&Arc<Chaos>> {
        self.options.chaos.as_ref()
    }

    /// Returns the number of workers that the query's tasks can run on.
    pub fn workers(&self) -> usize {
        self.registry.workers()
    }

    /// Returns whether this thread is a worker of the query's executor. Waiting for the query on
    /// such a thread may deadlock; see [`Executor::is_worker_thread`].
    pub fn is_worker_thread(&self) -> bool {
        self.registry.is_worker_thread()
    }

    /// Returns the number of tasks that have started and not ended.
    pub fn live_tasks(&self) -> usize {
        self.task_counter.count()
    }

    /// Returns the number of bytes that the query's breakers have reserved now.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    /// Returns a gate that is ready while no task of the query is alive.
    pub fn idle(&self) -> &Gate {
        self.task_counter.idle()
    }

    /// Returns the error that ended the query, if any.
    pub fn error(&self) -> Option<Error> {
        self.state.lock().first_error.clone()
    }

    /// Records the name of an operator that runs as a fallback in another engine.
    pub fn record_fallback(&self, name: impl Into<String>) {
        let name = name.into();
        let fallbacks = &mut self.state.lock().fallbacks;
        // A query that plans round by round repeats the same names without bound.
        if fallbacks.len() < MANY_FALLBACKS || !fallbacks.contains(&name) {
            fallbacks.push(name);
        }
    }

    /// Cancels the query. May be called by any thread at any time. Only the first call counts, and
    /// none after an error.
    pub fn cancel(&self) {
        self.fail(Error::Cancelled { reason: "by its handle" });
    }

    pub(super) fn cancel_with_reason(&self, reason: &'static str) {
        self.fail(Error::Cancelled { reason });
    }

    /// Fails the query with `error`, unless an earlier error stands.
    pub fn fail(&self, error: Error) {
        let handles = {
            let mut state = self.state.lock();
            match &state.first_error {
                // A secondary error says less than its cause, which may arrive later.
                Some(first) if !matches!(first, Error::ProducerAborted) || error.is_secondary() => {
                }
                _ => state.first_error = Some(error),
            }
            // SeqCst, inside the lock: a graph is either started before and woken below, or
            // `start_graph` sees the flag.
            if self.cancelled.swap(true, Ordering::SeqCst) {
                return;
            }
            state.graphs.handles().cloned().collect::<Vec<_>>()
        };
        for handle in handles {
            handle.wake_urgently();
        }
    }

    /// Returns an error once the query has been cancelled or has failed.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(Error::Cancelled { reason: "another task ended the query" });
        }
        Ok(())
    }

    /// Spawns and wakes the tasks of a graph. Returns a gate that is ready when all have ended.
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
                let what = format!("the resource group '{group}' belongs to another executor");
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
            // Only the pipelines' profile data: the operators belong to the tasks alone.
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

    /// Wakes spawned tasks when the query's resource group admits the query.
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
        // The tasks may have been cancelled before admission, and have ended.
        self.release_admission(&mut admitted);
        Ok(())
    }

    /// Returns the counter of the query's live tasks and external work.
    pub(super) fn task_counter(&self) -> &TaskCounter {
        &self.task_counter
    }

    /// Called when the last task or external work of the query has ended.
    pub(super) fn query_ended(&self) {
        self.release_admission(&mut self.admitted.lock());
    }

    /// Called when the last task of graph `graph` has ended; keeps only its counters.
    pub(super) fn graph_ended(&self, graph: u64) {
        // Dropped after the lock is released.
        let _graph = self.state.lock().graphs.end(graph);
    }

    /// Releases the query's admission if nothing of the query is alive.
    fn release_admission(&self, admitted: &mut bool) {
        if *admitted && self.task_counter.count() == 0 {
            *admitted = false;
            self.resources.release_admission(self.id);
        }
    }

    /// Registers a task for memory arbitration.
    pub(super) fn register_for_reclaim(&self) -> ArbitrationParticipant {
        self.registry.arbitrator.register(self.options.memory.pool_id(), self.id)
    }

    /// Announces that memory reserved for external work is about to be released.
    pub(super) fn announce_release(&self) -> PendingRelease {
        self.registry.arbitrator.announce_release(self.options.memory.pool_id())
    }

    /// Returns where breakers spill, if they can.
    pub(super) fn spill_space(&self) -> Option<&Arc<dyn SpillSpace>> {
        self.options.spill.as_ref()
    }

    /// Reads batch number `batch` of `spilled` back into memory.
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

    /// Moves `bytes` reserved by `from` to `to`.
    pub(super) fn transfer_memory(&self, from: &Arc<str>, to: &Arc<str>, bytes: usize) {
        if from != to && bytes > 0 {
            let mut by_consumer = self.memory_by_consumer.lock();
            by_consumer.subtract(from, bytes);
            by_consumer.add(to, bytes);
        }
    }

    /// Describes the operators of this query with the largest reservations, at most 3.
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

    /// Describes the state of every task, and for each blocked task the gates it waits for.
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

    /// Returns the query's peak of reserved bytes.
    pub(super) fn peak_memory_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Returns the query's counters so far.
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

    /// Returns whether the query has not ended and nothing can wake any of its tasks.
    fn has_stalled(&self) -> bool {
        let mut state = self.state.lock();
        let wake_ups = self.group.wake_ups();
        // A task may have run during the check; the last task of the group to block repeats the
        // check.
        state.graphs.have_stalled() && self.group.wake_ups() == wake_ups
    }

    /// Calls `read` with the query's graphs.
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
    /// Fails the query if it has not ended and nothing can wake any of its tasks.
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

/// Reserved bytes by operator name.
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
