//! The upper layer: pipelines of operators, the tasks that drive them, and the query that owns them.
//!
//! A pipeline is `source → operator* → sink`, immutable, shared by its tasks. A task owns a local
//! state of each. The [`driver`](self) pulls batches from the source through the operators into the
//! sink until something blocks; [`QueryContext`] holds what tasks of one query share: the first
//! error, cancellation, memory, counters.

mod batch;
mod chaos;
mod contract;
mod driver;
mod ended;
mod graph;
mod held;
mod live;
mod memory;
mod metrics;
mod query;
mod relief;
mod scope;
mod slots;
mod spill;
mod started;
mod stream;
mod wait_graph;

#[cfg(test)]
mod tests;

pub use batch::{Batch, column_bytes};
pub use chaos::{Chaos, ChaosCounts, Fault};
pub use contract::{
    FinishResult, GiveBack, LocalOperator, LocalSink, LocalSource, Operator, OperatorResult, Setup,
    Sink, SinkResult, Source, SourceResult, Start, TaskContext,
};
pub use graph::{Graph, PipelineId, Running};
pub use held::{Fetch, Held, Taken};
pub use live::{Outside, Presence};
pub use memory::{MemoryLimit, MemoryPool, MemoryRefused, Reservation, Unlimited};
pub use metrics::{DependencyProfile, OperatorMetrics, OperatorProfile, Profile, TaskProfile};
pub use query::{QueryContext, QueryOptions};
pub use scope::SliceScope;
pub use slots::Slots;
pub use spill::{Completion, Pending, SpillSpace, Spilled, ToSpill};
pub use stream::{RowIterator, RowStream};
pub use wait_graph::{Edge, WaitGraph};

pub use crate::scheduler::Gates;
