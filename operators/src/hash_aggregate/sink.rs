//! Aggregate sink: local tables, partitioned when they are full and at the end.

use std::sync::{Arc, atomic::Ordering};

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Reservation, Sink,
        SinkResult,
    },
};
use gatework_shared_state::{Gate, aggregate::AggregateProducer};

use super::{
    config::AggregatePlan, groups::AggregatePart, task_groups::TaskGroups, ungrouped::Accumulators,
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
            let accumulators = Some(Accumulators::new(&plan)?);
            let distinct = plan.distinct.iter();
            let distinct =
                distinct.map(|values| TaskGroups::new(values.plan.clone(), context.clone()));
            let distinct = distinct.collect::<Result<_>>()?;
            let (memory, producer) = (context.reservation(), Some(producer));
            let state = UngroupedState { plan, accumulators, distinct, memory, producer };
            return Ok(Box::new(BreakerSink::new(state, context, closed)));
        }
        let groups = TaskGroups::new(plan.clone(), context.clone())?;
        let state = GroupedState { plan, groups, producer: Some(producer) };
        Ok(Box::new(BreakerSink::new(state, context, closed)))
    }
}

/// The groups of one task.
struct GroupedState {
    plan: Arc<AggregatePlan>,
    groups: TaskGroups,
    producer: Option<AggregateProducer<AggregatePart>>,
}

impl BreakerState for GroupedState {
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        self.plan.saw_rows.store(true, Ordering::Relaxed);
        self.groups.add(&apply_selection(batch)?, task)?;
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.groups.reserve()
    }

    fn reclaimable_bytes(&self) -> usize {
        self.groups.reclaimable_bytes()
    }

    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        self.groups.start_spill(task)
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
        self.groups.poll_write()
    }

    fn end_input(&mut self, task: &DriverContext) -> Result<bool> {
        self.groups.end_input(task)
    }

    fn publish(&mut self, wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        if wanted && let Some(gate) = self.groups.finish()? {
            return Ok(Some(gate));
        }
        if let Some(producer) = self.producer.take() {
            producer.publish(self.groups.take_parts(wanted)?);
        }
        Ok(None)
    }
}

/// The accumulators of one task's rows, without keys, and the distinct values to count.
struct UngroupedState {
    plan: Arc<AggregatePlan>,
    accumulators: Option<Accumulators>,
    /// The values of each of [`AggregatePlan::distinct`].
    distinct: Vec<TaskGroups>,
    memory: Reservation,
    producer: Option<AggregateProducer<AggregatePart>>,
}

impl BreakerState for UngroupedState {
    fn add(&mut self, batch: Batch, task: &DriverContext) -> Result<SinkResult> {
        let Self { plan, accumulators: Some(accumulators), distinct, .. } = self else {
            return Ok(SinkResult::NeedInput);
        };
        for_each_slice(&apply_selection(batch)?, &plan.inputs, task, |slice| {
            accumulators.update(plan, slice, distinct, task)
        })?;
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(self.accumulators.as_ref().map_or(0, Accumulators::bytes))?;
        self.distinct.iter_mut().try_for_each(TaskGroups::reserve)
    }

    fn reclaimable_bytes(&self) -> usize {
        self.distinct.iter().map(TaskGroups::reclaimable_bytes).sum()
    }

    fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        match self.distinct.iter_mut().max_by_key(|values| values.reclaimable_bytes()) {
            Some(largest) => largest.start_spill(task),
            None => Ok(SpillStart::Impossible),
        }
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
        for values in &mut self.distinct {
            if let Some(gate) = values.poll_write()? {
                return Ok(Some(gate));
            }
        }
        Ok(None)
    }

    fn publish(&mut self, wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        for values in self.distinct.iter_mut().filter(|_| wanted) {
            if let Some(gate) = values.finish()? {
                return Ok(Some(gate));
            }
        }
        if let (Some(producer), Some(accumulators)) =
            (self.producer.take(), self.accumulators.take())
        {
            let mut parts = vec![vec![AggregatePart::Single(accumulators, self.memory.take())]];
            for values in &mut self.distinct {
                parts.extend(values.take_parts(wanted)?);
            }
            producer.publish(parts);
        }
        Ok(None)
    }
}
