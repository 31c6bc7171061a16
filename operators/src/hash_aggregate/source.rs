//! Aggregate source: claims partitions, merges the parts of all sinks and emits the groups.

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
        Batch, DriverContext, LocalSource, OperatorContext, PerTask, Reservation, Source,
        SourceResult,
    },
};
use gatework_shared_state::{ClaimResult, Gate, aggregate::AggregateConsumer};

use super::{
    config::AggregatePlan,
    group_emitter::GroupEmitter,
    groups::{AggregateHashTable, AggregatePart},
    partial_states::PartialStates,
    spiller::AggregateSpiller,
    ungrouped::Accumulators,
};
use crate::{
    ResultExt,
    spill::{ReadState, SpillReader},
};

/// The source of an aggregate.
#[derive(Debug)]
pub struct AggregateSource {
    plan: Arc<AggregatePlan>,
    consumers: PerTask<AggregateConsumer<AggregatePart>>,
}

impl AggregateSource {
    pub(super) fn new(
        plan: Arc<AggregatePlan>,
        consumers: PerTask<AggregateConsumer<AggregatePart>>,
    ) -> Self {
        Self { plan, consumers }
    }
}

impl Source for AggregateSource {
    fn name(&self) -> &str {
        "aggregate source"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalAggregateSource {
            plan: self.plan.clone(),
            consumer: self.consumers.take(&context)?,
            context,
            subpartitions: Vec::new(),
            merging: None,
            emitting: None,
        }))
    }
}

struct LocalAggregateSource {
    plan: Arc<AggregatePlan>,
    consumer: AggregateConsumer<AggregatePart>,
    context: OperatorContext,
    /// Sub-partitions of a partition that did not fit into memory.
    subpartitions: Vec<AggregatePartition>,
    merging: Option<PartitionMerge>,
    /// Merged groups that have not been emitted.
    emitting: Option<GroupEmitter>,
}

/// A partition to merge.
struct AggregatePartition {
    index: usize,
    /// Number of times it was repartitioned.
    level: u32,
    parts: Vec<AggregatePart>,
}

/// A partition whose parts are being merged.
struct PartitionMerge {
    partition: AggregatePartition,
    groups: Option<AggregateHashTable>,
    single: Option<(Accumulators, Reservation)>,
    states: VecDeque<PartialStates>,
    spilled: SpillReader,
    /// Set once the groups do not fit into memory.
    spiller: Option<AggregateSpiller>,
}

impl PartitionMerge {
    fn new(mut partition: AggregatePartition, context: &OperatorContext) -> Result<Self> {
        let (mut groups, mut single) = (None, None::<(Accumulators, Reservation)>);
        let (mut states, mut spilled) = (VecDeque::new(), SpillReader::new(context.clone()));
        for part in std::mem::take(&mut partition.parts) {
            match part {
                AggregatePart::Table(table) => groups = Some(*table),
                AggregatePart::States(part) => states.push_back(part),
                AggregatePart::Spilled(file, batches) => spilled.push(&file, batches),
                AggregatePart::Single(accumulators, bytes) => match &mut single {
                    Some((single, reservation)) => {
                        single.merge(accumulators)?;
                        reservation.resize(single.bytes())?;
                    }
                    None => single = Some((accumulators, bytes)),
                },
            }
        }
        Ok(Self { partition, groups, single, states, spilled, spiller: None })
    }

    fn add(
        &mut self,
        plan: &Arc<AggregatePlan>,
        context: &OperatorContext,
        states: PartialStates,
    ) -> Result<()> {
        if self.groups.is_none() {
            let mut groups = AggregateHashTable::new(plan.clone(), context)?;
            let more = self.states.iter().map(PartialStates::len);
            groups.reserve_groups(more.chain([states.len()]))?;
            self.groups = Some(groups);
        }
        let Some(groups) = &mut self.groups else { return Ok(()) };
        groups.merge(states)?;
        let Err(denied) = groups.update_reservation() else { return Ok(()) };
        let level = self.partition.level + 1;
        let new_spiller = || AggregateSpiller::new(plan.clone(), context.clone(), level);
        match self.spiller.get_or_insert_with(new_spiller).spill(groups)? {
            true => Ok(()),
            false => Err(denied.into()),
        }
    }

    /// Returns the gate of a spill in progress.
    fn poll_write(&mut self) -> Result<Option<Gate>> {
        self.spiller.as_mut().map_or(Ok(None), AggregateSpiller::poll_write)
    }
}

impl LocalAggregateSource {
    /// Merges all parts. Returns `Blocked` while a batch is being read or written, `Yield` if the
    /// task should yield, and `None` when all parts are merged.
    fn poll_merge(
        &self,
        merging: &mut PartitionMerge,
        task: &DriverContext,
    ) -> Result<Option<SourceResult>> {
        let (plan, _) =
            self.plan.of_partition(merging.partition.index).unwrap_or((&self.plan, None));
        let context = &self.context;
        loop {
            task.check_cancelled()?;
            if let Some(gate) = merging.poll_write()? {
                return Ok(Some(SourceResult::Blocked(gate.into())));
            }
            if let Some(states) = merging.states.pop_front() {
                merging.add(plan, context, states)?;
                match task.should_yield() {
                    true => return Ok(Some(SourceResult::Yield)),
                    false => continue,
                }
            }
            match merging.spilled.poll()? {
                ReadState::Batch(batch) => {
                    merging.add(plan, context, PartialStates::from_batch(&batch, plan)?)?;
                    continue;
                }
                ReadState::Blocked(gate) => return Ok(Some(SourceResult::Blocked(gate.into()))),
                ReadState::End => {}
            }
            let remaining = merging.groups.as_mut().filter(|groups| groups.num_groups() > 0);
            let (Some(spiller), Some(groups)) = (&mut merging.spiller, remaining) else {
                return Ok(None);
            };
            if !spiller.spill(groups)? {
                return Err(Error::Internal("groups that were spilled cannot be spilled".into()));
            }
        }
    }

    /// Takes the result of a merged partition: its groups, to be emitted, or the number of its
    /// distinct values. If the groups did not fit, queues its sub-partitions instead. Returns the
    /// only row of an aggregate without keys after its last partition.
    fn finish(&mut self, merging: PartitionMerge) -> Result<Option<RecordBatch>> {
        let PartitionMerge { partition, mut groups, single, spiller, .. } = merging;
        let of_partition = self.plan.of_partition(partition.index);
        let values = of_partition.and_then(|(_, values)| values);
        if let Some(mut spiller) = spiller {
            let level = partition.level + 1;
            let parts = spiller.take().into_iter().filter(|parts| !parts.is_empty());
            let (before, index) = (self.subpartitions.len(), partition.index);
            self.subpartitions.extend(parts.map(|parts| AggregatePartition {
                index,
                level,
                parts,
            }));
            let queued = self.subpartitions.len() - before;
            if values.is_some() && queued > 0 {
                self.plan.totals.split(queued);
            }
            if values.is_none() || queued > 0 {
                return Ok(None);
            }
        }
        let totals = &self.plan.totals;
        let last = match (values, single) {
            (Some(values), _) => {
                let count = groups.as_ref().map_or(0, AggregateHashTable::num_groups);
                totals.finish_values(values, count)
            }
            (None, Some((accumulators, memory))) => totals.finish_others(accumulators, memory),
            (None, None) => {
                let has_sets = self.plan.config.group_by.set_ids.is_some();
                if partition.index == 0 && has_sets && !self.plan.saw_rows.load(Ordering::Relaxed) {
                    let mut empty = AggregateHashTable::new(self.plan.clone(), &self.context)?;
                    empty.add_empty_sets()?;
                    groups = Some(empty);
                }
                self.emitting = groups.map_or(Ok(None), |mut groups| groups.drain())?;
                None
            }
        };
        last.map(|(accumulators, counts)| accumulators.emit(&self.plan, &counts)).transpose()
    }
}

impl LocalSource for LocalAggregateSource {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        loop {
            if let Some(emitting) = &mut self.emitting {
                if let Some(batch) = emitting.next()? {
                    return Ok(SourceResult::Batch(Batch::new(batch)));
                }
                self.emitting = None;
            }
            if let Some(mut merging) = self.merging.take() {
                if let Some(paused) = self.poll_merge(&mut merging, task)? {
                    self.merging = Some(merging);
                    return Ok(paused);
                }
                match self.finish(merging)? {
                    Some(row) => return Ok(SourceResult::Batch(Batch::new(row))),
                    None => continue,
                }
            }
            if let Some(partition) = self.subpartitions.pop() {
                self.merging = Some(PartitionMerge::new(partition, &self.context)?);
                continue;
            }
            match self.consumer.claim() {
                ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                ClaimResult::Finished => return Ok(SourceResult::Finished),
                ClaimResult::Aborted => return Err(Error::ProducerAborted),
                ClaimResult::Work((index, parts)) => {
                    let partition = AggregatePartition { index, level: 0, parts };
                    self.merging = Some(PartitionMerge::new(partition, &self.context)?);
                }
            }
        }
    }
}

/// Returns `columns` as a batch of `schema`. An accumulator may return another encoding of the same
/// values than it declared, such as a plain array for a dictionary. Such a column is cast.
pub(super) fn build_output_batch(
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
        .query_err()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).query_err()
}
