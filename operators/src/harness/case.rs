//! Case: the inputs, task count and result that a trial hands to the graph builder.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::pipeline::{BufferedBatch, Sink, Source};
use gatework_shared_state::{BufferLimit, result::ResultReader};
use parking_lot::Mutex;

use super::Trial;
use crate::{memory_scan::MemoryScan, result::ResultSink};

/// Inputs, task count and result of the graph under test.
#[derive(Debug)]
pub struct Case {
    inputs: Arc<[Vec<RecordBatch>]>,
    num_tasks: usize,
    morsel_rows: usize,
    result_bytes: usize,
    readers: Mutex<Option<Vec<ResultReader<BufferedBatch>>>>,
}

impl Case {
    pub(super) fn new(trial: &Trial, inputs: Arc<[Vec<RecordBatch>]>, num_tasks: usize) -> Self {
        Self {
            inputs,
            num_tasks,
            morsel_rows: trial.morsel_rows,
            result_bytes: trial.result_bytes,
            readers: Mutex::new(None),
        }
    }

    /// Returns the number of tasks for the pipelines under test.
    pub fn num_tasks(&self) -> usize {
        self.num_tasks
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
        Arc::new(MemoryScan::new(self.batches(input), None, self.morsel_rows))
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
        Arc::new(sink)
    }

    pub(super) fn take_readers(&self) -> Option<Vec<ResultReader<BufferedBatch>>> {
        self.readers.lock().take()
    }
}
