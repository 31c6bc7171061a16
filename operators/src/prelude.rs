//! What authors of operators need, in one module. Its names clash with none of
//! `datafusion::prelude`; [`PipelineResult`] and [`PipelineOperator`] have names of their own
//! beside DataFusion's `Result` and `Operator`.
//!
//! Everything in this module is stable: later versions add to it, and change nothing that is here
//! without a new major version.
//!
//! **Local states**, one per task, that do the work:
//!
//! * [`LocalSource`], [`SourceResult`]: produces batches; the answer of a call
//! * [`LocalOperator`], [`OperatorResult`]: turns batches into batches; the answer of a call
//! * [`LocalSink`], [`SinkResult`], [`FinishResult`], [`ReclaimResult`]: takes batches; the answers
//! * [`StartResult`]: the answer of `start`, of all three
//! * [`OperatorContext`]: what a local state is created with: task, memory, spilling, counters
//! * [`DriverContext`]: what each call gets: time slice, cancellation
//! * [`Batch`]: rows, their selection and their sequence number
//! * [`PipelineResult`], [`PipelineError`], [`ResultExt`]: the result of calls; DataFusion's and
//!   Arrow's errors as such (`query_err`)
//! * [`apply_selection`]: the selected rows of a batch, as a `RecordBatch`
//!
//! **Sources, operators and sinks**, the immutable parts that hand each task its local state:
//!
//! * [`source_from_fn`], [`operator_from_fn`], [`sink_from_fn`]: made from a function
//! * [`PerTask`]: made from one value per task, such as the tokens of a shared state
//! * [`breaker_sink`], [`BreakerState`], [`SpillStart`]: the sink of a breaker: memory, spilling,
//!   early end
//! * [`SpillWriter`], [`WriteState`], [`SpillReader`], [`ReadState`], [`SpilledBatches`]: rows on
//!   disk
//! * [`Reservation`], [`OutOfMemory`]: memory of the query's pool; a denial
//! * [`Source`], [`PipelineOperator`], [`Sink`]: the traits of the immutable parts
//!
//! **Shared states**, through which tasks exchange data:
//!
//! * [`StateLock`], [`StateGuard`]: a lock whose guard makes gates ready and wakes after it
//! * [`tokens`], [`Producer`], [`Consumer`], [`SharedState`], [`ProducerEnd`]: counted rights to
//!   produce and consume, which know "finished" from "dropped"
//! * [`breaker`](mod@breaker), [`BreakerProducer`], [`BreakerConsumer`], [`ClaimResult`]: a state
//!   that is complete before it is read
//! * [`OneToOne`], [`OneToMany`], [`ManyToOne`], [`ManyToMany`]: the gates of both sides
//! * [`Gate`], [`Dependency`], [`DependencyKind`]: what tasks wait at
//!
//! **Graphs**:
//!
//! * [`Graph`], [`GraphHandle`], [`WaitEdge`]: pipelines, before and after their start
//! * [`QueryContext`], [`QueryOptions`]: the query that they belong to
//! * [`RowStream`]: the rows of a result
//!
//! **Tests**:
//!
//! * [`Harness`], [`Mode`], [`Case`]: runs an operator in every mode and checks its rows
//! * [`numbers`], [`numbers_with_nulls`], [`skewed_numbers`], [`huge_texts`]: inputs
//! * [`contexts`]: the contexts of a local state that a unit test calls itself
//!
//! ```
//! use gatework_operators::prelude::*;
//! struct Pass;
//! impl LocalOperator for Pass {
//!     fn execute(
//!         &mut self,
//!         input: Option<Batch>,
//!         _: &DriverContext,
//!     ) -> PipelineResult<OperatorResult> {
//!         Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
//!     }
//! }
//! Harness::operator(|_case| operator_from_fn("pass", |_context| Ok(Pass)))
//!     .input(numbers(0..40, 8))
//!     .expect_model(|inputs| inputs[0].clone())
//!     .check(Mode::without_memory());
//! ```

pub use gatework_runtime::{
    Error as PipelineError, Result as PipelineResult,
    pipeline::{
        Batch, DriverContext, FinishResult, Graph, GraphHandle, LocalOperator, LocalSink,
        LocalSource, Operator as PipelineOperator, OperatorContext, OperatorResult, OutOfMemory,
        PerTask, QueryContext, QueryOptions, ReclaimResult, Reservation, RowStream, Sink,
        SinkResult, Source, SourceResult, SpilledBatches, StartResult, WaitEdge, operator_from_fn,
        sink_from_fn, source_from_fn,
    },
};
pub use gatework_shared_state::{
    ClaimResult, Consumer, Dependency, DependencyKind, Gate, ManyToMany, ManyToOne, OneToMany,
    OneToOne, Producer, ProducerEnd, SharedState, StateGuard, StateLock,
    breaker::{self, BreakerConsumer, BreakerProducer},
    tokens,
};

pub use crate::{
    ResultExt, apply_selection,
    harness::{
        Case, Harness, Mode, contexts, huge_texts, numbers, numbers_with_nulls, skewed_numbers,
    },
    spill::{
        BreakerState, ReadState, SpillReader, SpillStart, SpillWriter, WriteState, breaker_sink,
    },
};
