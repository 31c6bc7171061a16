//! Union: the rows of several pipelines, read by one task in turn.

#[cfg(test)]
mod tests;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, LocalSource, Setup, Sink, SinkResult, Slots, Source,
        SourceResult, TaskContext,
    },
};
use gatework_shared_state::{Gate, Take, union as state};

use crate::{OrFail, compact, result::answer};

/// Takes the rows of one child pipeline.
#[derive(Debug)]
pub struct UnionSink {
    slots: Slots<state::UnionSink<Batch>>,
}

/// Gives the rows of all children. Its pipeline has one task.
#[derive(Debug)]
pub struct UnionSource {
    slots: Slots<state::UnionSource<Batch>>,
    schema: SchemaRef,
}

/// A union of child pipelines of as many tasks as `children` says, one sink each. Columns go by
/// their place: they come out under the names of `schema`, whose types the children's columns have.
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
    let of_child = |tasks: &usize| UnionSink { slots: Slots::new(sinks.by_ref().take(*tasks)) };
    let sinks = children.iter().map(of_child).collect();
    (sinks, UnionSource { slots: Slots::new([source]), schema })
}

impl Sink for UnionSink {
    fn name(&self) -> &str {
        "union sink"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalUnionSink { closed: sink.closed().clone(), sink: Some(sink) }))
    }
}

struct LocalUnionSink {
    sink: Option<state::UnionSink<Batch>>,
    closed: Gate,
}

impl LocalSink for LocalUnionSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let Some(sink) = &mut self.sink else { return Ok(SinkResult::Finished) };
        // Woken: there is room, or nobody reads any more, which the next push would tell.
        let Some(batch) = batch else { return Ok(SinkResult::NeedInput) };
        let sequence = batch.sequence();
        Ok(answer(sink.push(Batch::new(compact(batch)?).at(sequence))))
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
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
        "union"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        let source = self.slots.take(&setup)?;
        Ok(Box::new(LocalUnionSource { source, schema: self.schema.clone() }))
    }
}

struct LocalUnionSource {
    source: state::UnionSource<Batch>,
    schema: SchemaRef,
}

impl LocalSource for LocalUnionSource {
    fn next(&mut self, _task: &TaskContext) -> Result<SourceResult> {
        Ok(match self.source.take() {
            Take::Item(batch) => SourceResult::Batch(rename(batch, &self.schema)?),
            Take::Blocked(gate) => SourceResult::Blocked(gate.into()),
            Take::Finished => SourceResult::Finished,
            Take::Aborted => return Err(Error::ProducerAborted),
        })
    }
}

/// The same columns under `schema`.
pub(crate) fn rename(batch: Batch, schema: &SchemaRef) -> Result<Batch> {
    let sequence = batch.sequence();
    let data = compact(batch)?;
    let options = RecordBatchOptions::new().with_row_count(Some(data.num_rows()));
    let columns = data.columns().to_vec();
    let data = RecordBatch::try_new_with_options(schema.clone(), columns, &options).or_fail()?;
    Ok(Batch::new(data).at(sequence))
}
