//! Shared by the integration tests: TPC-H data and queries, sessions, the comparison with plain
//! DataFusion, and a guard against hangs.
//!
//! Locks: one around the data while it is generated, so that it is generated once.

#![allow(dead_code, unused_imports, reason = "no test binary uses all of it")]
#![allow(clippy::unwrap_used, reason = "tests may")]

mod guard;
pub(crate) mod leaf;
pub(crate) mod shapes;
pub(crate) mod tpch;

pub(crate) use guard::{Case, guarded};
pub(crate) use tpch::{QUERIES, Storage, Tpch};

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::{
    dataframe::DataFrame,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::{SessionConfig, SessionContext},
    sql::parser::DFParser,
};
use futures::TryStreamExt;
use gatework::{
    Executor,
    verify::{Comparison, ResultOrder, without_limit},
};

/// An executor of its own.
pub(crate) fn executor(threads: usize) -> Executor {
    Executor::builder().threads(threads).build().unwrap()
}

/// A plain DataFusion session.
pub(crate) fn reference_session() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2))
}

/// Waits until no task is live on `executor`. The query ends by itself; this only gives its last
/// task the time to leave its worker.
pub(crate) fn settle(executor: &Executor) {
    while executor.live_tasks() > 0 {
        std::thread::yield_now();
    }
}

/// Plans the statement of `sql` that returns rows, and executes the statements before it.
/// Statements after it only clean up, and are skipped.
pub(crate) async fn frame(session: &SessionContext, sql: &str) -> Result<(LogicalPlan, DataFrame)> {
    for statement in DFParser::parse_sql(sql)? {
        let logical = session.state().statement_to_plan(statement).await?;
        let frame = session.execute_logical_plan(logical.clone()).await?;
        if !frame.schema().fields().is_empty() {
            return Ok((logical, frame));
        }
    }
    datafusion::common::exec_err!("no statement of these returns rows: {sql}")
}

/// A query that can be executed.
pub(crate) struct Planned {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) context: Arc<TaskContext>,
}

/// Plans a query, and reports it to the guard.
pub(crate) async fn plan(case: &Case, session: &SessionContext, sql: &str) -> Result<Planned> {
    let (_, frame) = frame(session, sql).await?;
    let context = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    case.watch(&plan);
    Ok(Planned { plan, context })
}

impl Planned {
    pub(crate) fn stream(&self) -> Result<SendableRecordBatchStream> {
        execute_stream(self.plan.clone(), self.context.clone())
    }

    pub(crate) async fn collect(&self) -> Result<Vec<RecordBatch>> {
        self.stream()?.try_collect().await
    }

    /// The number of streams of the plan.
    pub(crate) fn partitions(&self) -> usize {
        self.plan.properties().partitioning.partition_count()
    }

    pub(crate) async fn collect_partition(&self, partition: usize) -> Result<Vec<RecordBatch>> {
        self.plan.execute(partition, self.context.clone())?.try_collect().await
    }
}

/// The expected result of a query.
#[derive(Debug)]
pub(crate) struct Expected {
    order: ResultOrder,
    pub(crate) batches: Vec<RecordBatch>,
    /// The result without the query's limit, if it has one.
    unlimited: Option<Vec<RecordBatch>>,
}

impl Expected {
    /// The result of `session`, a reference.
    pub(crate) async fn of(session: &SessionContext, sql: &str) -> Result<Self> {
        let (logical, frame) = frame(session, sql).await?;
        let unlimited = match without_limit(&logical) {
            Some(plan) => Some(DataFrame::new(session.state(), plan).collect().await?),
            None => None,
        };
        Ok(Self { order: ResultOrder::of(&logical), batches: frame.collect().await?, unlimited })
    }

    pub(crate) fn rows(&self) -> usize {
        rows(&self.batches)
    }

    /// Panics with the difference, if there is one.
    pub(crate) fn check(&self, what: &str, actual: &[RecordBatch]) {
        let mut comparison = Comparison::new(&self.order);
        if let Some(unlimited) = &self.unlimited {
            comparison = comparison.unlimited(unlimited);
        }
        if let Err(difference) = comparison.check(actual, &self.batches) {
            panic!("{what}: {difference}");
        }
    }
}

pub(crate) fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}
