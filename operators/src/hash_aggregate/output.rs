//! The source of an aggregate: claims partitions, merges what all sinks had, and emits the groups.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::SchemaRef,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, LocalSource, Pending, Reservation, Setup, Slots, Source, SourceResult, Spilled,
        TaskContext,
    },
};
use gatework_shared_state::{Claim, Gate, aggregate::AggregateSource};

use super::{
    config::Shared,
    groups::{Groups, Part, States},
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
            merging: None,
            emitting: None,
        }))
    }
}

struct LocalOutput {
    shared: Arc<Shared>,
    source: AggregateSource<Part>,
    setup: Setup,
    merging: Option<Merging>,
    /// Merged groups, the offset of the first that has not been emitted, and their bytes.
    emitting: Option<(RecordBatch, usize, Option<Reservation>)>,
}

/// A unit whose parts are being merged.
struct Merging {
    unit: usize,
    groups: Option<Groups>,
    single: Option<(Accumulators, Reservation)>,
    /// Spilled batches that have not been asked for.
    spilled: VecDeque<(Arc<dyn Spilled>, usize)>,
    /// Those that have been, in order.
    reading: VecDeque<Pending<RecordBatch>>,
}

/// Spilled batches that are read ahead.
const READ_AHEAD: usize = 2;

impl LocalOutput {
    /// Merges what is in memory.
    fn begin(&self, unit: usize, parts: Vec<Part>, task: &TaskContext) -> Result<Merging> {
        let (spilled, reading) = (VecDeque::new(), VecDeque::new());
        let mut merging = Merging { unit, groups: None, single: None, spilled, reading };
        for part in parts {
            task.check()?;
            match part {
                Part::Table(table) => merging.groups = Some(*table),
                Part::States(states) => self.add(&mut merging, states)?,
                Part::Spilled(file, batches) => {
                    merging.spilled.extend(batches.map(|batch| (file.clone(), batch)));
                }
                Part::Single(accumulators, bytes) => match &mut merging.single {
                    Some((single, reservation)) => {
                        single.merge(accumulators)?;
                        reservation.resize(single.bytes())?;
                    }
                    None => merging.single = Some((accumulators, bytes)),
                },
            }
        }
        Ok(merging)
    }

    fn add(&self, merging: &mut Merging, states: States) -> Result<()> {
        if merging.groups.is_none() {
            let reservation = self.setup.reservation();
            merging.groups = Some(Groups::new(self.shared.clone(), reservation)?);
        }
        match &mut merging.groups {
            Some(groups) => groups.merge(states),
            None => Ok(()),
        }
    }

    /// Merges what was spilled; the gate of what is not there yet.
    fn go_on(&self, merging: &mut Merging, task: &TaskContext) -> Result<Option<Gate>> {
        loop {
            task.check()?;
            while merging.reading.len() < READ_AHEAD
                && let Some((file, batch)) = merging.spilled.pop_front()
            {
                merging.reading.push_back(self.setup.unspill(&file, batch));
            }
            let Some(next) = merging.reading.front() else { return Ok(None) };
            let Some(batch) = next.take() else { return Ok(Some(next.gate().clone())) };
            merging.reading.pop_front();
            self.add(merging, States::from_batch(&batch?, &self.shared)?)?;
        }
    }

    /// The groups of a merged unit.
    fn emit(&self, merging: Merging) -> Result<Option<Merged>> {
        let Merging { unit, mut groups, single, .. } = merging;
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
            if let Some(mut merging) = self.merging.take() {
                if let Some(gate) = self.go_on(&mut merging, task)? {
                    self.merging = Some(merging);
                    return Ok(SourceResult::Blocked(gate.into()));
                }
                self.emitting = self.emit(merging)?.map(|(batch, bytes)| (batch, 0, bytes));
                continue;
            }
            match self.source.claim() {
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
                Claim::Unit((unit, parts)) => self.merging = Some(self.begin(unit, parts, task)?),
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
