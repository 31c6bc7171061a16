//! Leaves: scans, constants, foreign nodes.

use std::{borrow::Cow, sync::Arc};

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
    memory_scan::MemoryScan,
    stream_scan::{BatchStream, StreamScan},
};
use gatework_runtime::pipeline::Source;
use gatework_shared_state::splits::SplitQueue;
use tokio::runtime::Handle;

use super::{
    Lowering, flow::Flow, lineage::scan_id, nodes::limited, order::is_ordered, scalar::StartAfter,
};
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
        let ordered = ordered && is_ordered(shell.original());
        if let Some(splits) = source.downcast_ref::<QueuedTable>() {
            return self.split_scan(shell, splits, tag);
        }
        if let Some(memory) = source.downcast_ref::<MemorySourceConfig>() {
            return self.memory_scan(shell, memory, None, ordered, tag);
        }
        if let Some(table) = source.downcast_ref::<MemoryTable>() {
            return self.memory_scan(shell, table.table(), table.predicate(), ordered, tag);
        }
        match source.downcast_ref::<FileScanConfig>() {
            Some(config) => self.table_of_files(shell, config, ordered, tag),
            None => internal_err!("a scan of an unknown kind has a shell"),
        }
    }

    /// A scan of whole files. An order holds for one task that reads them in turn, if they are one group;
    /// otherwise for each group, so rows are sorted.
    fn table_of_files(
        &mut self,
        shell: &Shell,
        config: &FileScanConfig,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let config = self.bindings.bind_scan(config, scan_id(shell.original()))?;
        let in_order = config.preserve_order || !config.output_ordering.is_empty();
        if config.file_groups.len() <= 1 {
            // The first rows of an ordered scan are those of its order, whatever reads them.
            let serial = ordered || in_order && config.limit.is_some();
            let tasks = if serial { 1 } else { self.instances };
            let flow = self.file_scan(&config, tasks, None, tag)?;
            return Ok(limited(flow, config.limit, tag));
        }
        // The first rows of all groups together are not the first ones of each.
        let limit = config.limit.filter(|_| !in_order);
        let flow = self.file_scan(&config, self.instances, None, tag)?;
        let total = limit.map(|limit| limit.saturating_mul(config.file_groups.len()));
        self.in_order_if(ordered, limited(flow, total, tag), shell.original().as_ref(), tag)
    }

    /// The splits that a stage scheduler gives.
    fn split_scan(
        &mut self,
        shell: &Shell,
        splits: &QueuedTable,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let (queue, id) = (splits.queue().clone(), scan_id(shell.original()));
        if let Some(config) = splits.table().downcast_ref::<FileScanConfig>() {
            let config = self.bindings.bind_scan(config, id)?;
            return self.file_scan(&config, self.instances, Some(queue), tag);
        }
        let Some(memory) = splits.table().downcast_ref::<MemoryTable>() else {
            return internal_err!("splits of a table of an unknown kind");
        };
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = SplitScan::new(queue, memory.table().projection().clone(), rows);
        let bind = |predicate| self.bindings.bind_memory(&predicate, id);
        let predicate = memory.predicate().map(bind).transpose()?;
        self.filtered_scan(Arc::new(scan), self.instances, predicate, tag)
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
        shell: &Shell,
        memory: &MemorySourceConfig,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let (partitions, fetch) = (memory.partitions().len(), memory.fetch());
        let in_order = !memory.sort_information().is_empty();
        let batches = memory.partitions().iter().flatten().cloned();
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = MemoryScan::new(batches, memory.projection().clone(), rows);
        let serial = partitions <= 1 && (ordered || in_order && fetch.is_some());
        let instances = if serial { 1 } else { scan.morsels().clamp(1, self.instances) };
        // A limit is one on the rows before any filter.
        let predicate = predicate.filter(|_| fetch.is_none());
        let scan_id = scan_id(shell.original());
        let bind = |predicate| self.bindings.bind_memory(&predicate, scan_id);
        let predicate = predicate.map(bind).transpose()?;
        let flow = self.filtered_scan(Arc::new(scan), instances, predicate, tag)?;
        if partitions <= 1 {
            return Ok(limited(flow, fetch, tag));
        }
        let total = fetch.filter(|_| !in_order).map(|fetch| fetch.saturating_mul(partitions));
        self.in_order_if(ordered, limited(flow, total, tag), shell.original().as_ref(), tag)
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
        let config = &within_groups(config);
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
        let context = self.context.inner(&self.bindings);
        let partitions = plan.output_partitioning().partition_count();
        let streams = (0..partitions)
            .map(|partition| {
                let start = Deferred::new(plan.clone(), partition, context.clone());
                Box::pin(Entered { io: io.clone(), stream: start }) as BatchStream
            })
            .collect();
        let keeps_order = ordered && is_ordered(plan);
        let instances = if keeps_order { 1 } else { partitions.clamp(1, self.instances) };
        // All are open at once, as in DataFusion: partitions of a shuffle or a tee need each other's progress.
        let source = StreamScan::new(format!("fallback {}", plan.name()), streams, partitions);
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

/// `config` without a limit that holds for each of several ordered groups: tasks read all of them.
fn within_groups(config: &FileScanConfig) -> Cow<'_, FileScanConfig> {
    let in_order = config.preserve_order || !config.output_ordering.is_empty();
    if config.file_groups.len() <= 1 || config.limit.is_none() || !in_order {
        return Cow::Borrowed(config);
    }
    let mut config = config.clone();
    config.limit = None;
    Cow::Owned(config)
}
