//! Aggregate sink: local tables, partitioned when they are full and at the end.

use std::sync::{Arc, atomic::Ordering};

use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Reservation, Sink,
        SinkResult,
    },
};
use gatework_shared_state::{Gate, aggregate::AggregateProducer};

use super::{
    config::AggregatePlan,
    groups::{AggregateHashTable, AggregatePart},
    spiller::AggregateSpiller,
    ungrouped::Accumulators,
};
use crate::{
    apply_selection,
    slices::for_each_slice,
    spill::{BreakerSink, BreakerState, SpillStart},
};

/// The sink of an aggregate.
#[derive(Debug)]
pub struct AggregateSink {
    plan: Arc<AggregatePlan>,
    producers: PerTask<AggregateProducer<AggregatePart>>,
}

impl AggregateSink {
    pub(super) fn new(
        plan: Arc<AggregatePlan>,
        producers: PerTask<AggregateProducer<AggregatePart>>,
    ) -> Self {
        Self { plan, producers }
    }
}

impl Sink for AggregateSink {
    fn name(&self) -> &str {
        "aggregate sink"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn dictionary_columns(&self) -> Vec<usize> {
        self.plan.dictionary_columns.clone()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&context)?;
        let closed = producer.closed().clone();
        let plan = self.plan.clone();
        if self.plan.config.group_by.is_ungrouped() {
            let accumulators = Some(Accumulators::new(&self.plan)?);
            let memory = context.reservation();
            let state = UngroupedState { plan, accumulators, memory, producer: Some(producer) };
            return Ok(Box::new(BreakerSink::new(state, context, closed)));
        }
        let mut groups = AggregateHashTable::new(self.plan.clone(), &context)?.with_finest()?;
        if plan.sinks > 1 {
            groups = groups.with_bypass()?;
        }
        let state = GroupedState {
            groups,
            spiller: AggregateSpiller::new(self.plan.clone(), context.clone(), 0),
            parts_reserved: 0,
            plan,
            context: context.clone(),
            producer: Some(producer),
        };
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

/// The groups of one task.
struct GroupedState {
    plan: Arc<AggregatePlan>,
    context: OperatorContext,
    groups: AggregateHashTable,
    spiller: AggregateSpiller,
    /// Bytes reserved for the parts in `spiller`.
    parts_reserved: usize,
    producer: Option<AggregateProducer<AggregatePart>>,
}

impl GroupedState {
    /// Empties a full table into parts.
    fn partition(&mut self) -> Result<()> {
        let denied = self.spiller.partition(&mut self.groups, true)?;
        self.parts_reserved = self.spiller.reserved();
        // The parts exist; only spilling them releases their memory.
        denied.map_or(Ok(()), |denied| self.spill(denied.into()))
    }

    /// Starts to spill all groups; fails with `error` if that is impossible.
    fn spill(&mut self, error: Error) -> Result<()> {
        self.parts_reserved = 0;
        match self.spiller.spill(&mut self.groups)? {
            true => Ok(()),
            false => Err(error),
        }
    }
}

impl BreakerState for GroupedState {
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        self.plan.saw_rows.store(true, Ordering::Relaxed);
        self.groups.update(&apply_selection(batch)?, task)?;
        let is_full = self.plan.sinks > 1 && self.groups.is_full();
        if is_full && self.reserve().is_ok() {
            self.partition()?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.groups.is_empty() { Ok(()) } else { self.groups.update_reservation() }
    }

    fn reclaimable_bytes(&self) -> usize {
        self.groups.reserved() + self.parts_reserved
    }

    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        if self.groups.merge_finest(task)? {
            // If it is denied: the write below releases memory.
            let _reserved = self.groups.update_reservation();
        }
        self.parts_reserved = 0;
        Ok(match self.spiller.spill(&mut self.groups)? {
            true => SpillStart::Writing,
            false => SpillStart::Impossible,
        })
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
        self.spiller.poll_write()
    }

    fn end_input(&mut self, task: &DriverContext) -> Result<bool> {
        self.groups.finish_finest(task)
    }

    fn publish(&mut self, wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        let whole = self.plan.sinks == 1 && !self.spiller.is_spilled();
        if wanted && !whole && self.groups.num_groups() > 0 {
            match self.spiller.is_spilled() {
                // Partitions are merged one at a time; groups of the others would occupy memory
                // meanwhile.
                true => self
                    .spill(Error::Internal("groups that were spilled cannot be spilled".into()))?,
                false => {
                    let denied = self.spiller.partition(&mut self.groups, false)?;
                    denied.map_or(Ok(()), |denied| self.spill(denied.into()))?;
                }
            }
            if let Some(gate) = self.spiller.poll_write()? {
                return Ok(Some(gate));
            }
        }
        let Some(producer) = self.producer.take() else { return Ok(None) };
        let mut parts = self.spiller.take();
        if wanted && whole {
            let empty = AggregateHashTable::new(self.plan.clone(), &self.context)?;
            let mut groups = std::mem::replace(&mut self.groups, empty);
            groups.settle()?;
            parts[0].push(AggregatePart::Table(Box::new(groups)));
        }
        producer.publish(parts);
        Ok(None)
    }
}

/// The accumulators of one task's rows, without keys.
struct UngroupedState {
    plan: Arc<AggregatePlan>,
    accumulators: Option<Accumulators>,
    memory: Reservation,
    producer: Option<AggregateProducer<AggregatePart>>,
}

impl BreakerState for UngroupedState {
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        if let Some(accumulators) = &mut self.accumulators {
            for_each_slice(&apply_selection(batch)?, &self.plan.inputs, task, |slice| {
                accumulators.update(&self.plan, slice)
            })?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(self.accumulators.as_ref().map_or(0, Accumulators::bytes))
    }

    fn publish(&mut self, _wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        if let (Some(producer), Some(accumulators)) =
            (self.producer.take(), self.accumulators.take())
        {
            producer.publish(vec![vec![AggregatePart::Single(accumulators, self.memory.take())]]);
        }
        Ok(None)
    }
}
