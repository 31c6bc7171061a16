//! The upper layer: pipelines of operators, the tasks that drive them, and the query that owns the
//! tasks.
//!
//! A pipeline is `source → operator* → sink`, immutable and shared by its tasks. A task owns a
//! local state of each. The [`driver`](self) pulls batches from the source through the operators
//! into the sink until a call blocks. [`QueryContext`] holds the state that the tasks of one query
//! share: the first error, cancellation, memory, counters.

mod batch;
mod buffered_batch;
mod chaos;
mod detached;
mod driver;
mod driver_state;
mod ended;
mod graph;
mod graph_end;
mod live;
mod local_states;
mod memory;
mod metrics;
mod operator;
mod per_task;
mod query;
mod query_options;
mod reclaim;
mod scope;
mod spill;
mod started;
mod stream;
mod wait_graph;

#[cfg(test)]
mod tests;

pub use batch::{Batch, column_bytes};
pub use buffered_batch::{BufferRead, BufferReader, BufferedBatch};
pub use chaos::{Chaos, ChaosCounts, Fault};
pub use graph::{Graph, GraphHandle, PipelineId};
pub use graph_end::GraphWatch;
pub use live::{ExternalWork, ExternalWorkHandle};
pub use memory::{GreedyPool, MemoryPool, Reservation, ReservationDenied, UnboundedPool};
pub use metrics::{DependencyProfile, OperatorMetrics, OperatorProfile, Profile, TaskProfile};
pub use operator::{
    DriverContext, FinishResult, LocalOperator, LocalSink, LocalSource, Operator, OperatorContext,
    OperatorResult, ReclaimResult, Sink, SinkResult, Source, SourceResult, StartResult,
};
pub use per_task::{PerTask, PerTaskWithContext, operator_from_fn, sink_from_fn, source_from_fn};
pub use query::QueryContext;
pub use query_options::QueryOptions;
pub use scope::SliceScope;
pub use spill::{Completion, PendingIo, SpillInput, SpillSpace, SpilledBatches};
pub use stream::{RowIterator, RowStream};
pub use wait_graph::{WaitEdge, WaitGraph};

pub use crate::{error::OutOfMemory, scheduler::Gates};
