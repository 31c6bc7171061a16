//! The sink of an aggregate: local tables, cut into partitions when they are full and at the end.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, FinishResult, GiveBack, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext,
    },
};
use gatework_shared_state::{Gate, aggregate::AggregateSink};

use super::{
    config::Shared,
    groups::{Groups, Part},
    overflow::Overflow,
    ungrouped::Accumulators,
};
use crate::{
    compact,
    slices::for_each_slice,
    spilling::{Debt, nothing_left},
};

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

    fn holds_memory(&self) -> bool {
        true
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        let closed = sink.closed().clone();
        if self.shared.config.group_by.is_ungrouped() {
            return Ok(Box::new(UngroupedBuild {
                accumulators: Some(Accumulators::new(&self.shared)?),
                memory: Debt::new(setup),
                shared: self.shared.clone(),
                sink: Some(sink),
                closed,
            }));
        }
        Ok(Box::new(GroupedBuild {
            groups: Some(Groups::new(self.shared.clone(), &setup)?),
            overflow: Overflow::new(self.shared.clone(), setup.clone(), 0),
            parts_reserved: 0,
            refused: None,
            next: None,
            shared: self.shared.clone(),
            sink: Some(sink),
            closed,
            setup,
        }))
    }
}

struct GroupedBuild {
    shared: Arc<Shared>,
    setup: Setup,
    groups: Option<Groups>,
    overflow: Overflow,
    /// Bytes that are reserved for the parts in `overflow`.
    parts_reserved: usize,
    /// What is in the table has not been reserved.
    refused: Option<Error>,
    /// A batch that came while groups were being written.
    next: Option<Batch>,
    sink: Option<AggregateSink<Part>>,
    closed: Gate,
}

impl GroupedBuild {
    /// Aggregates `data`.
    fn update(&mut self, data: &RecordBatch, task: &TaskContext) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Ok(()) };
        let fits = groups.update(data, task);
        if fits.is_ok() && self.shared.sinks > 1 && groups.len() >= FULL_TABLE_GROUPS {
            match self.overflow.partition(groups, true) {
                // The parts are made, and can only be written.
                Err(error @ Error::OutOfMemory { .. }) => return self.spill(error),
                other => other?,
            }
            self.parts_reserved = self.overflow.reserved();
        }
        match fits {
            // What did not fit is in the table all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.refused = Some(error),
            other => other?,
        }
        if self.setup.can_spill() {
            self.setup.could_give_back(groups.reserved() + self.parts_reserved);
        }
        Ok(())
    }

    /// If memory was refused: has another one give some back, and answers where to wait for that, or begins
    /// to spill.
    fn relieve(&mut self) -> Result<Option<Gate>> {
        let (Some(groups), Some(error)) = (&mut self.groups, self.refused.take()) else {
            return Ok(None);
        };
        match groups.account() {
            Err(Error::OutOfMemory { .. }) => {}
            other => return other.map(|()| None),
        }
        if let Some(gate) = self.setup.ask_for_memory(groups.reserved()) {
            self.refused = Some(error);
            return Ok(Some(gate));
        }
        self.spill(error)?;
        Ok(None)
    }

    /// Begins to spill all groups.
    fn spill(&mut self, error: Error) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Err(error) };
        self.overflow.spill(groups, error)?;
        (self.parts_reserved, self.refused) = (0, None);
        self.setup.could_give_back(0);
        Ok(())
    }

    /// The gate to wait at before more rows are taken.
    fn waits(&mut self) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.overflow.writing()? {
                return Ok(Some(gate));
            }
            if self.refused.is_none() {
                return Ok(None);
            }
            if let Some(gate) = self.relieve()? {
                return Ok(Some(gate));
            }
        }
    }
}

impl LocalSink for GroupedBuild {
    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        self.next = batch.or_else(|| self.next.take());
        if let Some(gate) = self.waits()? {
            return Ok(SinkResult::Blocked(gate.into()));
        }
        if let Some(batch) = self.next.take() {
            self.shared.saw_rows.store(true, Ordering::Relaxed);
            self.update(&compact(batch)?, task)?;
        }
        Ok(match self.waits()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn give_back(&mut self, _task: &TaskContext) -> Result<GiveBack> {
        if self.overflow.writing()?.is_some() {
            return Ok(GiveBack::Begun);
        }
        let held = self.groups.as_ref().map_or(0, Groups::reserved) + self.parts_reserved;
        if held == 0 || !self.setup.can_spill() {
            return Ok(GiveBack::Nothing);
        }
        self.spill(nothing_left())?;
        Ok(GiveBack::Begun)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.refused = None;
        }
        if let Some(gate) = self.waits()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        if self.closed.is_ready() {
            self.groups = None;
        }
        let whole = self.shared.sinks == 1 && !self.overflow.is_spilled();
        if !whole && let Some(groups) = self.groups.as_mut().filter(|groups| groups.len() > 0) {
            let refused = match self.overflow.is_spilled() {
                // Units are merged one by one; what is left of all would be in the way.
                true => Some(nothing_left()),
                false => match self.overflow.partition(groups, false) {
                    Err(error @ Error::OutOfMemory { .. }) => Some(error),
                    other => other.map(|()| None)?,
                },
            };
            if let Some(error) = refused {
                self.overflow.spill(groups, error)?;
            }
            if let Some(gate) = self.overflow.writing()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(sink) = self.sink.take() else { return Ok(FinishResult::Done) };
        let mut parts = self.overflow.take();
        if let Some(groups) = self.groups.take().filter(|_| whole) {
            parts[0].push(Part::Table(Box::new(groups)));
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
    memory: Debt,
    sink: Option<AggregateSink<Part>>,
    closed: Gate,
}

impl LocalSink for UngroupedBuild {
    fn sink(&mut self, batch: Option<Batch>, task: &TaskContext) -> Result<SinkResult> {
        if let (Some(batch), Some(accumulators)) = (batch, &mut self.accumulators) {
            for_each_slice(&compact(batch)?, &self.shared.inputs, task, |slice| {
                accumulators.update(&self.shared, slice)
            })?;
            self.memory.set(accumulators.bytes())?;
        }
        Ok(match self.memory.settle()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let (Some(sink), Some(accumulators)) = (self.sink.take(), self.accumulators.take()) {
            let bytes = self.memory.reservation().split_off();
            sink.publish(vec![vec![Part::Single(accumulators, bytes)]]);
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
