//! Case: the inputs, task count and result that a trial hands to the graph builder.

use std::{fmt, sync::Arc};

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::pipeline::{BufferedBatch, Sink, Source};
use gatework_shared_state::{BufferLimit, result::ResultReader};
use parking_lot::Mutex;

use super::{
    Trial,
    early_end::{EarlyEnd, EndingSink, EndlessSource},
};
use crate::{memory_scan::MemoryScan, result::ResultSink};

/// Inputs, task count and result of the graph under test.
#[derive(Debug)]
pub struct Case {
    inputs: Arc<[Vec<RecordBatch>]>,
    num_tasks: usize,
    sink_tasks: usize,
    morsel_rows: usize,
    result_bytes: usize,
    early_end: Option<Arc<EarlyEnd>>,
    readers: Mutex<Option<Vec<ResultReader<BufferedBatch>>>>,
    collected: Mutex<Option<Collected>>,
}

/// Returns the rows that a sink under test has collected.
struct Collected(Box<dyn FnOnce() -> Vec<RecordBatch> + Send>);

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rows of a sink")
    }
}

impl Case {
    pub(super) fn new(trial: &Trial, inputs: Arc<[Vec<RecordBatch>]>, num_tasks: usize) -> Self {
        Self {
            inputs,
            num_tasks,
            sink_tasks: num_tasks,
            morsel_rows: trial.morsel_rows,
            result_bytes: trial.result_bytes,
            early_end: trial.early_end.clone(),
            readers: Mutex::new(None),
            collected: Mutex::new(None),
        }
    }

    /// Returns the number of tasks for the pipelines under test.
    pub fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    /// Sets the number of tasks of a breaker's sink.
    pub(super) fn with_sink_tasks(self, sink_tasks: usize) -> Self {
        Self { sink_tasks, ..self }
    }

    /// Returns the number of tasks of a breaker's sink.
    pub(super) fn sink_tasks(&self) -> usize {
        self.sink_tasks
    }

    /// Returns the batches of input `input`, unchanged.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn batches(&self, input: usize) -> Vec<RecordBatch> {
        let count = self.inputs.len();
        assert!(input < count, "input {input} of {count} is missing: call `Harness::input`");
        self.inputs[input].clone()
    }

    /// Creates a scan of input `input`, in morsels small enough for all tasks to get some.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn source(&self, input: usize) -> Arc<dyn Source> {
        let inner = Arc::new(MemoryScan::new(self.batches(input), None, self.morsel_rows));
        match self.early_end.clone() {
            Some(end) => Arc::new(EndlessSource { inner, end }),
            None => inner,
        }
    }

    /// Returns a byte limit for the graph's buffers. It is 1 byte, so that buffers are always full,
    /// where the trial allows it.
    pub fn budget(&self) -> BufferLimit {
        BufferLimit::new(self.result_bytes)
    }

    /// Creates the sink of the last pipeline, which has `num_tasks` tasks. The graph builder calls
    /// it once.
    ///
    /// # Panics
    /// If it is called twice.
    pub fn result(&self, num_tasks: usize) -> Arc<dyn Sink> {
        self.partitioned_result(num_tasks, 1, Vec::new())
    }

    /// Creates the sink with several partitions, by the hash of `keys`. All partitions are read
    /// concurrently.
    ///
    /// # Panics
    /// If a result was created before.
    pub fn partitioned_result(
        &self,
        num_tasks: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Arc<dyn Sink> {
        let (sink, readers) = ResultSink::new(num_tasks, partitions, keys, self.budget());
        let before = self.readers.lock().replace(readers);
        assert!(before.is_none(), "a case can have only one result");
        self.ending(Arc::new(sink))
    }

    /// Returns `sink`, which ends early where the trial says so.
    pub(super) fn ending(&self, inner: Arc<dyn Sink>) -> Arc<dyn Sink> {
        match self.early_end.clone() {
            Some(end) => Arc::new(EndingSink { inner, end }),
            None => inner,
        }
    }

    /// Has the rows that `collected` returns after the run compared, for a graph without a result.
    pub(super) fn collect_with(
        &self,
        collected: impl FnOnce() -> Vec<RecordBatch> + Send + 'static,
    ) {
        *self.collected.lock() = Some(Collected(Box::new(collected)));
    }

    /// Returns whether the graph has no result.
    pub(super) fn collects(&self) -> bool {
        self.collected.lock().is_some()
    }

    pub(super) fn take_collected(&self) -> Option<impl FnOnce() -> Vec<RecordBatch>> {
        self.collected.lock().take().map(|collected| collected.0)
    }

    pub(super) fn take_readers(&self) -> Option<Vec<ResultReader<BufferedBatch>>> {
        self.readers.lock().take()
    }
}
