//! Contexts outside a pipeline, for unit tests of local states.

use std::{sync::Arc, time::Instant};

use super::{DriverContext, OperatorContext, QueryContext, live::TaskCounter};

impl OperatorContext {
    /// Creates a context for a local state that a unit test calls itself: that of task `task_index`
    /// of a pipeline of `num_tasks`.
    pub fn detached(
        query: &Arc<QueryContext>,
        operator: &str,
        task_index: usize,
        num_tasks: usize,
    ) -> Self {
        Self {
            query: query.clone(),
            task_index,
            num_tasks,
            metrics: Arc::default(),
            operator: operator.into(),
            reclaim_handle: None,
            graph_tasks: TaskCounter::of_graph(0),
        }
    }
}

impl DriverContext {
    /// Creates a context for a call that a unit test makes itself, at the start of a time slice.
    pub fn detached(query: &Arc<QueryContext>) -> Self {
        Self { query: query.clone(), worker: 0, since: Instant::now() }
    }
}
