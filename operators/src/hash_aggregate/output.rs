//! The source of an aggregate: claims partitions, merges what all sinks had, and emits the groups.

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalSource, Reservation, Setup, Slots, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Claim, aggregate::AggregateSource};

use super::{
    config::Shared,
    groups::{Groups, Part},
    ungrouped::Accumulators,
};
use crate::OrFail;

/// The source of an aggregate.
#[derive(Debug)]
pub struct AggregateOutput {
    shared: Arc<Shared>,
    slots: Slots<AggregateSource<Part>>,
}

impl AggregateOutput {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<AggregateSource<Part>>) -> Self {
        Self { shared, slots }
    }
}

impl Source for AggregateOutput {
    fn name(&self) -> &str {
        "aggregate merge"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalOutput {
            shared: self.shared.clone(),
            source: self.slots.take(setup.instance())?,
            setup,
            emitting: None,
        }))
    }
}

struct LocalOutput {
    shared: Arc<Shared>,
    source: AggregateSource<Part>,
    setup: Setup,
    /// Merged groups, the offset of the first that has not been emitted, and their bytes.
    emitting: Option<(RecordBatch, usize, Option<Reservation>)>,
}

impl LocalOutput {
    fn merge(&self, unit: usize, parts: Vec<Part>, task: &TaskContext) -> Result<Option<Merged>> {
        let mut groups: Option<Groups> = None;
        let mut single: Option<(Accumulators, Reservation)> = None;
        for part in parts {
            task.check()?;
            match part {
                Part::Table(table) => groups = Some(*table),
                Part::States(states) => match &mut groups {
                    Some(groups) => groups.merge(states)?,
                    None => {
                        let reservation = self.setup.reservation();
                        let mut merged = Groups::new(self.shared.clone(), reservation)?;
                        merged.merge(states)?;
                        groups = Some(merged);
                    }
                },
                Part::Single(accumulators, bytes) => match &mut single {
                    Some((single, reservation)) => {
                        single.merge(accumulators)?;
                        reservation.resize(single.bytes())?;
                    }
                    None => single = Some((accumulators, bytes)),
                },
            }
        }
        if let Some((single, _reservation)) = single {
            return Ok(Some((single.emit(&self.shared)?, None)));
        }
        let has_sets = self.shared.config.group_by.set_ids.is_some();
        if unit == 0 && has_sets && !self.shared.saw_rows.load(Ordering::Relaxed) {
            let mut empty = Groups::new(self.shared.clone(), self.setup.reservation())?;
            empty.add_empty_sets()?;
            groups = Some(empty);
        }
        let Some(groups) = groups.filter(|groups| groups.len() > 0) else { return Ok(None) };
        let (batch, reservation) = groups.emit()?;
        Ok(Some((batch, Some(reservation))))
    }
}

type Merged = (RecordBatch, Option<Reservation>);

impl LocalSource for LocalOutput {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        loop {
            if let Some((batch, offset, _)) = &mut self.emitting {
                let rows = self.shared.config.batch_rows.min(batch.num_rows() - *offset);
                if rows > 0 {
                    let slice = batch.slice(*offset, rows);
                    *offset += rows;
                    return Ok(SourceResult::Batch(Batch::new(slice)));
                }
                self.emitting = None;
            }
            match self.source.claim() {
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
                Claim::Unit((unit, parts)) => {
                    let merged = self.merge(unit, parts, task)?;
                    self.emitting = merged.map(|(batch, bytes)| (batch, 0, bytes));
                }
            }
        }
    }
}

/// Columns as a batch of `schema`. An accumulator may answer another encoding of the same values
/// than it promised (a plain array for a dictionary), which is cast.
pub(super) fn assemble(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch> {
    let columns = columns
        .into_iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(column)
            } else {
                cast(&column, field.data_type())
            }
        })
        .collect::<Result<Vec<_>, _>>()
        .or_fail()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).or_fail()
}
