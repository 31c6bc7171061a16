//! Aggregate sink: local tables, partitioned when they are full and at the end.

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

/// Groups at which a local table is emptied if there are several sinks. At about ten bytes per
/// slot, plus a key and a state, the table stays within a core's own cache.
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
    /// Bytes reserved for the parts in `spiller`.
    parts_reserved: usize,
    /// The denial, if the table's memory is not fully reserved.
    denied: Option<Error>,
    /// A batch that arrived while groups were being written.
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
                // The parts exist; only spilling them releases their memory.
                Err(error @ Error::OutOfMemory { .. }) => return self.spill(error),
                other => other?,
            }
            self.parts_reserved = self.spiller.reserved();
        }
        match fits {
            // The groups are in the table, although their reservation was denied.
            Err(error @ Error::OutOfMemory { .. }) => self.denied = Some(error),
            other => other?,
        }
        if self.setup.can_spill() {
            self.setup.set_reclaimable_bytes(groups.reserved() + self.parts_reserved);
        }
        Ok(())
    }

    /// Resolves a denied reservation: requests reclaim from another task and returns the gate to
    /// wait at. If no task can release memory, starts to spill.
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

    /// Starts to spill all groups.
    fn spill(&mut self, error: Error) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Err(error) };
        self.spiller.spill(groups, error)?;
        (self.parts_reserved, self.denied) = (0, None);
        self.setup.set_reclaimable_bytes(0);
        Ok(())
    }

    /// Returns the gate to wait at before the sink accepts more rows.
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
                // Partitions are merged one at a time; groups of the others would occupy memory
                // meanwhile.
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
