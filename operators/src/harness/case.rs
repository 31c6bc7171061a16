//! A case: what one trial gives to whoever builds the graph.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_physical_expr::PhysicalExpr;
use gatework_runtime::pipeline::{Held, Sink, Source};
use gatework_shared_state::{Budget, result::ResultReader};
use parking_lot::Mutex;

use super::Trial;
use crate::{memory_scan::MemoryScan, result::ResultOutput};

/// Inputs, instances and the result of the graph to be built.
#[derive(Debug)]
pub struct Case {
    inputs: Arc<[Vec<RecordBatch>]>,
    instances: usize,
    morsel_rows: usize,
    result_bytes: usize,
    readers: Mutex<Option<Vec<ResultReader<Held>>>>,
}

impl Case {
    pub(super) fn new(trial: &Trial, inputs: Arc<[Vec<RecordBatch>]>, instances: usize) -> Self {
        Self {
            inputs,
            instances,
            morsel_rows: trial.morsel_rows,
            result_bytes: trial.result_bytes,
            readers: Mutex::new(None),
        }
    }

    /// How many tasks the pipelines under test are to have.
    pub fn instances(&self) -> usize {
        self.instances
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
    pub fn budget(&self) -> Budget {
        Budget::new(self.result_bytes)
    }

    /// The sink of the last pipeline, which has `instances` tasks. To be asked for once.
    ///
    /// # Panics
    /// If it is asked for twice.
    pub fn result(&self, instances: usize) -> Arc<dyn Sink> {
        self.partitioned_result(instances, 1, Vec::new())
    }

    /// The same with several partitions, by the hash of `keys`. All are read at the same time.
    ///
    /// # Panics
    /// If a result is asked for twice.
    pub fn partitioned_result(
        &self,
        instances: usize,
        partitions: usize,
        keys: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Arc<dyn Sink> {
        let (sink, readers) = ResultOutput::new(instances, partitions, keys, self.budget());
        let before = self.readers.lock().replace(readers);
        assert!(before.is_none(), "a case has one result");
        Arc::new(sink)
    }

    pub(super) fn take_readers(&self) -> Option<Vec<ResultReader<Held>>> {
        self.readers.lock().take()
    }
}
