//! Tables in splits: the interface by which a stage scheduler distributes a table over tasks on
//! several nodes.
//!
//! A [`SplitSource`] divides a table lazily into [`Split`]s: row groups of Parquet files, byte
//! ranges of text, row ranges of in-memory tables. Footers are read when the splits of their file
//! are requested. A task's plan has the table [with a queue](with_split_queue) in place of the
//! files: the task reads the splits that are put into the queue.

mod table;

use std::{any::Any, collections::VecDeque, fmt, sync::Arc, task::Poll};

use arrow::array::RecordBatch;
use datafusion::{
    common::{config::ConfigOptions, internal_err, tree_node::TreeNodeRecursion},
    datasource::{
        listing::PartitionedFile,
        physical_plan::FileScanConfig,
        source::{DataSource, DataSourceExec},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{
        EquivalenceProperties, Partitioning, PhysicalExpr, projection::ProjectionExprs,
    },
    physical_plan::{
        DisplayFormatType, ExecutionPlan, Statistics, execution_plan::SchedulingType,
        filter_pushdown::FilterPushdownPropagation,
    },
};
use futures::{FutureExt, future::BoxFuture};
use gatework_operators::stream_scan::PollGate;
use gatework_runtime::Executor;
use gatework_shared_state::{Gate, splits::SplitQueue};
use tokio::runtime::Handle;

use crate::{
    run::engine::Engine,
    scan::{FileMorsel, FilteredMemorySource, morsels},
};

pub use table::{SplitTable, SplitTableExec};

/// A part of a table that one task reads.
pub struct Split {
    pub(crate) data: SplitData,
    weight: u64,
}

pub(crate) enum SplitData {
    Morsel(Box<FileMorsel>),
    Batches(Vec<RecordBatch>),
    /// A split of a [`SplitTable`].
    UserDefined(Box<dyn Any + Send>),
}

impl Split {
    /// Creates a split of in-memory rows.
    pub fn from_batches(batches: Vec<RecordBatch>) -> Self {
        let weight = batches.iter().map(|batch| batch.get_array_memory_size() as u64).sum();
        Self { data: SplitData::Batches(batches), weight }
    }

    /// Creates a split of a [`SplitTable`], whose `read` gets `split`. `weight` is the approximate
    /// number of bytes that are read.
    pub fn new(split: impl Any + Send, weight: u64) -> Self {
        Self { data: SplitData::UserDefined(Box::new(split)), weight }
    }

    /// Creates a split without rows: it makes a stage start a task that finds its table empty.
    pub fn empty() -> Self {
        Self::from_batches(Vec::new())
    }

    /// Returns the approximate number of bytes that are read for the split.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Returns the same split with another weight.
    #[must_use]
    pub fn with_weight(self, weight: u64) -> Self {
        Self { weight, ..self }
    }

    fn from_morsel(morsel: FileMorsel) -> Self {
        let weight = match &morsel.group {
            Some(group) => group.metadata().compressed_size().unsigned_abs(),
            None => match &morsel.file.range {
                Some(range) => (range.end - range.start).unsigned_abs(),
                None => morsel.file.object_meta.size,
            },
        };
        Self { data: SplitData::Morsel(Box::new(morsel)), weight }
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            SplitData::Morsel(morsel) => write!(f, "{}", morsel.file.object_meta.location)?,
            SplitData::Batches(batches) => {
                let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                write!(f, "{rows} rows")?;
            }
            SplitData::UserDefined(_) => write!(f, "split of a table")?,
        }
        write!(f, ", {} bytes", self.weight)
    }
}

/// The result of a request for more splits.
#[derive(Debug)]
pub enum Splits {
    /// Some splits, and whether they are the last.
    Batch(Vec<Split>, bool),
    /// No splits are known yet: request again when the gate is ready.
    Blocked(Gate),
}

/// A lazy source of the splits of one table.
pub trait SplitSource: Send {
    /// Returns the next splits, about `max_splits`. Not called again after the last ones.
    ///
    /// # Errors
    /// If the table cannot be divided: a file is missing or damaged.
    fn next(&mut self, max_splits: usize) -> Result<Splits>;

    /// Releases resources; called when no more splits are needed.
    fn close(&mut self) {}
}

/// Returns whether `table` is a leaf that can be read in splits.
pub fn has_splits(table: &Arc<dyn ExecutionPlan>) -> bool {
    if table.is::<SplitTableExec>() {
        return true;
    }
    let table = with_filter_support(table.clone());
    let scan = table.downcast_ref::<DataSourceExec>();
    scan.is_some_and(|scan| {
        let source = scan.data_source();
        source.is::<FileScanConfig>() || source.is::<FilteredMemorySource>()
    })
}

/// Returns the splits of `table`: a scan of files, of an in-memory table or of a [`SplitTable`].
/// Reads nothing yet.
///
/// # Errors
/// If `table` is another kind of node.
pub fn split_source(
    table: &Arc<dyn ExecutionPlan>,
    executor: &Executor,
    context: &Arc<TaskContext>,
) -> Result<Box<dyn SplitSource>> {
    if let Some(scan) = table.downcast_ref::<SplitTableExec>() {
        return scan.table().splits();
    }
    let table = with_filter_support(table.clone());
    let Some(scan) = table.downcast_ref::<DataSourceExec>() else {
        return internal_err!("{} cannot be read in splits", table.name());
    };
    let source = scan.data_source();
    if let Some(config) = source.downcast_ref::<FileScanConfig>() {
        let mut config = config.clone();
        morsels::prepare(&mut config, context)?;
        let files = config.file_groups.iter().flat_map(|group| group.files().iter().cloned());
        let files = files.collect();
        return Ok(Box::new(FileSplits {
            files,
            config: Arc::new(config),
            io: Engine::new(executor.clone()).io()?,
            workers: executor.threads(),
            planning: None,
            gate: PollGate::new("splits of a file"),
        }));
    }
    if let Some(memory) = source.downcast_ref::<FilteredMemorySource>() {
        let batches = memory.table().partitions().iter().flatten().cloned().collect();
        return Ok(Box::new(MemorySplits { batches, first_row: 0 }));
    }
    internal_err!("a source of an unknown kind cannot be read in splits")
}

struct FileSplits {
    files: VecDeque<PartitionedFile>,
    config: Arc<FileScanConfig>,
    io: Handle,
    workers: usize,
    /// The planning of the current file, which reads its footer.
    planning: Option<BoxFuture<'static, Result<Vec<FileMorsel>>>>,
    gate: PollGate,
}

impl SplitSource for FileSplits {
    fn next(&mut self, max_splits: usize) -> Result<Splits> {
        let mut splits = Vec::new();
        while splits.len() < max_splits {
            if self.planning.is_none() {
                let Some(file) = self.files.pop_front() else { break };
                if !morsels::has_row_groups(&self.config) {
                    let ranges = morsels::byte_ranges(file, self.workers);
                    splits.extend(ranges.into_iter().map(FileMorsel::from).map(Split::from_morsel));
                    continue;
                }
                let config = self.config.clone();
                let planning = async move { morsels::row_groups(&config, file, 0).await };
                self.planning = Some(planning.boxed());
            }
            let Some(planning) = &mut self.planning else { break };
            // Readers find the I/O runtime through the thread that polls them.
            let _entered = self.io.enter();
            match self.gate.poll(|context| planning.poll_unpin(context)) {
                Poll::Pending if splits.is_empty() => return Ok(Splits::Blocked(self.gate.gate())),
                Poll::Pending => return Ok(Splits::Batch(splits, false)),
                Poll::Ready(morsels) => {
                    self.planning = None;
                    splits.extend(morsels?.into_iter().map(Split::from_morsel));
                }
            }
        }
        let last = self.files.is_empty() && self.planning.is_none();
        Ok(Splits::Batch(splits, last))
    }

    fn close(&mut self) {
        let _entered = self.io.enter();
        self.files.clear();
        self.planning = None;
    }
}

/// Number of rows in a split of an in-memory table.
const MEMORY_SPLIT_ROWS: usize = 1 << 16;

struct MemorySplits {
    batches: VecDeque<RecordBatch>,
    /// First row of the first batch that has not been emitted.
    first_row: usize,
}

impl MemorySplits {
    fn next_split(&mut self) -> Split {
        let (mut batches, mut rows) = (Vec::new(), 0);
        while rows < MEMORY_SPLIT_ROWS {
            let Some(batch) = self.batches.front() else { break };
            let length = (batch.num_rows() - self.first_row).min(MEMORY_SPLIT_ROWS - rows);
            batches.push(batch.slice(self.first_row, length));
            rows += length;
            self.first_row += length;
            if self.first_row == batch.num_rows() {
                self.batches.pop_front();
                self.first_row = 0;
            }
        }
        // Slices share their buffers: only the sliced part counts.
        let weight = batches.iter().flat_map(|batch| batch.columns());
        let weight = weight.map(|column| gatework_runtime::pipeline::column_bytes(column.as_ref()));
        let weight = weight.sum::<usize>() as u64;
        Split { data: SplitData::Batches(batches), weight }
    }
}

impl SplitSource for MemorySplits {
    fn next(&mut self, max_splits: usize) -> Result<Splits> {
        let mut splits = Vec::new();
        while splits.len() < max_splits && !self.batches.is_empty() {
            splits.push(self.next_split());
        }
        Ok(Splits::Batch(splits, self.batches.is_empty()))
    }

    fn close(&mut self) {
        self.batches.clear();
    }
}

/// Wraps an in-memory `table` so that it accepts runtime filters; returns other tables unchanged.
pub fn with_filter_support(table: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let scan = table.downcast_ref::<DataSourceExec>();
    match scan.and_then(|scan| FilteredMemorySource::wrap(scan.data_source(), &[])) {
        Some(memory) => Arc::new(DataSourceExec::new(Arc::new(memory))),
        None => table,
    }
}

/// Returns `table` restricted to the splits in `queue`.
///
/// # Errors
/// If the table has no splits.
pub fn with_split_queue(
    table: &Arc<dyn ExecutionPlan>,
    queue: SplitQueue<Split>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = table.downcast_ref::<SplitTableExec>() {
        return Ok(Arc::new(scan.with_queue(queue)));
    }
    let table = with_filter_support(table.clone());
    let Some(scan) = table.downcast_ref::<DataSourceExec>() else {
        return internal_err!("{} cannot be read in splits", table.name());
    };
    let table = scan.data_source().clone();
    Ok(Arc::new(DataSourceExec::new(Arc::new(SplitQueueSource { table, queue }))))
}

/// A table, and the queue of its splits that are read.
#[derive(Debug, Clone)]
pub(crate) struct SplitQueueSource {
    table: Arc<dyn DataSource>,
    queue: SplitQueue<Split>,
}

impl SplitQueueSource {
    pub(crate) fn table(&self) -> &Arc<dyn DataSource> {
        &self.table
    }

    pub(crate) fn queue(&self) -> &SplitQueue<Split> {
        &self.queue
    }
}

impl DataSource for SplitQueueSource {
    fn open(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("a split queue is read by the tasks of a stage only")
    }

    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "splits of ")?;
        self.table.fmt_as(kind, f)
    }

    /// A task reads one partition, however the whole table is partitioned.
    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(1)
    }

    /// Splits come in any order.
    fn eq_properties(&self) -> EquivalenceProperties {
        EquivalenceProperties::new(self.table.eq_properties().schema().clone())
    }

    fn scheduling_type(&self) -> SchedulingType {
        self.table.scheduling_type()
    }

    fn partition_statistics(&self, _: Option<usize>) -> Result<Arc<Statistics>> {
        Ok(Arc::new(Statistics::new_unknown(self.table.eq_properties().schema())))
    }

    fn with_fetch(&self, _: Option<usize>) -> Option<Arc<dyn DataSource>> {
        None
    }

    fn fetch(&self) -> Option<usize> {
        None
    }

    fn try_swapping_with_projection(
        &self,
        _: &ProjectionExprs,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        Ok(None)
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn DataSource>>> {
        let mut pushed = self.table.try_pushdown_filters(filters, config)?;
        pushed.updated_node = pushed.updated_node.map(|table| {
            Arc::new(Self { table, queue: self.queue.clone() }) as Arc<dyn DataSource>
        });
        Ok(pushed)
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.table.apply_expressions(f)
    }
}
