//! Union: the rows of several pipelines, read by one task.
//!
//! No plan is lowered to it: it serves pipelines that are built by hand. UNION in SQL is lowered to
//! a local exchange, which several tasks read.

#[cfg(test)]
mod tests;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, LocalSource, OperatorContext, PerTask, Sink,
        SinkResult, Source, SourceResult,
    },
};
use gatework_shared_state::{Gate, PopResult, union as state};

use crate::{ResultExt, apply_selection, result::to_sink_result};

/// Sink of one child pipeline.
#[derive(Debug)]
pub struct UnionSink {
    slots: PerTask<state::UnionProducer<Batch>>,
}

/// Source of the rows of all children. Its pipeline has one task.
#[derive(Debug)]
pub struct UnionSource {
    slots: PerTask<state::UnionConsumer<Batch>>,
    schema: SchemaRef,
}

/// Creates a union with one sink per child pipeline; `children` lists their task counts. Columns
/// are matched by index. They take the names of `schema`, whose types match the children's columns.
///
/// # Panics
/// If there are no child tasks.
pub fn new(
    children: &[usize],
    schema: SchemaRef,
    limit_bytes: usize,
) -> (Vec<UnionSink>, UnionSource) {
    let (sinks, source) = state::new("union", children.iter().sum(), limit_bytes);
    let mut sinks = sinks.into_iter();
    let of_child = |tasks: &usize| UnionSink { slots: PerTask::new(sinks.by_ref().take(*tasks)) };
    let sinks = children.iter().map(of_child).collect();
    (sinks, UnionSource { slots: PerTask::new([source]), schema })
}

impl Sink for UnionSink {
    fn name(&self) -> &str {
        "union sink"
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalUnionSink { closed: sink.closed().clone(), sink: Some(sink) }))
    }
}

struct LocalUnionSink {
    sink: Option<state::UnionProducer<Batch>>,
    closed: Gate,
}

impl LocalSink for LocalUnionSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        // Woken: there is capacity, or the consumer is gone, which the next push reports.
        let Some(batch) = batch else { return Ok(SinkResult::NeedInput) };
        let sequence = batch.sequence();
        Ok(to_sink_result(sink.push(Batch::new(apply_selection(batch)?).with_sequence(sequence))))
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if let Some(sink) = self.sink.take() {
            sink.finish();
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

impl Source for UnionSource {
    fn name(&self) -> &str {
        "union source"
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSource>> {
        let source = self.slots.take(&setup)?;
        Ok(Box::new(LocalUnionSource { source, schema: self.schema.clone() }))
    }
}

struct LocalUnionSource {
    source: state::UnionConsumer<Batch>,
    schema: SchemaRef,
}

impl LocalSource for LocalUnionSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        Ok(match self.source.take() {
            PopResult::Item(batch) => SourceResult::Batch(with_schema(batch, &self.schema)?),
            PopResult::Blocked(gate) => SourceResult::Blocked(gate.into()),
            PopResult::Finished => SourceResult::Finished,
            PopResult::Aborted => return Err(Error::ProducerAborted),
        })
    }
}

/// Returns `batch`'s columns under `schema`.
pub(crate) fn with_schema(batch: Batch, schema: &SchemaRef) -> Result<Batch> {
    let sequence = batch.sequence();
    let data = apply_selection(batch)?;
    let options = RecordBatchOptions::new().with_row_count(Some(data.num_rows()));
    let columns = data.columns().to_vec();
    let data = RecordBatch::try_new_with_options(schema.clone(), columns, &options).query_err()?;
    Ok(Batch::new(data).with_sequence(sequence))
}
