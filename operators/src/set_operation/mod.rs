//! Intersect and except, with and without ALL. A table holds the first child's rows; the other
//! children's rows are counted in it, one child after the other. One source then outputs the
//! remaining rows.
//!
//! Two rows are equal if they are not distinct: NULL equals NULL, -0 equals +0.
//!
//! No plan is lowered to this operator: it serves pipelines that are built by hand. DataFusion
//! plans INTERSECT and EXCEPT as joins.

mod table;

#[cfg(test)]
mod tests;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use datafusion_common::internal_err;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalSink, LocalSource, OperatorContext, OutOfMemory, PerTask, Sink,
        SinkResult, Source, SourceResult, StartResult,
    },
};
use gatework_shared_state::{Gate, PopResult, set as state};

use crate::{
    ResultExt, apply_selection,
    keys::{KeyEncoder, KeyNulls},
    spill::{BreakerSink, BreakerState},
};
use table::CountTable;

/// Kind of a set operation: which rows of the first child remain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Each row that all children have, once.
    Intersect,
    /// Each row as often as the child that has it least often.
    IntersectAll,
    /// Each row that no other child has, once.
    Except,
    /// Each row as often as the first child has it more often than all others together.
    ExceptAll,
}

/// Sink of one child's rows. Its pipeline has one task.
#[derive(Debug)]
pub struct SetSink {
    producers: PerTask<state::SetProducer<CountTable>>,
    child: usize,
    kind: SetKind,
    encoder: KeyEncoder,
}

/// Source of the rows that remain. Its pipeline has one task.
#[derive(Debug)]
pub struct SetSource {
    consumers: PerTask<state::SetConsumer<CountTable>>,
    schema: SchemaRef,
    encoder: KeyEncoder,
    batch_size: usize,
}

/// Creates a set operation over `children` pipelines, one sink each, in order. The children's
/// columns have the types of `schema`.
///
/// A child's pipeline starts only after those before it have ended, so its rows are not buffered.
///
/// # Errors
/// If there are no children or no columns, if the batch size is 0, or a type cannot be compared.
pub fn new(
    kind: SetKind,
    children: usize,
    schema: SchemaRef,
    batch_size: usize,
) -> Result<(Vec<SetSink>, SetSource)> {
    if children == 0 || schema.fields().is_empty() || batch_size == 0 {
        let needs = "a set operation needs a child, a column and a batch size above 0";
        return Err(Error::InvalidConfiguration(needs.into()));
    }
    // All key columns are nullable: another child may have NULLs where the output has none.
    let types: Vec<(DataType, bool)> =
        schema.fields().iter().map(|field| (field.data_type().clone(), true)).collect();
    let encoder = KeyEncoder::new(&types, KeyNulls::Equal).query_err()?;
    let (producers, consumer) = state::new("set operation", children, CountTable::new(&encoder));
    let sink = |(child, producer)| SetSink {
        producers: PerTask::new("set operation sink", [producer]),
        child,
        kind,
        encoder: encoder.clone(),
    };
    let sinks = producers.into_iter().enumerate().map(sink).collect();
    Ok((
        sinks,
        SetSource {
            consumers: PerTask::new("set operation source", [consumer]),
            schema,
            encoder,
            batch_size,
        },
    ))
}

impl Sink for SetSink {
    fn name(&self) -> &str {
        match (self.child, self.kind) {
            (0, _) => "set operation build",
            (_, SetKind::Intersect | SetKind::IntersectAll) => "intersect probe",
            (_, SetKind::Except | SetKind::ExceptAll) => "except probe",
        }
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&context)?;
        let closed = producer.closed().clone();
        let state = SetState {
            producer: Some(producer),
            table: None,
            child: self.child,
            kind: self.kind,
            encoder: self.encoder.clone(),
            context: context.clone(),
            closed: closed.clone(),
            hashes: Vec::new(),
        };
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

struct SetState {
    producer: Option<state::SetProducer<CountTable>>,
    /// The table, once this child is the current one.
    table: Option<CountTable>,
    child: usize,
    kind: SetKind,
    encoder: KeyEncoder,
    context: OperatorContext,
    closed: Gate,
    hashes: Vec<u64>,
}

impl BreakerState for SetState {
    fn start(&mut self) -> Result<StartResult> {
        let Some(producer) = &mut self.producer else { return Ok(StartResult::Finished) };
        match producer.take() {
            PopResult::Item(mut table) => {
                if self.child == 0 {
                    table.reserve_in(self.context.reservation());
                }
                let skip = self.child > 0 && table.cannot_change(self.kind);
                self.table = Some(table);
                Ok(if skip { StartResult::Finished } else { StartResult::Ready })
            }
            PopResult::Blocked(gate) => Ok(StartResult::Blocked(gate.into())),
            PopResult::Finished => Ok(StartResult::Finished),
            // When the source was dropped, the sinks end one by one; that is no failure.
            PopResult::Aborted if self.closed.is_ready() => Ok(StartResult::Finished),
            PopResult::Aborted => Err(Error::ProducerAborted),
        }
    }

    fn add(&mut self, batch: Batch, _task: &DriverContext) -> Result<SinkResult> {
        let Some(table) = &mut self.table else { return Ok(SinkResult::NeedInput) };
        let rows = apply_selection(batch)?;
        check_types(&rows, &self.encoder).query_err()?;
        let keys = self.encoder.encode(rows.columns()).query_err()?;
        keys.hash_into(&mut self.hashes);
        if self.child == 0 {
            table.insert(&keys, &self.hashes, self.kind);
            return Ok(SinkResult::NeedInput);
        }
        table.probe(&keys, &self.hashes, self.kind);
        let cannot_change = table.cannot_change(self.kind);
        Ok(if cannot_change { SinkResult::Finished } else { SinkResult::NeedInput })
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.table.as_mut().map_or(Ok(()), CountTable::update_reservation)
    }

    fn publish(&mut self, _wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        if let (Some(producer), Some(mut table)) = (self.producer.take(), self.table.take()) {
            if self.child > 0 {
                table.end_child(self.kind);
            }
            producer.pass_to_next(table);
        }
        Ok(None)
    }
}

/// Checks the column types: keys of other types would be misread.
fn check_types(rows: &RecordBatch, encoder: &KeyEncoder) -> datafusion_common::Result<()> {
    let types = rows.columns().iter().map(|column| column.data_type());
    if types.eq(encoder.types().iter()) {
        return Ok(());
    }
    internal_err!(
        "a child of a set operation returns {:?}; its columns must have the types {:?}",
        rows.schema().fields(),
        encoder.types()
    )
}

impl Source for SetSource {
    fn name(&self) -> &str {
        "set operation source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalSetSource {
            consumer: self.consumers.take(&context)?,
            schema: self.schema.clone(),
            encoder: self.encoder.clone(),
            batch_size: self.batch_size,
            table: None,
            next: (0, 0),
        }))
    }
}

struct LocalSetSource {
    consumer: state::SetConsumer<CountTable>,
    schema: SchemaRef,
    encoder: KeyEncoder,
    batch_size: usize,
    table: Option<CountTable>,
    /// The next key to output, and how often it was output already.
    next: (usize, u64),
}

impl LocalSource for LocalSetSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        let table = match &self.table {
            Some(table) => table,
            None => match self.consumer.take() {
                PopResult::Item(table) => self.table.insert(table),
                PopResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                PopResult::Finished => return Ok(SourceResult::Finished),
                PopResult::Aborted => return Err(Error::ProducerAborted),
            },
        };
        let keys = table.rows_from(&mut self.next, self.batch_size, self.encoder.empty_keys());
        if keys.is_empty() {
            // The shared state has no second table, so the next call would end as well.
            self.table = None;
            return Ok(SourceResult::Finished);
        }
        let columns = self.encoder.decode(&keys).query_err()?;
        let rows = RecordBatch::try_new(self.schema.clone(), columns).query_err()?;
        Ok(SourceResult::Batch(Batch::new(rows)))
    }
}
