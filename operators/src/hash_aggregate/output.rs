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
    pipeline::{Batch, LocalSource, Reservation, Setup, Slots, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Claim, Gate, aggregate::AggregateSource};

use super::{
    config::Shared,
    emitted::Emitted,
    groups::{Groups, Part, States},
    overflow::Overflow,
    ungrouped::Accumulators,
};
use crate::{
    OrFail,
    spilling::{Read, Reading, nothing_left},
};

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
            source: self.slots.take(&setup)?,
            setup,
            units: Vec::new(),
            merging: None,
            emitting: None,
        }))
    }
}

struct LocalOutput {
    shared: Arc<Shared>,
    source: AggregateSource<Part>,
    setup: Setup,
    /// Units of a unit that did not fit.
    units: Vec<Unit>,
    merging: Option<Merging>,
    /// Merged groups that have not been emitted.
    emitting: Option<Emitted>,
}

/// A unit to be merged.
struct Unit {
    number: usize,
    /// How often it is a part of a unit itself.
    level: u32,
    parts: Vec<Part>,
}

/// A unit whose parts are being merged.
struct Merging {
    unit: Unit,
    groups: Option<Groups>,
    single: Option<(Accumulators, Reservation)>,
    states: VecDeque<States>,
    spilled: Reading,
    /// If its groups do not fit.
    overflow: Option<Overflow>,
}

impl Merging {
    fn new(mut unit: Unit, setup: &Setup) -> Result<Self> {
        let (mut groups, mut single) = (None, None::<(Accumulators, Reservation)>);
        let (mut states, mut spilled) = (VecDeque::new(), Reading::new(setup.clone()));
        for part in std::mem::take(&mut unit.parts) {
            match part {
                Part::Table(table) => groups = Some(*table),
                Part::States(part) => states.push_back(part),
                Part::Spilled(file, batches) => spilled.push(&file, batches),
                Part::Single(accumulators, bytes) => match &mut single {
                    Some((single, reservation)) => {
                        single.merge(accumulators)?;
                        reservation.resize(single.bytes())?;
                    }
                    None => single = Some((accumulators, bytes)),
                },
            }
        }
        Ok(Self { unit, groups, single, states, spilled, overflow: None })
    }

    fn add(
        &mut self,
        shared: &Arc<Shared>,
        setup: &Setup,
        states: States,
        task: &TaskContext,
    ) -> Result<()> {
        if self.groups.is_none() {
            let mut groups = Groups::new(shared.clone(), setup)?;
            let more = self.states.iter().map(States::len);
            groups.expect(more.chain([states.len()]), task)?;
            self.groups = Some(groups);
        }
        let Some(groups) = &mut self.groups else { return Ok(()) };
        match groups.merge(states, task) {
            // What did not fit is in the table all the same.
            Err(error @ Error::OutOfMemory { .. }) => {
                let level = self.unit.level + 1;
                let overflow = || Overflow::new(shared.clone(), setup.clone(), level);
                self.overflow.get_or_insert_with(overflow).spill(groups, error)
            }
            other => other,
        }
    }

    /// The gate of a file that is being written.
    fn writing(&mut self) -> Result<Option<Gate>> {
        self.overflow.as_mut().map_or(Ok(None), Overflow::writing)
    }
}

impl LocalOutput {
    /// Merges all parts; the gate of what is not there yet.
    fn go_on(&self, merging: &mut Merging, task: &TaskContext) -> Result<Option<Gate>> {
        let (shared, setup) = (&self.shared, &self.setup);
        loop {
            task.check()?;
            if let Some(gate) = merging.writing()? {
                return Ok(Some(gate));
            }
            if let Some(states) = merging.states.pop_front() {
                merging.add(shared, setup, states, task)?;
                match task.breath() {
                    Some(gate) => return Ok(Some(gate)),
                    None => continue,
                }
            }
            match merging.spilled.next()? {
                Read::Batch(batch) => {
                    merging.add(shared, setup, States::from_batch(&batch, shared)?, task)?;
                    continue;
                }
                Read::Blocked(gate) => return Ok(Some(gate)),
                Read::End => {}
            }
            let left = merging.groups.as_mut().filter(|groups| groups.len() > 0);
            let (Some(overflow), Some(groups)) = (&mut merging.overflow, left) else {
                return Ok(None);
            };
            overflow.spill(groups, nothing_left())?;
        }
    }

    /// The groups of a merged unit; if they did not fit, its own units come next.
    fn emit(&mut self, merging: Merging) -> Result<Option<Emitted>> {
        let Merging { unit, mut groups, overflow, .. } = merging;
        if let Some(mut overflow) = overflow {
            let level = unit.level + 1;
            let parts = overflow.take().into_iter().filter(|parts| !parts.is_empty());
            self.units.extend(parts.map(|parts| Unit { number: unit.number, level, parts }));
            return Ok(None);
        }
        let has_sets = self.shared.config.group_by.set_ids.is_some();
        if unit.number == 0 && has_sets && !self.shared.saw_rows.load(Ordering::Relaxed) {
            let mut empty = Groups::new(self.shared.clone(), &self.setup)?;
            empty.add_empty_sets()?;
            groups = Some(empty);
        }
        groups.map_or(Ok(None), |mut groups| groups.drain())
    }
}

impl LocalSource for LocalOutput {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        loop {
            if let Some(emitting) = &mut self.emitting {
                if let Some(batch) = emitting.next()? {
                    return Ok(SourceResult::Batch(Batch::new(batch)));
                }
                self.emitting = None;
            }
            if let Some(mut merging) = self.merging.take() {
                if let Some(gate) = self.go_on(&mut merging, task)? {
                    self.merging = Some(merging);
                    return Ok(SourceResult::Blocked(gate.into()));
                }
                if let Some((single, _reservation)) = merging.single.take() {
                    return Ok(SourceResult::Batch(Batch::new(single.emit(&self.shared)?)));
                }
                self.emitting = self.emit(merging)?;
                continue;
            }
            if let Some(unit) = self.units.pop() {
                self.merging = Some(Merging::new(unit, &self.setup)?);
                continue;
            }
            match self.source.claim() {
                Claim::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Claim::Finished => return Ok(SourceResult::Finished),
                Claim::Aborted => return Err(Error::ProducerAborted),
                Claim::Unit((number, parts)) => {
                    let unit = Unit { number, level: 0, parts };
                    self.merging = Some(Merging::new(unit, &self.setup)?);
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
