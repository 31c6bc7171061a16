//! Tables of DataFusion leaf nodes, with streams that a test creates.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::tree_node::TreeNodeRecursion,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::stream;
use gatework::Executor;

use super::Case;

/// A DataFusion leaf node with `count` partitions, each created by a function.
pub(crate) struct Leaf {
    properties: Arc<PlanProperties>,
    make: Arc<dyn Fn(usize) -> SendableRecordBatchStream + Send + Sync>,
}

impl Leaf {
    pub(crate) fn new(
        count: usize,
        make: impl Fn(usize) -> SendableRecordBatchStream + Send + Sync + 'static,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(count),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { properties: Arc::new(properties), make: Arc::new(make) }
    }
}

/// One column of numbers.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]))
}

/// A batch of this schema.
pub(crate) fn numbers(values: Vec<i64>) -> RecordBatch {
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(values))]).unwrap()
}

/// A stream of these batches.
pub(crate) fn stream_of(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let batches = stream::iter(batches.into_iter().map(Ok));
    Box::pin(RecordBatchStreamAdapter::new(schema(), batches))
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl DisplayAs for Leaf {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl ExecutionPlan for Leaf {
    fn name(&self) -> &str {
        "Leaf"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Ok((self.make)(partition))
    }
}

/// A table of one leaf, created for the session's number of partitions, which it records.
#[derive(Debug)]
pub(crate) struct Table<F> {
    leaf: F,
    pub(crate) partitions: AtomicUsize,
}

#[async_trait]
impl<F> TableProvider for Table<F>
where
    F: Fn(usize) -> Leaf + fmt::Debug + Send + Sync + 'static,
{
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = session.config().target_partitions();
        self.partitions.store(partitions, Ordering::Relaxed);
        Ok(Arc::new((self.leaf)(partitions)))
    }
}

/// A table of a [`Leaf`].
pub(crate) type LeafTable = Table<fn(usize) -> Leaf>;

/// Registers a [`LeafTable`].
pub(crate) fn register(
    session: &SessionContext,
    name: &str,
    leaf: fn(usize) -> Leaf,
) -> Arc<LeafTable> {
    let table = Arc::new(Table { leaf, partitions: AtomicUsize::new(0) });
    session.register_table(name, table.clone()).unwrap();
    table
}

/// A session that plans for `partitions` partitions.
pub(crate) fn session(executor: &Executor, partitions: usize) -> SessionContext {
    gatework::session_with(executor, SessionConfig::new().with_target_partitions(partitions))
}

/// The number that a query returns.
pub(crate) async fn number(case: &Case, session: &SessionContext, sql: &str) -> i64 {
    case.begin(sql);
    let rows = session.sql(sql).await.unwrap().collect().await.unwrap();
    rows[0].column(0).as_primitive::<Int64Type>().value(0)
}
