//! Shared rows: the result of one pipeline, which several pipelines read. N:N.
//!
//! All rows are there before the first is read, in memory of the query or spilled. Each reader is a
//! pipeline of its own number of tasks, and each batch goes to one task of each reader. A batch is
//! dropped when its last reader has it. (DuckDB and PostgreSQL call such a subplan a materialized
//! common table expression.)
//!
//! A [multicast](crate::multicast) needs less memory, but one of its readers may wait for another:
//! the two sides of a join cannot both follow one stream. Here no reader waits for a reader.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, BufferReader, BufferedBatch, DriverContext, LocalSink, LocalSource, OperatorContext,
        PerTask, Sink, Source, SourceResult,
    },
};
use gatework_shared_state::{
    BufferLimit, ClaimResult, Gate, PopResult, PushResult,
    breaker::{self, BreakerConsumer, BreakerProducer},
};

use crate::{
    ResultExt,
    buffer::{self, ChannelProducer, ChannelSink, with_schema},
};

/// All rows, and how far each reader has read.
#[derive(Debug, Default)]
struct Rows {
    batches: Vec<SharedBatch>,
    /// Index of the next batch of each reader.
    next: Box<[usize]>,
}

#[derive(Debug)]
struct SharedBatch {
    /// `None` once all readers have it.
    batch: Option<BufferedBatch>,
    /// Number of readers that do not have it.
    unread: usize,
}

impl Rows {
    fn add(&mut self, batches: Vec<BufferedBatch>) {
        let unread = self.next.len();
        let shared = |batch| SharedBatch { batch: Some(batch), unread };
        self.batches.extend(batches.into_iter().map(shared));
    }

    /// Returns the next batch of `reader`.
    fn claim(&mut self, reader: usize) -> Option<BufferedBatch> {
        let shared = self.batches.get_mut(self.next[reader])?;
        self.next[reader] += 1;
        shared.unread -= 1;
        if shared.unread == 0 { shared.batch.take() } else { shared.batch.clone() }
    }
}

/// Sink of the shared rows.
#[derive(Debug)]
pub struct SharedRowsSink {
    slots: PerTask<BreakerProducer<Rows>>,
}

/// Source of one reader.
#[derive(Debug)]
pub struct SharedRowsSource {
    slots: PerTask<BreakerConsumer<Rows>>,
    reader: usize,
    columns: Arc<[usize]>,
    schema: SchemaRef,
}

/// One reader, from which its [source](SharedRowsReader::source) is made.
#[derive(Debug)]
pub struct SharedRowsReader {
    consumers: Vec<BreakerConsumer<Rows>>,
    reader: usize,
}

impl SharedRowsReader {
    /// Returns the source of the columns at these indices, named and typed as in `schema`.
    pub fn source(self, columns: Arc<[usize]>, schema: SchemaRef) -> SharedRowsSource {
        let slots = PerTask::new("shared rows source", self.consumers);
        SharedRowsSource { slots, reader: self.reader, columns, schema }
    }
}

/// Creates the sink of a pipeline of `producers` tasks, and `readers` readers of `tasks` tasks.
///
/// # Panics
/// If a number is 0.
pub fn new(
    producers: usize,
    readers: usize,
    tasks: usize,
) -> (SharedRowsSink, Vec<SharedRowsReader>) {
    let rows = Rows { batches: Vec::new(), next: vec![0; readers].into() };
    let (producers, consumers) = breaker::new("shared rows", producers, readers * tasks, rows);
    let mut consumers = consumers.into_iter();
    let reader =
        |reader| SharedRowsReader { consumers: consumers.by_ref().take(tasks).collect(), reader };
    let readers = (0..readers).map(reader).collect();
    (SharedRowsSink { slots: PerTask::new("shared rows sink", producers) }, readers)
}

impl Sink for SharedRowsSink {
    fn name(&self) -> &str {
        "shared rows sink"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer =
            LocalSharedRows { producer: self.slots.take(&context)?, batches: Vec::new() };
        // Every batch is reserved or spilled: none is taken before the last one is there.
        let budget = BufferLimit::new(0);
        budget.allow_overflow();
        Ok(Box::new(ChannelSink::new(producer, budget, context)))
    }
}

struct LocalSharedRows {
    producer: BreakerProducer<Rows>,
    batches: Vec<BufferedBatch>,
}

impl ChannelProducer for LocalSharedRows {
    /// All readers.
    type Target = ();

    fn route(&self, rows: RecordBatch) -> Result<Vec<((), RecordBatch)>> {
        Ok(vec![((), rows)])
    }

    fn push(&mut self, (): (), batch: BufferedBatch) -> PushResult {
        self.batches.push(batch);
        PushResult::Accepted
    }

    fn poll_capacity(&mut self) -> PushResult {
        PushResult::Accepted
    }

    fn finish(self) {
        self.producer.publish(|rows| rows.add(self.batches));
    }

    fn closed(&self) -> &Gate {
        self.producer.closed()
    }
}

impl Source for SharedRowsSource {
    fn name(&self) -> &str {
        "shared rows source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalSharedRowsSource {
            consumer: self.slots.take(&context)?,
            reader: self.reader,
            columns: self.columns.clone(),
            schema: self.schema.clone(),
            buffer: BufferReader::new(&context),
        }))
    }
}

struct LocalSharedRowsSource {
    consumer: BreakerConsumer<Rows>,
    reader: usize,
    columns: Arc<[usize]>,
    schema: SchemaRef,
    buffer: BufferReader,
}

impl LocalSource for LocalSharedRowsSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        let claim = || match self.consumer.claim(|rows| rows.claim(self.reader)) {
            ClaimResult::Work(batch) => PopResult::Item(batch),
            ClaimResult::Blocked(gate) => PopResult::Blocked(gate),
            ClaimResult::Finished => PopResult::Finished,
            ClaimResult::Aborted => PopResult::Aborted,
        };
        let batch = match buffer::next_batch(&mut self.buffer, claim)? {
            SourceResult::Batch(batch) => batch,
            other => return Ok(other),
        };
        let projected = Batch::new(batch.data().project(&self.columns).query_err()?);
        let projected = projected.with_sequence(batch.sequence());
        Ok(SourceResult::Batch(with_schema(projected, &self.schema)?))
    }
}
