//! A case: what one trial gives to whoever builds the graph.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::pipeline::{BufferedBatch, Sink, Source};
use gatework_shared_state::{BufferLimit, result::ResultReader};
use parking_lot::Mutex;

use super::Trial;
use crate::{memory_scan::MemoryScan, result::ResultSink};

/// Inputs, instances and the result of the graph to be built.
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

    /// How many tasks the pipelines under test are to have.
    pub fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    /// The batches of input `input`, as they were given.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn batches(&self, input: usize) -> Vec<RecordBatch> {
        let count = self.inputs.len();
        assert!(input < count, "there are {count} inputs: give input {input} to the harness");
        self.inputs[input].clone()
    }

    /// A scan of input `input`, in morsels small enough for all tasks to get some.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn source(&self, input: usize) -> Arc<dyn Source> {
        Arc::new(MemoryScan::new(self.batches(input), None, self.morsel_rows))
    }

    /// A byte budget for the buffers of the graph: 1 byte, so that they are always full, wherever
    /// the trial allows.
    pub fn budget(&self) -> BufferLimit {
        BufferLimit::new(self.result_bytes)
    }

    /// The sink of the last pipeline, which has `num_tasks` tasks. To be asked for once.
    ///
    /// # Panics
    /// If it is asked for twice.
    pub fn result(&self, num_tasks: usize) -> Arc<dyn Sink> {
        self.partitioned_result(num_tasks, 1, Vec::new())
    }

    /// The same with several partitions, by the hash of `keys`. All are read at the same time.
    ///
    /// # Panics
    /// If a result is asked for twice.
    pub fn partitioned_result(
        &self,
        num_tasks: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Arc<dyn Sink> {
        let (sink, readers) = ResultSink::new(num_tasks, partitions, keys, self.budget());
        let before = self.readers.lock().replace(readers);
        assert!(before.is_none(), "a case has one result");
        Arc::new(sink)
    }

    pub(super) fn take_readers(&self) -> Option<Vec<ResultReader<BufferedBatch>>> {
        self.readers.lock().take()
    }
}
