//! User-defined tables that are read in splits: by all tasks of a scan, and by tasks on several
//! nodes.

use std::{
    any::Any,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    common::{internal_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{Stream, StreamExt, TryStreamExt};
use gatework_operators::{ResultExt, stream_scan::PollGate};
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{Batch, DriverContext as Task, LocalSource, OperatorContext, Source, SourceResult},
};
use gatework_shared_state::{
    PopResult,
    splits::{SplitGuard, SplitQueue},
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::splits::{Split, SplitData, SplitSource, Splits};

/// A table that is divided into splits, each of which can be read independently.
///
/// A `TableProvider` returns a [`SplitTableExec`] of it for a scan, with the requested columns.
/// Then all tasks of a query read it in parallel; if the query runs as stages, tasks on all nodes
/// do.
///
/// ```
/// use std::sync::Arc;
/// use arrow::{
///     array::{ArrayRef, Int64Array},
///     datatypes::{DataType, Field, Schema, SchemaRef},
///     record_batch::RecordBatch,
/// };
/// use datafusion::{
///     error::Result,
///     execution::{SendableRecordBatchStream, TaskContext},
///     physical_plan::stream::RecordBatchStreamAdapter,
/// };
/// use gatework_sql::splits::{Split, SplitSource, SplitTable, Splits};
///
/// /// The numbers from 0 to below the field's value, 100 per split.
/// #[derive(Debug)]
/// struct Numbers(i64);
///
/// /// The first number of the next split, and the end of the last one.
/// struct NumberSplits(i64, i64);
///
/// impl SplitSource for NumberSplits {
///     fn next(&mut self, max_splits: usize) -> Result<Splits> {
///         let end = self.1.min(self.0 + 100 * max_splits as i64);
///         let splits = (self.0..end).step_by(100).map(|first| Split::new(first, 800)).collect();
///         self.0 = end;
///         Ok(Splits::Batch(splits, end == self.1))
///     }
/// }
///
/// impl SplitTable for Numbers {
///     fn schema(&self) -> SchemaRef {
///         Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
///     }
///
///     fn splits(&self) -> Result<Box<dyn SplitSource>> {
///         Ok(Box::new(NumberSplits(0, self.0)))
///     }
///
///     fn read(
///         &self,
///         split: Box<dyn std::any::Any + Send>,
///         _: &Arc<TaskContext>,
///     ) -> Result<SendableRecordBatchStream> {
///         let first = split.downcast::<i64>().map_or(0, |first| *first);
///         let numbers = first..self.0.min(first + 100);
///         let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
///         let batch = RecordBatch::try_new(self.schema(), vec![rows])?;
///         let stream = futures::stream::iter([Ok(batch)]);
///         Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
///     }
/// }
/// ```
pub trait SplitTable: fmt::Debug + Send + Sync + 'static {
    /// Returns the schema of the rows that [`read`](Self::read) returns.
    fn schema(&self) -> SchemaRef;

    /// Returns the table's splits, made by [`Split::new`]. Must not read data yet.
    ///
    /// # Errors
    /// If the table does not exist any more.
    fn splits(&self) -> Result<Box<dyn SplitSource>>;

    /// Returns the rows of `split`, the value passed to [`Split::new`]. A worker calls it and polls
    /// its stream, within the context of a tokio runtime with I/O and timers.
    ///
    /// # Errors
    /// If the split cannot be read.
    fn read(
        &self,
        split: Box<dyn Any + Send>,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream>;
}

/// A scan of a [`SplitTable`].
#[derive(Debug)]
pub struct SplitTableExec {
    table: Arc<dyn SplitTable>,
    /// The queue of the splits to read; `None` reads all splits.
    queue: Option<SplitQueue<Split>>,
    properties: Arc<PlanProperties>,
}

impl SplitTableExec {
    /// Creates a scan of `table`. `partitions` is the number of partitions for which DataFusion
    /// plans; pass the session's target partitions.
    pub fn new(table: Arc<dyn SplitTable>, partitions: usize) -> Self {
        Self::from_parts(table, partitions, None)
    }

    fn from_parts(
        table: Arc<dyn SplitTable>,
        partitions: usize,
        queue: Option<SplitQueue<Split>>,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(table.schema()),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { table, queue, properties: Arc::new(properties) }
    }

    pub(crate) fn table(&self) -> &Arc<dyn SplitTable> {
        &self.table
    }

    /// Returns the same scan, restricted to the splits in `queue`.
    pub(crate) fn with_queue(&self, queue: SplitQueue<Split>) -> Self {
        Self::from_parts(self.table.clone(), 1, Some(queue))
    }

    /// Returns the scan as a native source.
    pub(crate) fn source(&self, context: &Arc<TaskContext>, io: Handle) -> Result<SplitTableScan> {
        let feed = match &self.queue {
            Some(queue) => Feed::Queue(queue.clone()),
            None => Feed::Table(Arc::new(Mutex::new(SplitStream::try_new(self.table.as_ref())?))),
        };
        let (table, context) = (self.table.clone(), context.clone());
        Ok(SplitTableScan { table, context, io, feed })
    }
}

impl DisplayAs for SplitTableExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SplitTableExec: {:?}", self.table)
    }
}

impl ExecutionPlan for SplitTableExec {
    fn name(&self) -> &str {
        "SplitTableExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    /// Executes on DataFusion: of n partitions, each reads every n-th split.
    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        if self.queue.is_some() {
            return internal_err!("a split queue is read by the tasks of a stage only");
        }
        let table = self.table.clone();
        let partitions = self.properties.partitioning.partition_count();
        let splits = SplitStream::try_new(table.as_ref())?;
        let splits = splits
            .enumerate()
            .filter(move |(index, _)| std::future::ready(index % partitions == partition));
        let read = move |(_, split): (usize, Result<Split>)| {
            let rows = split.and_then(|split| split.read_by(table.as_ref(), &context));
            std::future::ready(rows)
        };
        let rows = splits.then(read).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.table.schema(), rows)))
    }
}

impl Split {
    fn read_by(
        self,
        table: &dyn SplitTable,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        match self.data {
            SplitData::UserDefined(split) => table.read(split, context),
            // An empty split, which makes a stage start a task.
            SplitData::Batches(batches) => {
                let batches = futures::stream::iter(batches.into_iter().map(Ok));
                Ok(Box::pin(RecordBatchStreamAdapter::new(table.schema(), batches)))
            }
            SplitData::Morsel(_) => {
                internal_err!("a SplitTable returned the split of a file: use Split::new")
            }
        }
    }
}

const SPLIT_BATCH_SIZE: usize = 16;

/// The splits of a table, one after the other.
struct SplitStream {
    source: Box<dyn SplitSource>,
    /// Fetched splits, in reverse order.
    splits: Vec<Split>,
    /// Whether `source` has no splits besides the fetched ones.
    last: bool,
}

impl SplitStream {
    fn try_new(table: &dyn SplitTable) -> Result<Self> {
        Ok(Self { source: table.splits()?, splits: Vec::new(), last: false })
    }

    fn next_split(&mut self) -> Result<PopResult<Split>> {
        loop {
            if let Some(split) = self.splits.pop() {
                return Ok(PopResult::Item(split));
            }
            if self.last {
                return Ok(PopResult::Finished);
            }
            match self.source.next(SPLIT_BATCH_SIZE)? {
                Splits::Batch(mut splits, last) => {
                    splits.reverse();
                    (self.splits, self.last) = (splits, last);
                }
                Splits::Blocked(gate) => return Ok(PopResult::Blocked(gate)),
            }
        }
    }
}

impl Drop for SplitStream {
    fn drop(&mut self) {
        self.source.close();
    }
}

impl Stream for SplitStream {
    type Item = Result<Split>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        loop {
            match self.next_split()? {
                PopResult::Item(split) => return Poll::Ready(Some(Ok(split))),
                PopResult::Finished | PopResult::Aborted => return Poll::Ready(None),
                PopResult::Blocked(gate) => {
                    if !gate.poll_ready(context.waker()) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

/// The native source that reads a [`SplitTable`].
#[derive(Debug)]
pub(crate) struct SplitTableScan {
    table: Arc<dyn SplitTable>,
    context: Arc<TaskContext>,
    io: Handle,
    feed: Feed,
}

/// The source of the splits for a scan's tasks.
#[derive(Clone)]
enum Feed {
    Queue(SplitQueue<Split>),
    Table(Arc<Mutex<SplitStream>>),
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "{queue:?}"),
            Self::Table(_) => f.write_str("all splits"),
        }
    }
}

impl Feed {
    fn take(&self) -> RuntimeResult<PopResult<(Split, Option<SplitGuard<Split>>)>> {
        match self {
            Self::Queue(queue) => Ok(match queue.take() {
                PopResult::Item((split, guard)) => PopResult::Item((split, Some(guard))),
                PopResult::Blocked(gate) => PopResult::Blocked(gate),
                PopResult::Finished => PopResult::Finished,
                PopResult::Aborted => PopResult::Aborted,
            }),
            Self::Table(stream) => Ok(match stream.lock().next_split().query_err()? {
                PopResult::Item(split) => PopResult::Item((split, None)),
                PopResult::Blocked(gate) => PopResult::Blocked(gate),
                PopResult::Finished => PopResult::Finished,
                PopResult::Aborted => PopResult::Aborted,
            }),
        }
    }
}

impl Source for SplitTableScan {
    fn name(&self) -> &str {
        "split scan"
    }

    fn local(&self, _: OperatorContext) -> RuntimeResult<Box<dyn LocalSource>> {
        Ok(Box::new(LocalScan {
            table: self.table.clone(),
            context: self.context.clone(),
            io: self.io.clone(),
            feed: self.feed.clone(),
            current: None,
            gate: PollGate::new("split scan"),
        }))
    }
}

struct LocalScan {
    table: Arc<dyn SplitTable>,
    context: Arc<TaskContext>,
    io: Handle,
    feed: Feed,
    current: Option<(SendableRecordBatchStream, Option<SplitGuard<Split>>)>,
    gate: PollGate,
}

impl LocalScan {
    fn poll(&mut self) -> Poll<Option<Result<RecordBatch>>> {
        let Some((stream, _)) = &mut self.current else { return Poll::Ready(None) };
        self.gate.poll(|context| stream.poll_next_unpin(context))
    }
}

impl LocalSource for LocalScan {
    fn next(&mut self, task: &Task) -> RuntimeResult<SourceResult> {
        let io = self.io.clone();
        let _entered = io.enter();
        loop {
            task.check_cancelled()?;
            match self.poll() {
                Poll::Pending => return Ok(SourceResult::Blocked(self.gate.gate().into())),
                Poll::Ready(Some(rows)) => {
                    return Ok(SourceResult::Batch(Batch::new(rows.query_err()?)));
                }
                Poll::Ready(None) => self.current = None,
            }
            match self.feed.take()? {
                PopResult::Item((split, guard)) => {
                    let stream = split.read_by(self.table.as_ref(), &self.context).query_err()?;
                    self.current = Some((stream, guard));
                }
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished | PopResult::Aborted => return Ok(SourceResult::Finished),
            }
        }
    }
}

impl Drop for LocalScan {
    fn drop(&mut self) {
        // Work that a stream has spawned is aborted within the runtime that runs it.
        let io = self.io.clone();
        let _entered = io.enter();
        self.current = None;
    }
}
