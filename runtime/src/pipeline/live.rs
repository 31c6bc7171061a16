//! What of a query, and of each of its graphs, is alive: tasks, and work done for them elsewhere.
//!
//! Lock: the count of each, under which its gate flips.

use std::sync::Arc;

use gatework_shared_state::{Dependency, DependencyKind, Gate, Wakeups};
use parking_lot::Mutex;

use super::QueryContext;

/// Counts tasks alive, and what is done for them elsewhere; its gate is open while there are none.
#[derive(Debug)]
pub(super) struct LiveCount {
    /// The number of the graph whose tasks are counted.
    graph: Option<u64>,
    count: Mutex<usize>,
    idle: Gate,
}

impl LiveCount {
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
            self.idle.set_ready_later(&mut wakeups);
        }
        *count == 0
    }
}

impl QueryContext {
    /// Counts as live until the answer is dropped, as one of the tasks of `region` if that is
    /// given.
    pub(super) fn outside(self: &Arc<Self>, region: Option<&Arc<LiveCount>>) -> Outside {
        self.live().enter();
        region.inspect(|region| region.enter());
        Outside(Presence { query: self.clone(), region: region.cloned() })
    }

    /// Something of the query, and of one of its graphs, has ended.
    fn leave(&self, region: Option<&Arc<LiveCount>>) {
        if self.live().leave() {
            self.has_ended();
        }
        if let Some(region) = region
            && region.leave()
            && let Some(graph) = region.graph
        {
            self.graph_ended(graph);
        }
    }
}

/// The presence of something that is done for a query outside its tasks: until it is dropped, the
/// query, and the graph it belongs to, count as alive.
#[derive(Debug)]
pub struct Outside(Presence);

impl Outside {
    /// To begin something else later.
    pub(super) fn presence(&self) -> &Presence {
        &self.0
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.query.leave(self.0.region.as_ref());
    }
}

/// What can do something for a query outside its tasks. If it begins when no task lives any more,
/// the query counts as alive again until that is done.
#[derive(Debug, Clone)]
pub struct Presence {
    query: Arc<QueryContext>,
    region: Option<Arc<LiveCount>>,
}

impl Presence {
    /// Begins it.
    pub fn begin(&self) -> Outside {
        self.query.outside(self.region.as_ref())
    }
}

/// A task's presence in its query; dropped when everything else of the task is gone.
pub(super) struct LiveTask {
    query: Arc<QueryContext>,
    region: Arc<LiveCount>,
}

impl LiveTask {
    pub(super) fn new(query: Arc<QueryContext>, region: Arc<LiveCount>) -> Self {
        query.live().enter();
        region.enter();
        Self { query, region }
    }

    pub(super) fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// The graph it was started in.
    pub(super) fn region(&self) -> &Arc<LiveCount> {
        &self.region
    }
}

impl Drop for LiveTask {
    fn drop(&mut self) {
        self.query.leave(Some(&self.region));
    }
}
