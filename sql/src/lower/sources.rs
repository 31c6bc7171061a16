//! Lowering of sources: scans, constants and fallback nodes.

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
    Lowering, lineage::scan_id, operators::limited, order::is_ordered,
    pipeline_builder::PipelineBuilder, scalar::StartAfter,
};
use crate::{
    plan::{SourceExec, exec::GateworkExec},
    scan::{
        FileScan, FilteredMemorySource, FilteredScan, ScanFilter, ScanThreshold, SplitScan,
        Thresholds,
    },
    splits::{Split, SplitQueueSource, SplitTableExec},
};

/// Maximum number of rows of a morsel of a table in memory.
const MEMORY_MORSEL_ROWS: usize = 8192;

impl Lowering {
    pub(super) fn scan(
        &mut self,
        exec: &GateworkExec,
        scan: &DataSourceExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let source = scan.data_source();
        let ordered = ordered && is_ordered(exec.inner());
        if let Some(splits) = source.downcast_ref::<SplitQueueSource>() {
            return self.split_scan(exec, splits, tag);
        }
        if let Some(memory) = source.downcast_ref::<MemorySourceConfig>() {
            return self.memory_scan(exec, memory, None, ordered, tag);
        }
        if let Some(table) = source.downcast_ref::<FilteredMemorySource>() {
            return self.memory_scan(exec, table.table(), table.predicate(), ordered, tag);
        }
        match source.downcast_ref::<FileScanConfig>() {
            Some(config) => self.table_of_files(exec, config, ordered, tag),
            None => internal_err!("a supported scan has an unknown source type"),
        }
    }

    /// Lowers a scan of whole files. If the files are one group, one task that reads them in
    /// sequence preserves their order. Otherwise the order holds within each group only, so the
    /// rows are sorted.
    fn table_of_files(
        &mut self,
        exec: &GateworkExec,
        config: &FileScanConfig,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let config = self.bindings.bind_scan(config, scan_id(exec.inner()))?;
        let in_order = config.preserve_order || !config.output_ordering.is_empty();
        if config.file_groups.len() <= 1 {
            // The limit of an ordered scan takes the first rows of its order, even if the plan
            // needs no order.
            let serial = ordered || in_order && config.limit.is_some();
            let num_tasks = if serial { 1 } else { self.max_tasks };
            let pipeline = self.file_scan(&config, (num_tasks, serial), None, tag)?;
            return Ok(limited(pipeline, config.limit, tag));
        }
        // The first rows of all groups are not the first rows of each group.
        let limit = config.limit.filter(|_| !in_order);
        let pipeline = self.file_scan(&config, (self.max_tasks, false), None, tag)?;
        let total = limit.map(|limit| limit.saturating_mul(config.file_groups.len()));
        self.sort_if(ordered, limited(pipeline, total, tag), exec.inner().as_ref(), tag)
    }

    /// Lowers a scan of the splits that a stage scheduler assigns.
    fn split_scan(
        &mut self,
        exec: &GateworkExec,
        splits: &SplitQueueSource,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let (queue, id) = (splits.queue().clone(), scan_id(exec.inner()));
        if let Some(config) = splits.table().downcast_ref::<FileScanConfig>() {
            let config = self.bindings.bind_scan(config, id)?;
            return self.file_scan(&config, (self.max_tasks, false), Some(queue), tag);
        }
        let Some(memory) = splits.table().downcast_ref::<FilteredMemorySource>() else {
            return internal_err!("a split scan has an unknown table type");
        };
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = SplitScan::new(queue, memory.table().projection().clone(), rows);
        let bind = |predicate| self.bindings.bind_memory(&predicate, id);
        let predicate = memory.predicate().map(bind).transpose()?;
        self.filtered_scan(Arc::new(scan), self.max_tasks, predicate, tag)
    }

    /// Lowers a scan of rows in memory, some of which `predicate` may drop.
    fn filtered_scan(
        &mut self,
        scan: Arc<dyn Source>,
        num_tasks: usize,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let filters = match predicate {
            Some(predicate) => self.scan_filters(Some(predicate), None)?,
            None => Vec::new(),
        };
        if filters.is_empty() {
            return Ok(self.source("memory", num_tasks, scan, tag));
        }
        let after = self.start_after.clone();
        let scan = FilteredScan::new(scan, filters.clone(), after);
        Ok(filtered(PipelineBuilder::new("memory", num_tasks, Arc::new(scan), tag), filters))
    }

    fn memory_scan(
        &mut self,
        exec: &GateworkExec,
        memory: &MemorySourceConfig,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let (partitions, fetch) = (memory.partitions().len(), memory.fetch());
        let in_order = !memory.sort_information().is_empty();
        let batches = memory.partitions().iter().flatten().cloned();
        let rows = MEMORY_MORSEL_ROWS.min(self.batch_rows);
        let scan = MemoryScan::new(batches, memory.projection().clone(), rows);
        let serial = partitions <= 1 && (ordered || in_order && fetch.is_some());
        let num_tasks = if serial { 1 } else { scan.num_morsels().clamp(1, self.max_tasks) };
        // The limit counts rows before any filter.
        let predicate = predicate.filter(|_| fetch.is_none());
        let scan_id = scan_id(exec.inner());
        let bind = |predicate| self.bindings.bind_memory(&predicate, scan_id);
        let predicate = predicate.map(bind).transpose()?;
        let pipeline = self.filtered_scan(Arc::new(scan), num_tasks, predicate, tag)?;
        if partitions <= 1 {
            return Ok(limited(pipeline, fetch, tag));
        }
        let total = fetch.filter(|_| !in_order).map(|fetch| fetch.saturating_mul(partitions));
        self.sort_if(ordered, limited(pipeline, total, tag), exec.inner().as_ref(), tag)
    }

    /// Returns the runtime filters of `predicate` that joins of this region or of other stages
    /// produce.
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

    /// Adds a scan of files with `num_tasks` tasks; if it is `serial`, it keeps the order of rows.
    fn file_scan(
        &mut self,
        config: &FileScanConfig,
        (num_tasks, serial): (usize, bool),
        splits: Option<SplitQueue<Split>>,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        // The limit counts rows before any filter.
        let filter = config.file_source.filter().filter(|_| config.limit.is_none());
        let config = &within_groups(config);
        let options_of = |id| self.thresholds.get(&id).copied();
        let thresholds = ScanThreshold::find(filter.as_ref(), options_of);
        let filters = self.scan_filters(filter, config.file_source.projection())?;
        let context = self.context.task_context().clone();
        let after = self.start_after.clone();
        let scan = FileScan::new(
            config,
            &context,
            &self.engine,
            filters.clone(),
            Thresholds { all: &thresholds, order_groups: !serial },
            after,
            splits,
        )?;
        let name = config
            .file_groups
            .iter()
            .flat_map(|group| group.files())
            .next()
            .and_then(|file| file.object_meta.location.filename().map(str::to_owned))
            .unwrap_or_else(|| "files".into());
        Ok(filtered(PipelineBuilder::new(name, num_tasks, Arc::new(scan), tag), filters))
    }

    /// Creates a pipeline from `source`, which starts when the scalar subqueries above it have
    /// values.
    pub(super) fn source(
        &self,
        name: &str,
        num_tasks: usize,
        source: Arc<dyn Source>,
        tag: Option<usize>,
    ) -> PipelineBuilder {
        let source = if self.start_after.is_empty() {
            source
        } else {
            Arc::new(StartAfter::new(source, self.start_after.clone()))
        };
        PipelineBuilder::new(name, num_tasks, source, tag)
    }

    /// Lowers a source that the plan's creator supplied.
    pub(super) fn source_exec(&mut self, node: &SourceExec, tag: Option<usize>) -> PipelineBuilder {
        let num_tasks =
            if node.properties().output_ordering().is_some() { 1 } else { self.max_tasks };
        self.source(node.source().name(), num_tasks, node.source().clone(), tag)
    }

    /// Lowers a user-defined table of splits.
    pub(super) fn split_table(
        &mut self,
        node: &SplitTableExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let scan = node.source(self.context.task_context(), self.engine.io()?)?;
        Ok(self.source("split table", self.max_tasks, Arc::new(scan), tag))
    }

    /// Lowers a node without input: no row, or one row without a value per partition.
    pub(super) fn constant(
        &mut self,
        node: &dyn ExecutionPlan,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let mut batches = Vec::new();
        if node.is::<PlaceholderRowExec>() {
            for _ in 0..node.output_partitioning().partition_count() {
                let null = || Arc::new(NullArray::new(1)) as ArrayRef;
                let columns = node.schema().fields().iter().map(|_| null()).collect();
                let options = RecordBatchOptions::new().with_row_count(Some(1));
                let fields = node.schema().fields().len();
                let names = (0..fields).map(|index| {
                    let data_type = arrow::datatypes::DataType::Null;
                    arrow::datatypes::Field::new(format!("placeholder_{index}"), data_type, true)
                });
                let schema = Arc::new(arrow::datatypes::Schema::new(names.collect::<Vec<_>>()));
                batches.push(RecordBatch::try_new_with_options(schema, columns, &options)?);
            }
        }
        let scan = MemoryScan::new(batches, None, 1);
        Ok(self.source("constant", 1, Arc::new(scan), tag))
    }

    /// Lowers a fallback node: DataFusion executes it, and its streams are the pipeline's source.
    pub(super) fn fallback(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        ordered: bool,
    ) -> Result<PipelineBuilder> {
        self.fallbacks.push(plan.name().to_owned());
        let io = self.engine.io()?;
        let context = self.context.fallback_task_context(&self.bindings);
        let partitions = plan.output_partitioning().partition_count();
        let streams = (0..partitions)
            .map(|partition| {
                let start = LazyStream::new(plan.clone(), partition, context.clone());
                Box::pin(InIoRuntime { io: io.clone(), stream: start }) as BatchStream
            })
            .collect();
        let keeps_order = ordered && is_ordered(plan);
        let num_tasks = if keeps_order { 1 } else { partitions.clamp(1, self.max_tasks) };
        // All streams are open at once, as in DataFusion: partitions of a shuffle or a tee depend
        // on each other's progress.
        let source = StreamScan::new(format!("fallback {}", plan.name()), streams, partitions);
        let pipeline = self.source(plan.name(), num_tasks, Arc::new(source), None);
        if keeps_order && partitions > 1 {
            return self.sort_if(true, pipeline, plan.as_ref(), None);
        }
        Ok(pipeline)
    }
}

/// A fallback node's stream, executed when it is first polled. At that time the scalar subqueries
/// above it have values, and a task consumes its rows.
enum LazyStream {
    NotStarted(Arc<dyn ExecutionPlan>, usize, Arc<TaskContext>),
    Running(SendableRecordBatchStream),
    Failed,
}

impl LazyStream {
    fn new(plan: Arc<dyn ExecutionPlan>, partition: usize, context: Arc<TaskContext>) -> Self {
        Self::NotStarted(plan, partition, context)
    }

    fn poll(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<RecordBatch>>> {
        if let Self::NotStarted(plan, partition, task_context) = self {
            match plan.execute(*partition, task_context.clone()) {
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

/// A stream that is polled inside the I/O runtime, on any thread.
struct InIoRuntime {
    io: Handle,
    stream: LazyStream,
}

impl Stream for InIoRuntime {
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

impl Drop for InIoRuntime {
    fn drop(&mut self) {
        // Dropped streams abort the tasks that they spawned, which needs the runtime as well.
        let io = self.io.clone();
        let _entered = io.enter();
        self.stream = LazyStream::Failed;
    }
}

/// Adds the waits of the pipeline's scan for `filters`.
fn filtered(mut pipeline: PipelineBuilder, filters: Vec<Arc<ScanFilter>>) -> PipelineBuilder {
    pipeline.filter_waits.extend(filters.into_iter().map(|filter| (filter.id, filter)));
    pipeline
}

/// Returns `config` without its limit if that applies to each of several ordered groups: each task
/// reads from all groups.
fn within_groups(config: &FileScanConfig) -> Cow<'_, FileScanConfig> {
    let in_order = config.preserve_order || !config.output_ordering.is_empty();
    if config.file_groups.len() <= 1 || config.limit.is_none() || !in_order {
        return Cow::Borrowed(config);
    }
    let mut config = config.clone();
    config.limit = None;
    Cow::Owned(config)
}
