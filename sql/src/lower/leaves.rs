//! Leaves: scans, constants, foreign nodes.

use std::sync::Arc;

use arrow::array::{ArrayRef, NullArray, RecordBatch, RecordBatchOptions};
use datafusion::{
    common::internal_err,
    datasource::{
        memory::MemorySourceConfig,
        physical_plan::FileScanConfig,
        source::{DataSource, DataSourceExec},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{PhysicalExpr, projection::ProjectionExprs},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, placeholder_row::PlaceholderRowExec},
};
use futures::Stream;
use gatework_operators::{
    limit::Limit,
    memory_scan::MemoryScan,
    stream_scan::{BatchStream, StreamScan},
};
use gatework_runtime::pipeline::Source;
use gatework_shared_state::splits::SplitQueue;
use tokio::runtime::Handle;

use super::{Lowering, flow::Flow, scalar::StartAfter};
use crate::{
    scan::{FileScan, FilteredScan, MemoryTable, ScanFilter, SplitScan},
    shell::Shell,
    source::SourceExec,
    splits::{QueuedTable, Split, SplitTableExec},
};

/// Rows of a table in memory that a task takes at a time.
const MEMORY_MORSEL_ROWS: usize = 8192;

impl Lowering {
    pub(super) fn scan(
        &mut self,
        shell: &Shell,
        scan: &DataSourceExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let source = scan.data_source();
        let files = source.downcast_ref::<FileScanConfig>();
        // The first rows of an ordered scan are those of its order, whoever reads them, and also if the
        // columns that order them are not wanted.
        let first_rows = files.is_some_and(|config| {
            let in_order = config.preserve_order || !config.output_ordering.is_empty();
            config.limit.is_some() && in_order
        });
        // A promised order holds for one reader that takes everything in turn.
        let promised = shell.original().output_ordering().is_some();
        let keeps_order = first_rows || ordered && promised;
        if let Some(splits) = source.downcast_ref::<QueuedTable>() {
            return self.split_scan(splits, tag);
        }
        if let Some(memory) = source.downcast_ref::<MemorySourceConfig>() {
            return self.memory_scan(memory, None, keeps_order, tag);
        }
        if let Some(table) = source.downcast_ref::<MemoryTable>() {
            return self.memory_scan(table.table(), table.predicate(), keeps_order, tag);
        }
        let Some(config) = files else {
            return internal_err!("a scan of an unknown kind has a shell");
        };
        if keeps_order && promised && config.file_groups.len() > 1 {
            let flow = self.file_scan(config, self.instances, None, tag)?;
            let flow = self.in_order_if(true, flow, shell.original().as_ref(), tag)?;
            return Ok(limit(flow, config, tag));
        }
        let instances = if keeps_order { 1 } else { self.instances };
        Ok(limit(self.file_scan(config, instances, None, tag)?, config, tag))
    }

    /// The splits that a stage scheduler gives.
    fn split_scan(&mut self, splits: &QueuedTable, tag: Option<usize>) -> Result<Flow> {
        let queue = splits.queue().clone();
        if let Some(config) = splits.table().downcast_ref::<FileScanConfig>() {
            return self.file_scan(config, self.instances, Some(queue), tag);
        }
        let Some(memory) = splits.table().downcast_ref::<MemoryTable>() else {
            return internal_err!("splits of a table of an unknown kind");
        };
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = SplitScan::new(queue, memory.table().projection().clone(), rows);
        self.filtered_scan(Arc::new(scan), self.instances, memory.predicate(), tag)
    }

    /// A scan of rows in memory that may be dropped by `predicate`.
    fn filtered_scan(
        &mut self,
        scan: Arc<dyn Source>,
        instances: usize,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let filters = match predicate {
            Some(predicate) => self.scan_filters(Some(predicate), None)?,
            None => Vec::new(),
        };
        if filters.is_empty() {
            return Ok(self.leaf("memory", instances, scan, tag));
        }
        let after = self.start_after.clone();
        let scan = FilteredScan::new(scan, filters.clone(), after);
        Ok(filtered(Flow::new("memory", instances, Arc::new(scan), tag), filters))
    }

    fn memory_scan(
        &mut self,
        memory: &MemorySourceConfig,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        keeps_order: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let batches = memory.partitions().iter().flatten().cloned();
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = MemoryScan::new(batches, memory.projection().clone(), rows);
        let instances = if keeps_order { 1 } else { scan.morsels().clamp(1, self.instances) };
        // A limit is one on the rows before any filter.
        let predicate = predicate.filter(|_| memory.fetch().is_none());
        let flow = self.filtered_scan(Arc::new(scan), instances, predicate, tag)?;
        Ok(match memory.fetch() {
            Some(fetch) => flow.then(Limit::new(0, Some(fetch)), tag),
            None => flow,
        })
    }

    /// The runtime filters of `predicate` that come from joins of this region.
    fn scan_filters(
        &self,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        projection: Option<&ProjectionExprs>,
    ) -> Result<Vec<Arc<ScanFilter>>> {
        ScanFilter::find(predicate, projection, |id| {
            let own = self.filters.get(&id).map(|link| link.gate.clone());
            own.or_else(|| self.remote_filter(id).map(|filter| filter.gate().clone()))
        })
    }

    fn file_scan(
        &mut self,
        config: &FileScanConfig,
        instances: usize,
        splits: Option<SplitQueue<Split>>,
        tag: Option<usize>,
    ) -> Result<Flow> {
        // A limit is one on the rows before any filter.
        let filter = config.file_source.filter().filter(|_| config.limit.is_none());
        let filters = self.scan_filters(filter, config.file_source.projection())?;
        let context = self.context.outer().clone();
        let after = self.start_after.clone();
        let scan = FileScan::new(config, &context, &self.engine, filters.clone(), after, splits)?;
        let name = config
            .file_groups
            .iter()
            .flat_map(|group| group.files())
            .next()
            .and_then(|file| file.object_meta.location.filename().map(str::to_owned))
            .unwrap_or_else(|| "files".into());
        Ok(filtered(Flow::new(name, instances, Arc::new(scan), tag), filters))
    }

    /// A leaf that starts when the scalar subqueries around it are known.
    fn leaf(
        &self,
        name: &str,
        instances: usize,
        source: Arc<dyn Source>,
        tag: Option<usize>,
    ) -> Flow {
        let source = if self.start_after.is_empty() {
            source
        } else {
            Arc::new(StartAfter::new(source, self.start_after.clone()))
        };
        Flow::new(name, instances, source, tag)
    }

    /// A source of somebody else's.
    pub(super) fn source(&mut self, node: &SourceExec, tag: Option<usize>) -> Flow {
        let tasks = if node.properties().output_ordering().is_some() { 1 } else { self.instances };
        self.leaf(node.source().name(), tasks, node.source().clone(), tag)
    }

    /// A table of a user's own.
    pub(super) fn split_table(
        &mut self,
        node: &SplitTableExec,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let scan = node.source(self.context.outer(), self.engine.io()?)?;
        Ok(self.leaf("split table", self.instances, Arc::new(scan), tag))
    }

    /// A node without input: no row, or one row without a value.
    pub(super) fn constant(
        &mut self,
        node: &dyn ExecutionPlan,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let mut batches = Vec::new();
        if node.is::<PlaceholderRowExec>() {
            for _ in 0..node.output_partitioning().partition_count() {
                let null = || Arc::new(NullArray::new(1)) as ArrayRef;
                let columns = node.schema().fields().iter().map(|_| null()).collect();
                let options = RecordBatchOptions::new().with_row_count(Some(1));
                let fields = node.schema().fields().len();
                let names = (0..fields).map(|place| {
                    let kind = arrow::datatypes::DataType::Null;
                    arrow::datatypes::Field::new(format!("placeholder_{place}"), kind, true)
                });
                let schema = Arc::new(arrow::datatypes::Schema::new(names.collect::<Vec<_>>()));
                batches.push(RecordBatch::try_new_with_options(schema, columns, &options)?);
            }
        }
        let scan = MemoryScan::new(batches, None, 1);
        Ok(self.leaf("constant", 1, Arc::new(scan), tag))
    }

    /// A foreign node: DataFusion executes it, and its streams are our source.
    pub(super) fn foreign(&mut self, plan: &Arc<dyn ExecutionPlan>, ordered: bool) -> Result<Flow> {
        self.fallbacks.push(plan.name().to_owned());
        let io = self.engine.io()?;
        let partitions = plan.output_partitioning().partition_count();
        let streams = (0..partitions)
            .map(|partition| {
                let start = Deferred::new(plan.clone(), partition, self.context.inner());
                Box::pin(Entered { io: io.clone(), stream: start }) as BatchStream
            })
            .collect();
        let keeps_order = ordered && plan.output_ordering().is_some();
        let instances = if keeps_order { 1 } else { partitions.clamp(1, self.instances) };
        // What comes from elsewhere is waited for; what is computed here takes memory.
        let from_elsewhere = plan.children().is_empty();
        let most = if from_elsewhere { partitions } else { instances };
        let source = StreamScan::new(format!("fallback {}", plan.name()), streams, most);
        let flow = self.leaf(plan.name(), instances, Arc::new(source), None);
        if keeps_order && partitions > 1 {
            return self.in_order_if(true, flow, plan.as_ref(), None);
        }
        Ok(flow)
    }
}

/// A foreign node's stream, executed when it is first polled: then the scalar subqueries around it
/// are known, and a task is there to take its rows.
enum Deferred {
    Waiting(Arc<dyn ExecutionPlan>, usize, Arc<TaskContext>),
    Running(SendableRecordBatchStream),
    Failed,
}

impl Deferred {
    fn new(plan: Arc<dyn ExecutionPlan>, partition: usize, context: Arc<TaskContext>) -> Self {
        Self::Waiting(plan, partition, context)
    }

    fn poll(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<RecordBatch>>> {
        if let Self::Waiting(plan, partition, task) = self {
            match plan.execute(*partition, task.clone()) {
                Ok(stream) => *self = Self::Running(stream),
                Err(error) => {
                    *self = Self::Failed;
                    return std::task::Poll::Ready(Some(Err(error)));
                }
            }
        }
        match self {
            Self::Running(stream) => stream.as_mut().poll_next(context),
            _ => std::task::Poll::Ready(None),
        }
    }
}

/// A stream that finds the I/O runtime on whatever thread it is polled.
struct Entered {
    io: Handle,
    stream: Deferred,
}

impl Stream for Entered {
    type Item = Result<RecordBatch>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let io = self.io.clone();
        let _entered = io.enter();
        self.stream.poll(context)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Streams abort tasks they spawned when they are dropped, which needs the runtime as well.
        let io = self.io.clone();
        let _entered = io.enter();
        self.stream = Deferred::Failed;
    }
}

/// `flow`, whose scan waits for `filters`.
fn filtered(mut flow: Flow, filters: Vec<Arc<ScanFilter>>) -> Flow {
    flow.filter_waits.extend(filters.into_iter().map(|filter| (filter.id, filter)));
    flow
}

/// `flow`, of the rows of the scan that `config` describes, with its limit.
fn limit(flow: Flow, config: &FileScanConfig, tag: Option<usize>) -> Flow {
    match config.limit {
        Some(limit) => flow.then(Limit::new(0, Some(limit)), tag),
        None => flow,
    }
}
