//! Window source: evaluates whole window partitions, and chunks of large ones.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::SortColumn,
};
use datafusion_common::utils::evaluate_partition_ranges;
use datafusion_physical_expr::window::WindowExpr;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalSource, OperatorContext, PerTask, Reservation, Source,
        SourceResult,
    },
};
use gatework_shared_state::{PopResult, window::WindowConsumer};

use super::{
    PartitionData, ReadyOnDrop, Steps, WindowItem, WindowPlan, bytes,
    emitter::{EmitterOutput, PartitionEmitter},
    kernels::Partitions,
    streaming::StreamingPartition,
};
use crate::{
    ResultExt,
    concat::{concat_arrays, concat_batches},
    spill::try_resize_above,
};

/// Source of the rows with the window expressions' columns.
#[derive(Debug)]
pub struct WindowSource {
    slots: PerTask<WindowConsumer<WindowItem>>,
    plan: Arc<WindowPlan>,
}

impl WindowSource {
    pub(super) fn new(sources: Vec<WindowConsumer<WindowItem>>, plan: Arc<WindowPlan>) -> Self {
        Self { slots: PerTask::new("window source", sources), plan }
    }
}

impl Source for WindowSource {
    fn name(&self) -> &str {
        "window source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalWindowSource {
            source: self.slots.take(&context)?,
            plan: self.plan.clone(),
            memory: context.reservation(),
            context,
            streaming: None,
            chunk: None,
            emitter: None,
            ready: None,
            sequence: 0,
        }))
    }
}

/// Rows of a streaming window partition that have not been evaluated.
struct StreamingChunk {
    rows: Steps,
    /// True if the partition ends with these rows.
    last: bool,
    _memory: Reservation,
}

struct LocalWindowSource {
    source: WindowConsumer<WindowItem>,
    plan: Arc<WindowPlan>,
    memory: Reservation,
    context: OperatorContext,
    /// Streaming window partition that has not ended.
    streaming: Option<StreamingPartition>,
    /// Chunk of the streaming partition that is being evaluated.
    chunk: Option<StreamingChunk>,
    /// Large window partition that is being emitted.
    emitter: Option<(PartitionEmitter, ReadyOnDrop)>,
    /// Evaluated rows, and the number of them that have been returned.
    ready: Option<(RecordBatch, usize)>,
    sequence: u64,
}

impl LocalSource for LocalWindowSource {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        loop {
            if let Some((emitter, _)) = &mut self.emitter {
                match emitter.next(task)? {
                    EmitterOutput::Rows(rows) => {
                        return Ok(SourceResult::Batch(self.with_next_sequence(rows)));
                    }
                    EmitterOutput::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                    EmitterOutput::Yield => return Ok(SourceResult::Yield),
                    EmitterOutput::End => self.emitter = None,
                }
            }
            if let Some(batch) = self.next_ready()? {
                return Ok(SourceResult::Batch(batch));
            }
            if let Some(chunk) = self.chunk.take() {
                task.check_cancelled()?;
                let rows = self.evaluate_step(chunk, task)?;
                let is_empty = rows.num_rows() == 0;
                self.ready = Some((rows, 0));
                if is_empty && task.should_yield() {
                    return Ok(SourceResult::Yield);
                }
                continue;
            }
            match self.source.take() {
                PopResult::Item(WindowItem { content, bytes, memory, .. }) => match content {
                    PartitionData::Complete(batches) => {
                        let rows = self.evaluate(batches, bytes, memory, task)?;
                        self.ready = Some((rows, 0));
                    }
                    PartitionData::Streaming(batches, last) => {
                        self.chunk = Some(StreamingChunk {
                            rows: Steps(batches.into()),
                            last,
                            _memory: memory,
                        });
                    }
                    PartitionData::Buffered(partition, ready_on_drop) => {
                        self.emitter = Some((
                            partition.into_emitter(memory, &self.context, task)?,
                            ready_on_drop,
                        ));
                    }
                },
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished => return Ok(SourceResult::Finished),
                PopResult::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}

impl LocalWindowSource {
    /// Returns the next batch of the evaluated rows.
    fn next_ready(&mut self) -> Result<Option<Batch>> {
        let Some((rows, emitted)) = self.ready.take() else { return Ok(None) };
        let count = self.plan.batch_size.min(rows.num_rows() - emitted);
        let batch = rows.slice(emitted, count);
        if emitted + count < rows.num_rows() {
            self.ready = Some((rows, emitted + count));
        } else {
            drop(rows);
            let buffered_bytes = self.streaming.as_ref().map_or(0, StreamingPartition::bytes);
            try_resize_above(&mut self.memory, buffered_bytes, self.context.min_spill_bytes())?;
        }
        Ok((count > 0).then(|| self.with_next_sequence(batch)))
    }

    fn with_next_sequence(&mut self, rows: RecordBatch) -> Batch {
        self.sequence += 1;
        Batch::new(rows).with_sequence(self.sequence - 1)
    }

    /// Reserves `bytes`, or continues without a reservation: one evaluation needs too little memory
    /// for a wait to help.
    fn reserve(&mut self, bytes: usize) {
        let _reserved = self.memory.resize(bytes);
    }

    /// Returns the minimum number of rows of the next step.
    fn step_rows(&self) -> usize {
        self.streaming
            .as_ref()
            .map_or(0, StreamingPartition::buffered_rows)
            .max(self.plan.batch_size)
    }

    /// Evaluates the next step of a chunk; returns the rows that got their results.
    fn evaluate_step(
        &mut self,
        mut chunk: StreamingChunk,
        task: &DriverContext,
    ) -> Result<RecordBatch> {
        let batches = chunk.rows.next(self.step_rows());
        let done = chunk.rows.is_empty();
        let last = chunk.last && done;
        let streaming = match &mut self.streaming {
            Some(streaming) => streaming,
            none => {
                let Some(rows) = batches.first() else {
                    return Err(Error::InvalidConfiguration(
                        "internal error: a window partition has no rows".into(),
                    ));
                };
                none.insert(StreamingPartition::new(
                    self.plan.streaming_expressions(),
                    &rows.schema(),
                ))
            }
        };
        let (rows, results) = streaming.push(&batches, last, task)?;
        let output = self.plan.output(&rows, results)?;
        let buffered_bytes = streaming.bytes();
        if last {
            self.streaming = None;
        }
        drop(batches);
        if !done {
            self.chunk = Some(chunk);
        }
        // The output leaves this task at once; only the buffered rows can grow.
        if self.memory.resize(buffered_bytes + bytes(&output)).is_err() {
            try_resize_above(&mut self.memory, buffered_bytes, self.context.min_spill_bytes())?;
        }
        Ok(output)
    }

    /// Evaluates complete window partitions of `size` bytes, for which `memory` is reserved.
    /// Appends a column per expression.
    fn evaluate(
        &mut self,
        batches: Vec<RecordBatch>,
        size: usize,
        memory: Reservation,
        task: &DriverContext,
    ) -> Result<RecordBatch> {
        if batches.len() > 1 {
            self.reserve(size);
        }
        let rows = concat_batches(&batches)?;
        let sort_column = |values| SortColumn { values, options: None };
        let keys = self.plan.keys(&rows)?;
        let sort_columns: Vec<_> = keys.iter().cloned().map(sort_column).collect();
        let ranges = evaluate_partition_ranges(rows.num_rows(), &sort_columns).query_err()?;
        let partitions = Partitions::new(&rows, &keys, &ranges);
        let mut results = Vec::with_capacity(self.plan.expressions.len());
        for (expression, kernel) in self.plan.expressions.iter().zip(&self.plan.kernels) {
            let result = match kernel {
                Some(kernel) => kernel.evaluate(&partitions, task)?,
                None => None,
            };
            results.push(match result {
                Some(result) => {
                    self.context.metrics().add("window_kernel_rows", rows.num_rows() as u64);
                    result
                }
                None => evaluate_partitions(expression.as_ref(), &rows, &ranges, task)?,
            });
        }
        let output = self.plan.output(&rows, results)?;
        // The input is now referenced by the output only.
        drop((batches, memory));
        self.reserve(bytes(&output));
        Ok(output)
    }
}

fn evaluate_partitions(
    expression: &dyn WindowExpr,
    rows: &RecordBatch,
    partitions: &[Range<usize>],
    task: &DriverContext,
) -> Result<ArrayRef> {
    let mut results = Vec::with_capacity(partitions.len());
    for partition in partitions {
        task.check_cancelled()?;
        let rows = rows.slice(partition.start, partition.len());
        results.push(expression.evaluate(&rows).query_err()?);
    }
    concat_arrays(&results)
}
