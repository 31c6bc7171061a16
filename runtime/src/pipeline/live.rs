//! Counters of live tasks and external work, per query and per graph.
//!
//! Lock: the count of each counter; its gate changes under this lock.

use std::sync::Arc;

use gatework_shared_state::{Dependency, DependencyKind, Gate, StateLock};

use super::QueryContext;

/// Counts live tasks and external work; its gate is ready while the count is 0.
#[derive(Debug)]
pub(super) struct TaskCounter {
    /// The number of the graph whose tasks are counted; `None` for a query.
    graph: Option<u64>,
    count: StateLock<usize>,
    idle: Gate,
}

impl TaskCounter {
    /// Creates the counter of a whole query.
    pub(super) fn of_query() -> Self {
        Self::new("query idle", None)
    }

    /// Creates the counter of graph number `graph`.
    pub(super) fn of_graph(graph: u64) -> Arc<Self> {
        Arc::new(Self::new("pipelines idle", Some(graph)))
    }

    fn new(name: &'static str, graph: Option<u64>) -> Self {
        let idle = Dependency::ready(name, DependencyKind::Finish);
        Self { graph, count: StateLock::new(0), idle }
    }

    /// Returns the gate that is ready while nothing is alive.
    pub(super) fn idle(&self) -> &Gate {
        &self.idle
    }

    pub(super) fn count(&self) -> usize {
        *self.count.lock()
    }

    fn enter(&self) {
        let mut count = self.count.lock();
        *count += 1;
        self.idle.block();
    }

    /// Returns `true` if the count dropped to 0.
    fn leave(&self) -> bool {
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0 {
            count.set_ready(&self.idle);
        }
        *count == 0
    }
}

impl QueryContext {
    /// Registers external work, which counts as alive until the returned guard is dropped. With
    /// `graph_tasks`, it also counts as a task of that graph.
    pub(super) fn external_work(
        self: &Arc<Self>,
        graph_tasks: Option<&Arc<TaskCounter>>,
    ) -> ExternalWork {
        self.task_counter().enter();
        graph_tasks.inspect(|graph_tasks| graph_tasks.enter());
        ExternalWork(ExternalWorkHandle { query: self.clone(), graph_tasks: graph_tasks.cloned() })
    }

    /// Counts down when a task or external work of the query has ended.
    fn leave(&self, graph_tasks: Option<&Arc<TaskCounter>>) {
        if self.task_counter().leave() {
            self.query_ended();
        }
        if let Some(graph_tasks) = graph_tasks
            && graph_tasks.leave()
            && let Some(graph) = graph_tasks.graph
        {
            self.graph_ended(graph);
        }
    }
}

/// A guard of work done for a query outside its tasks. Until it is dropped, the query and the graph
/// it belongs to count as alive.
#[derive(Debug)]
pub struct ExternalWork(ExternalWorkHandle);

impl ExternalWork {
    /// Returns a handle that registers later work.
    pub(super) fn handle(&self) -> &ExternalWorkHandle {
        &self.0
    }
}

impl Drop for ExternalWork {
    fn drop(&mut self) {
        self.0.query.leave(self.0.graph_tasks.as_ref());
    }
}

/// A handle to register work outside the query's tasks. If the work starts when no task is alive,
/// the query counts as alive again until it is done.
#[derive(Debug, Clone)]
pub struct ExternalWorkHandle {
    query: Arc<QueryContext>,
    graph_tasks: Option<Arc<TaskCounter>>,
}

impl ExternalWorkHandle {
    /// Registers work that starts now.
    pub fn enter(&self) -> ExternalWork {
        self.query.external_work(self.graph_tasks.as_ref())
    }
}

/// A task's registration in its query; dropped after all other state of the task.
pub(super) struct TaskGuard {
    query: Arc<QueryContext>,
    graph_tasks: Arc<TaskCounter>,
}

impl TaskGuard {
    pub(super) fn new(query: Arc<QueryContext>, graph_tasks: Arc<TaskCounter>) -> Self {
        query.task_counter().enter();
        graph_tasks.enter();
        Self { query, graph_tasks }
    }

    pub(super) fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Returns the counter of the graph that the task was started in.
    pub(super) fn graph_tasks(&self) -> &Arc<TaskCounter> {
        &self.graph_tasks
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.query.leave(Some(&self.graph_tasks));
    }
}
