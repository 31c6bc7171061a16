//! The configuration of a query.

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::{Chaos, MemoryPool, SliceScope, SpillSpace, UnboundedPool};
use crate::scheduler::ResourceGroup;

/// The configuration of a query.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// The query's name in traces and dumps.
    pub name: Cow<'static, str>,
    /// The pool in which breakers reserve memory. Default: unbounded. If the query can spill, each
    /// task of each breaker may exceed the pool by [`SpillSpace::min_spill_bytes`] (256 KiB).
    pub memory: Arc<dyn MemoryPool>,
    /// Where breakers spill. Default: none; a query whose reservation is denied then fails.
    pub spill: Option<Arc<dyn SpillSpace>>,
    /// How long a task runs before it yields, checked between two batches. Default: 10 ms; 0 yields
    /// after every step.
    pub time_slice: Duration,
    /// The resource group whose limits apply. Default: the group of queries without a group.
    pub group: Option<Arc<ResourceGroup>>,
    /// Starts the tasks without admission. Set for queries that work for an admitted query.
    /// They share the group's time and do not count against its limits. (A queued one could wait
    /// for queries that wait for its rows.)
    pub bypass_admission: bool,
    /// The scope around each time slice of the query's tasks, on the worker. Default: none.
    pub slice_scope: Option<Arc<dyn SliceScope>>,
    /// Faults and delays that a test injects into the query's tasks. Default: none.
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
