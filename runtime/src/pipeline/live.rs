//! What of a query, and of each of its graphs, is alive: tasks, and work done for them elsewhere.
//!
//! Lock: the count of each, under which its gate flips.

use std::sync::Arc;

use gatework_shared_state::{Dependency, DependencyKind, Gate, Wakeups};
use parking_lot::Mutex;

use super::QueryContext;

/// Counts tasks alive, and what is done for them elsewhere; its gate is open while there are none.
#[derive(Debug)]
pub(super) struct TaskCounter {
    /// The number of the graph whose tasks are counted.
    graph: Option<u64>,
    count: Mutex<usize>,
    idle: Gate,
}

impl TaskCounter {
    /// For a whole query.
    pub(super) fn of_query() -> Self {
        Self::new("query idle", None)
    }

    /// For the graph of a query that has this number there.
    pub(super) fn of_graph(graph: u64) -> Arc<Self> {
        Arc::new(Self::new("pipelines idle", Some(graph)))
    }

    fn new(name: &'static str, graph: Option<u64>) -> Self {
        let idle = Dependency::ready(name, DependencyKind::Finish);
        Self { graph, count: Mutex::new(0), idle }
    }

    /// Open while nothing is alive.
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

    /// `true` for the last.
    fn leave(&self) -> bool {
        let mut wakeups = Wakeups::new();
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0 {
            self.idle.set_ready_deferred(&mut wakeups);
        }
        *count == 0
    }
}

impl QueryContext {
    /// Counts as live until the answer is dropped, as one of the tasks of `graph_tasks` if that is
    /// given.
    pub(super) fn external_work(
        self: &Arc<Self>,
        graph_tasks: Option<&Arc<TaskCounter>>,
    ) -> ExternalWork {
        self.task_counter().enter();
        graph_tasks.inspect(|graph_tasks| graph_tasks.enter());
        ExternalWork(ExternalWorkHandle { query: self.clone(), graph_tasks: graph_tasks.cloned() })
    }

    /// Something of the query, and of one of its graphs, has ended.
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

/// The presence of something that is done for a query outside its tasks: until it is dropped, the
/// query, and the graph it belongs to, count as alive.
#[derive(Debug)]
pub struct ExternalWork(ExternalWorkHandle);

impl ExternalWork {
    /// To begin something else later.
    pub(super) fn handle(&self) -> &ExternalWorkHandle {
        &self.0
    }
}

impl Drop for ExternalWork {
    fn drop(&mut self) {
        self.0.query.leave(self.0.graph_tasks.as_ref());
    }
}

/// What can do something for a query outside its tasks. If it begins when no task lives any more,
/// the query counts as alive again until that is done.
#[derive(Debug, Clone)]
pub struct ExternalWorkHandle {
    query: Arc<QueryContext>,
    graph_tasks: Option<Arc<TaskCounter>>,
}

impl ExternalWorkHandle {
    /// Begins it.
    pub fn enter(&self) -> ExternalWork {
        self.query.external_work(self.graph_tasks.as_ref())
    }
}

/// A task's presence in its query; dropped when everything else of the task is gone.
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

    /// The graph it was started in.
    pub(super) fn graph_tasks(&self) -> &Arc<TaskCounter> {
        &self.graph_tasks
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.query.leave(Some(&self.graph_tasks));
    }
}
