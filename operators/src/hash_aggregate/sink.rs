//! The sink of an aggregate: local tables, cut into partitions when they are full and at the end.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask, ReclaimResult,
        Sink, SinkResult,
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
    spill::{DeferredReservation, nothing_to_spill_error},
};

/// Groups in a local table at which it is emptied, if there are other tables to be merged with: at
/// some ten bytes a slot and a key and state each, the table stays within a core's own cache.
const FULL_TABLE_GROUPS: usize = 1 << 16;

/// The sink of an aggregate.
#[derive(Debug)]
pub struct AggregateSink {
    shared: Arc<AggregatePlan>,
    producers: PerTask<AggregateProducer<AggregatePart>>,
}

impl AggregateSink {
    pub(super) fn new(
        shared: Arc<AggregatePlan>,
        producers: PerTask<AggregateProducer<AggregatePart>>,
    ) -> Self {
        Self { shared, producers }
    }
}

impl Sink for AggregateSink {
    fn name(&self) -> &str {
        "aggregate sink"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&setup)?;
        let closed = producer.closed().clone();
        if self.shared.config.group_by.is_ungrouped() {
            return Ok(Box::new(UngroupedSink {
                accumulators: Some(Accumulators::new(&self.shared)?),
                memory: DeferredReservation::new(setup),
                shared: self.shared.clone(),
                producer: Some(producer),
                closed,
            }));
        }
        Ok(Box::new(GroupedSink {
            groups: Some(AggregateHashTable::new(self.shared.clone(), &setup)?),
            spiller: AggregateSpiller::new(self.shared.clone(), setup.clone(), 0),
            parts_reserved: 0,
            denied: None,
            next: None,
            shared: self.shared.clone(),
            producer: Some(producer),
            closed,
            setup,
        }))
    }
}

struct GroupedSink {
    shared: Arc<AggregatePlan>,
    setup: OperatorContext,
    groups: Option<AggregateHashTable>,
    spiller: AggregateSpiller,
    /// Bytes that are reserved for the parts in `spiller`.
    parts_reserved: usize,
    /// What is in the table has not been reserved.
    denied: Option<Error>,
    /// A batch that came while groups were being written.
    next: Option<Batch>,
    producer: Option<AggregateProducer<AggregatePart>>,
    closed: Gate,
}

impl GroupedSink {
    /// Aggregates `data`.
    fn update(&mut self, data: &RecordBatch, task: &DriverContext) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Ok(()) };
        let fits = groups.update(data, task);
        if fits.is_ok() && self.shared.sinks > 1 && groups.len() >= FULL_TABLE_GROUPS {
            match self.spiller.partition(groups, true) {
                // The parts are made, and can only be written.
                Err(error @ Error::OutOfMemory { .. }) => return self.spill(error),
                other => other?,
            }
            self.parts_reserved = self.spiller.reserved();
        }
        match fits {
            // What did not fit is in the table all the same.
            Err(error @ Error::OutOfMemory { .. }) => self.denied = Some(error),
            other => other?,
        }
        if self.setup.can_spill() {
            self.setup.set_reclaimable_bytes(groups.reserved() + self.parts_reserved);
        }
        Ok(())
    }

    /// If memory was refused: has another one give some back, and answers where to wait for that, or begins
    /// to spill.
    fn resolve_denial(&mut self) -> Result<Option<Gate>> {
        let (Some(groups), Some(error)) = (&mut self.groups, self.denied.take()) else {
            return Ok(None);
        };
        match groups.update_reservation() {
            Err(Error::OutOfMemory { .. }) => {}
            other => return other.map(|()| None),
        }
        if let Some(gate) = self.setup.request_reclaim(groups.reserved()) {
            self.denied = Some(error);
            return Ok(Some(gate));
        }
        self.spill(error)?;
        Ok(None)
    }

    /// Begins to spill all groups.
    fn spill(&mut self, error: Error) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Err(error) };
        self.spiller.spill(groups, error)?;
        (self.parts_reserved, self.denied) = (0, None);
        self.setup.set_reclaimable_bytes(0);
        Ok(())
    }

    /// The gate to wait at before more rows are taken.
    fn poll_memory(&mut self) -> Result<Option<Gate>> {
        loop {
            if let Some(gate) = self.spiller.poll_write()? {
                return Ok(Some(gate));
            }
            if self.denied.is_none() {
                return Ok(None);
            }
            if let Some(gate) = self.resolve_denial()? {
                return Ok(Some(gate));
            }
        }
    }
}

impl LocalSink for GroupedSink {
    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        self.next = batch.or_else(|| self.next.take());
        if let Some(gate) = self.poll_memory()? {
            return Ok(SinkResult::Blocked(gate.into()));
        }
        if let Some(batch) = self.next.take() {
            self.shared.saw_rows.store(true, Ordering::Relaxed);
            self.update(&apply_selection(batch)?, task)?;
        }
        Ok(match self.poll_memory()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn reclaim(&mut self, _task: &DriverContext) -> Result<ReclaimResult> {
        if self.spiller.poll_write()?.is_some() {
            return Ok(ReclaimResult::Started);
        }
        let reserved =
            self.groups.as_ref().map_or(0, AggregateHashTable::reserved) + self.parts_reserved;
        if reserved == 0 || !self.setup.can_spill() {
            return Ok(ReclaimResult::NothingToReclaim);
        }
        self.spill(nothing_to_spill_error())?;
        Ok(ReclaimResult::Started)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.denied = None;
        }
        if let Some(gate) = self.poll_memory()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        if self.closed.is_ready() {
            self.groups = None;
        }
        let whole = self.shared.sinks == 1 && !self.spiller.is_spilled();
        if !whole && let Some(groups) = self.groups.as_mut().filter(|groups| groups.len() > 0) {
            let denied = match self.spiller.is_spilled() {
                // Units are merged one by one; what is left of all would be in the way.
                true => Some(nothing_to_spill_error()),
                false => match self.spiller.partition(groups, false) {
                    Err(error @ Error::OutOfMemory { .. }) => Some(error),
                    other => other.map(|()| None)?,
                },
            };
            if let Some(error) = denied {
                self.spiller.spill(groups, error)?;
            }
            if let Some(gate) = self.spiller.poll_write()? {
                return Ok(FinishResult::Blocked(gate.into()));
            }
        }
        let Some(producer) = self.producer.take() else { return Ok(FinishResult::Done) };
        let mut parts = self.spiller.take();
        if let Some(groups) = self.groups.take().filter(|_| whole) {
            parts[0].push(AggregatePart::Table(Box::new(groups)));
        }
        producer.publish(parts);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

struct UngroupedSink {
    shared: Arc<AggregatePlan>,
    accumulators: Option<Accumulators>,
    memory: DeferredReservation,
    producer: Option<AggregateProducer<AggregatePart>>,
    closed: Gate,
}

impl LocalSink for UngroupedSink {
    fn sink(&mut self, batch: Option<Batch>, task: &DriverContext) -> Result<SinkResult> {
        if let (Some(batch), Some(accumulators)) = (batch, &mut self.accumulators) {
            for_each_slice(&apply_selection(batch)?, &self.shared.inputs, task, |slice| {
                accumulators.update(&self.shared, slice)
            })?;
            self.memory.resize(accumulators.bytes())?;
        }
        Ok(match self.memory.poll()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if let (Some(producer), Some(accumulators)) =
            (self.producer.take(), self.accumulators.take())
        {
            let bytes = self.memory.reservation().take();
            producer.publish(vec![vec![AggregatePart::Single(accumulators, bytes)]]);
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}
