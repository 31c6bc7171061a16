//! The sink of an aggregate: local tables, cut into partitions when they are full and at the end.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, Pending, Reservation, Setup, Sink, SinkResult, Slots,
        Spilled, TaskContext,
    },
};
use gatework_shared_state::{Gate, aggregate::AggregateSink};

use super::{
    config::Shared,
    groups::{Groups, Part},
    ungrouped::Accumulators,
};
use crate::compact;

/// Groups in a local table at which it is emptied, if there are other tables to be merged with: at
/// some ten bytes a slot and a key and state each, the table stays within a core's own cache.
const FULL_TABLE_GROUPS: usize = 1 << 16;

/// The sink of an aggregate.
#[derive(Debug)]
pub struct AggregateBuild {
    shared: Arc<Shared>,
    slots: Slots<AggregateSink<Part>>,
}

impl AggregateBuild {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<AggregateSink<Part>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for AggregateBuild {
    fn name(&self) -> &str {
        "aggregate build"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        let closed = sink.closed().clone();
        if self.shared.config.group_by.is_ungrouped() {
            return Ok(Box::new(UngroupedBuild {
                accumulators: Some(Accumulators::new(&self.shared)?),
                reservation: setup.reservation(),
                shared: self.shared.clone(),
                sink: Some(sink),
                closed,
            }));
        }
        Ok(Box::new(GroupedBuild {
            groups: Some(Groups::new(self.shared.clone(), setup.reservation())?),
            parts: no_parts(&self.shared),
            writing: None,
            spilled: false,
            shared: self.shared.clone(),
            sink: Some(sink),
            closed,
            setup,
        }))
    }
}

/// A task that holds less than this is not the one that has to spill.
const SPILLED_BYTES: usize = 1 << 16;

fn no_parts(shared: &Shared) -> Vec<Vec<Part>> {
    (0..shared.units).map(|_| Vec::new()).collect()
}

struct GroupedBuild {
    shared: Arc<Shared>,
    groups: Option<Groups>,
    parts: Vec<Vec<Part>>,
    /// A file that is being written, and which of its batches belong to each unit.
    writing: Option<(Pending<Arc<dyn Spilled>>, Vec<Range<usize>>)>,
    /// Something has been spilled.
    spilled: bool,
    sink: Option<AggregateSink<Part>>,
    closed: Gate,
    setup: Setup,
}

impl GroupedBuild {
    /// Aggregates `data`, and begins to spill if that does not fit.
    fn update(&mut self, data: &RecordBatch) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Ok(()) };
        let mut fits = groups.update(data);
        if fits.is_ok() && self.shared.sinks > 1 && groups.len() >= FULL_TABLE_GROUPS {
            fits = groups.partition(&mut self.parts);
        }
        match fits {
            // What did not fit is in the table all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.spill(error),
            other => other,
        }
    }

    /// Begins to write all groups to a file because of `error`, unless that does not help.
    fn spill(&mut self, error: Error) -> Result<()> {
        if !self.setup.can_spill() {
            return Err(error);
        }
        if let Some(groups) = &mut self.groups {
            match groups.partition(&mut self.parts) {
                // What is written next gives memory back.
                Ok(()) | Err(Error::OutOfMemory { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (mut batches, mut held, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        let parts = std::mem::replace(&mut self.parts, no_parts(&self.shared));
        for (unit, parts) in parts.into_iter().enumerate() {
            let first = batches.len();
            for part in parts {
                match part {
                    Part::States(states) => {
                        let (batch, reservation) = states.into_batch(&self.shared)?;
                        batches.push(batch);
                        held.extend(reservation);
                    }
                    other => self.parts[unit].push(other),
                }
            }
            ranges.push(first..batches.len());
        }
        let bytes: usize = held.iter().map(Reservation::bytes).sum();
        if batches.is_empty() || bytes < SPILLED_BYTES && !self.spilled {
            return Err(error);
        }
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        self.setup.metrics().add("spilled rows", rows as u64);
        self.writing = Some((self.setup.spill(batches, Box::new(held))?, ranges));
        self.spilled = true;
        Ok(())
    }

    /// The gate of a file that is still being written.
    fn writing(&mut self) -> Result<Option<Gate>> {
        let Some((pending, ranges)) = &self.writing else { return Ok(None) };
        let Some(file) = pending.take() else { return Ok(Some(pending.gate().clone())) };
        let file = file?;
        self.setup.metrics().add("spilled bytes", file.bytes());
        for (parts, range) in self.parts.iter_mut().zip(ranges) {
            if !range.is_empty() {
                parts.push(Part::Spilled(file.clone(), range.clone()));
            }
        }
        self.writing = None;
        Ok(None)
    }
}

impl LocalSink for GroupedBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.shared.saw_rows.store(true, Ordering::Relaxed);
            self.update(&compact(batch)?)?;
        }
        Ok(match self.writing()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let Some(gate) = self.writing()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        if self.closed.is_ready() {
            self.groups = None;
        }
        if self.spilled && self.groups.as_ref().is_some_and(|groups| groups.len() > 0) {
            // Units are merged one by one; what is left of all would be in the way.
            self.spill(Error::Setup("nothing is left to be spilled".into()))?;
            if let Some(gate) = self.writing()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        if let Some(mut groups) = self.groups.take() {
            if self.shared.sinks == 1 && !self.spilled {
                self.parts[0].push(Part::Table(Box::new(groups)));
            } else {
                groups.partition(&mut self.parts)?;
            }
        }
        sink.publish(std::mem::take(&mut self.parts));
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

struct UngroupedBuild {
    shared: Arc<Shared>,
    accumulators: Option<Accumulators>,
    reservation: Reservation,
    sink: Option<AggregateSink<Part>>,
    closed: Gate,
}

impl LocalSink for UngroupedBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        if let (Some(batch), Some(accumulators)) = (batch, &mut self.accumulators) {
            accumulators.update(&self.shared, &compact(batch)?)?;
            self.reservation.resize(accumulators.bytes())?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let (Some(sink), Some(accumulators)) = (self.sink.take(), self.accumulators.take()) {
            let bytes = self.reservation.split_off();
            sink.publish(vec![vec![Part::Single(accumulators, bytes)]]);
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
