//! Emitter of a large window partition: reads the buffered rows again, and adds their results.

use std::{collections::VecDeque, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use datafusion_common::{ScalarValue, internal_err};
use gatework_runtime::{
    Result,
    pipeline::{BufferRead, BufferReader, BufferedBatch, DriverContext, Reservation},
};
use gatework_shared_state::{Gate, Payload, PopResult};

use super::{Steps, WindowPlan, streaming::StreamingPartition};
use crate::{ResultExt, concat::concat_batches, spill::try_resize_above};

/// Emitter of a window partition that has ended.
pub(super) struct PartitionEmitter {
    pub(super) plan: Arc<WindowPlan>,
    pub(super) batches: VecDeque<BufferedBatch>,
    pub(super) in_memory_bytes: usize,
    pub(super) reader: BufferReader,
    /// Rows of a batch that have not been evaluated.
    pub(super) fetched: Steps,
    pub(super) results: Vec<ExprResult>,
    pub(super) result_bytes: usize,
    /// State of the expressions that are evaluated while the rows are emitted.
    pub(super) streaming: Option<StreamingPartition>,
    /// Rows being emitted, the results of the streaming expressions, and the number of rows
    /// emitted.
    pub(super) current: Option<(RecordBatch, Vec<ArrayRef>, usize)>,
    /// Number of emitted rows of the partition.
    pub(super) emitted_rows: usize,
    pub(super) memory: Reservation,
    pub(super) min_spill_bytes: usize,
}

/// Results of an expression.
pub(super) enum ExprResult {
    /// Results are computed while rows are emitted.
    Streaming,
    /// One value for every row.
    Total(ScalarValue),
    /// One value per row, in row order.
    Column(ArrayRef),
}

impl ExprResult {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Streaming => 0,
            Self::Total(value) => value.size(),
            Self::Column(column) => column.get_array_memory_size(),
        }
    }
}

/// Output of a [`PartitionEmitter`].
pub(super) enum EmitterOutput {
    /// Rows with their results, at most one batch.
    Rows(RecordBatch),
    /// A batch is being restored.
    Blocked(Gate),
    /// The task should yield.
    Yield,
    /// All rows have been emitted.
    End,
}

impl PartitionEmitter {
    pub(super) fn next(&mut self, task: &DriverContext) -> Result<EmitterOutput> {
        loop {
            task.check_cancelled()?;
            if let Some((rows, streaming_results, offset)) = self.current.take() {
                let count = self.plan.batch_size.min(rows.num_rows() - offset);
                if count > 0 {
                    let output =
                        self.output(&rows.slice(offset, count), &streaming_results, offset)?;
                    self.current = Some((rows, streaming_results, offset + count));
                    return Ok(EmitterOutput::Rows(output));
                }
            }
            if !self.fetched.is_empty() {
                let buffered_rows =
                    self.streaming.as_ref().map_or(0, StreamingPartition::buffered_rows);
                let rows = self.fetched.next(buffered_rows.max(self.plan.batch_size));
                self.current = Some(self.evaluate_streaming(concat_batches(&rows)?, task)?);
                self.reserve()?;
                if self.has_no_rows() && task.should_yield() {
                    return Ok(EmitterOutput::Yield);
                }
                continue;
            }
            let mut batch_bytes = 0;
            let batches = &mut self.batches;
            let pop = || match batches.pop_front() {
                Some(batch) => {
                    batch_bytes = batch.bytes();
                    PopResult::Item(batch)
                }
                None => PopResult::Finished,
            };
            match self.reader.next(pop)? {
                BufferRead::Batch(batch) => {
                    self.in_memory_bytes = self.in_memory_bytes.saturating_sub(batch_bytes);
                    self.fetched = Steps(VecDeque::from([batch.into_parts().0]));
                }
                BufferRead::Blocked(gate) => return Ok(EmitterOutput::Blocked(gate)),
                BufferRead::Finished | BufferRead::Aborted => return Ok(EmitterOutput::End),
            }
        }
    }

    /// Returns true if no rows are ready to be emitted.
    fn has_no_rows(&self) -> bool {
        self.current.as_ref().is_none_or(|(rows, _, offset)| *offset == rows.num_rows())
    }

    /// Evaluates the streaming expressions on `rows`; returns the rows for which all have results.
    fn evaluate_streaming(
        &mut self,
        rows: RecordBatch,
        task: &DriverContext,
    ) -> Result<(RecordBatch, Vec<ArrayRef>, usize)> {
        if !self.results.iter().any(|result| matches!(result, ExprResult::Streaming)) {
            return Ok((rows, Vec::new(), 0));
        }
        let last = self.batches.is_empty() && self.fetched.is_empty();
        let plan = &self.plan;
        let streaming = self.streaming.get_or_insert_with(|| {
            StreamingPartition::new(plan.streaming_expressions(), &rows.schema())
        });
        let (rows, results) = streaming.push(&[rows], last, task)?;
        Ok((rows, results, 0))
    }

    /// Appends the results to `rows`; `offset` is the index of `rows` in `streaming_results`.
    fn output(
        &mut self,
        rows: &RecordBatch,
        streaming_results: &[ArrayRef],
        offset: usize,
    ) -> Result<RecordBatch> {
        let count = rows.num_rows();
        let mut streaming_results = streaming_results.iter();
        let mut columns = Vec::with_capacity(self.results.len());
        for result in &self.results {
            columns.push(match result {
                ExprResult::Streaming => match streaming_results.next() {
                    Some(column) => column.slice(offset, count),
                    None => return internal_err!("a window expression has no result").query_err(),
                },
                ExprResult::Total(value) => value.to_array_of_size(count).query_err()?,
                ExprResult::Column(column) => column.slice(self.emitted_rows, count),
            });
        }
        self.emitted_rows += count;
        self.plan.output(rows, columns)
    }

    /// Releases the memory of emitted rows. The last rows of the partition may be unreserved, since
    /// it had already ended.
    pub(super) fn reserve(&mut self) -> Result<()> {
        let retained_bytes =
            self.result_bytes + self.streaming.as_ref().map_or(0, StreamingPartition::bytes);
        let is_granted = self.memory.resize(self.in_memory_bytes + retained_bytes).is_ok();
        if !is_granted && self.memory.bytes() < retained_bytes {
            try_resize_above(&mut self.memory, retained_bytes, self.min_spill_bytes)?;
        }
        Ok(())
    }
}
