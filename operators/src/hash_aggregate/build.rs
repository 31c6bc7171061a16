//! The sink of an aggregate: local tables, cut into partitions when they are full and at the end.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, LocalSink, Reservation, Setup, Sink, SinkResult, Slots, TaskContext,
    },
};
use gatework_shared_state::{Gate, aggregate::AggregateSink};

use super::{
    config::Shared,
    groups::{Groups, Part},
    overflow::Overflow,
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
            groups: Some(Groups::new(self.shared.clone(), &setup)?),
            overflow: Overflow::new(self.shared.clone(), setup, 0),
            shared: self.shared.clone(),
            sink: Some(sink),
            closed,
        }))
    }
}

struct GroupedBuild {
    shared: Arc<Shared>,
    groups: Option<Groups>,
    overflow: Overflow,
    sink: Option<AggregateSink<Part>>,
    closed: Gate,
}

impl GroupedBuild {
    /// Aggregates `data`, and begins to spill if that does not fit.
    fn update(&mut self, data: &RecordBatch) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Ok(()) };
        let mut fits = groups.update(data);
        if fits.is_ok() && self.shared.sinks > 1 && groups.len() >= FULL_TABLE_GROUPS {
            fits = self.overflow.partition(groups);
        }
        match fits {
            // What did not fit is in the table all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.overflow.spill(groups, error),
            other => other,
        }
    }
}

impl LocalSink for GroupedBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.shared.saw_rows.store(true, Ordering::Relaxed);
            self.update(&compact(batch)?)?;
        }
        Ok(match self.overflow.writing()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let Some(gate) = self.overflow.writing()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        if self.closed.is_ready() {
            self.groups = None;
        }
        if self.overflow.is_spilled()
            && let Some(mut groups) = self.groups.take().filter(|groups| groups.len() > 0)
        {
            // Units are merged one by one; what is left of all would be in the way.
            let error = Error::Setup("nothing is left to be spilled".into());
            self.overflow.spill(&mut groups, error)?;
            if let Some(gate) = self.overflow.writing()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let mut parts = self.overflow.take();
        if let Some(mut groups) = self.groups.take() {
            if self.shared.sinks == 1 && !self.overflow.is_spilled() {
                parts[0].push(Part::Table(Box::new(groups)));
            } else {
                groups.partition(0, &mut parts)?;
            }
        }
        sink.publish(parts);
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
