//! Operator on a join's probe side: builds the table together with the other probe tasks and looks
//! its batches up. Afterwards it outputs unmatched build rows and joins spilled partitions.

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
    compute::{filter, filter_record_batch},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult, PerTask,
        StartResult,
    },
};
use gatework_shared_state::{
    Gate,
    join_bridge::{BuildStep, ProbeConsumer, UnmatchedScan},
};
use parking_lot::Mutex;

use super::{
    build_spill::{BuildInput, FinalizeResult, TableFinalizer},
    config::HashJoinPlan,
    lookup::DictionaryLookup,
    probe_batch::{NextMatches, ProbeBatch},
    spilled_partition::{JoinOutput, SpilledPartitionJoin},
    table::{BuildSide, JoinHashTable},
    unmatched_scan::BuildSideOutput,
};
use crate::{
    ResultExt, apply_selection,
    chunked::LongestEntries,
    dictionary::decode_columns,
    keys::{KeyEncoder, KeyNulls},
    runtime_filter::FilterProducer,
    spill::{PartitionedSpill, partition_of},
};

/// Operator on a join's probe side.
#[derive(Debug)]
pub struct HashJoinProbe {
    plan: Arc<HashJoinPlan>,
    consumers: PerTask<ProbeConsumer<BuildInput, BuildSide>>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
}

impl HashJoinProbe {
    pub(super) fn new(
        plan: Arc<HashJoinPlan>,
        consumers: PerTask<ProbeConsumer<BuildInput, BuildSide>>,
        filter: Arc<Mutex<Option<FilterProducer>>>,
    ) -> Self {
        Self { plan, consumers, filter }
    }
}

impl Operator for HashJoinProbe {
    fn name(&self) -> &str {
        "hash join probe"
    }

    fn take_dictionaries(&self, output: &[usize]) -> Vec<usize> {
        let mut taken = self.plan.layout.take_dictionaries(output);
        let plain = self.plan.plain_probe_columns();
        taken.retain(|column| !plain.contains(column));
        if let Some(key) = self.plan.probe_key_column()
            && !plain.contains(&key)
            && !self.plan.layout.has_probe_column(key)
        {
            taken.push(key);
        }
        taken
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        self.plan.layout.check_dictionaries()?;
        Ok(Box::new(LocalProbe {
            plan: self.plan.clone(),
            consumer: self.consumers.take(&context)?,
            filter: self.filter.clone(),
            context,
            finalizer: None,
            build_side: None,
            table: None,
            probe_batch: None,
            longest_entries: LongestEntries::default(),
            dictionary_lookup: DictionaryLookup::default(),
            spill: None,
            num_unmatched_morsels: None,
            unmatched_scan: None,
            partition_join: None,
        }))
    }
}

struct LocalProbe {
    plan: Arc<HashJoinPlan>,
    consumer: ProbeConsumer<BuildInput, BuildSide>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
    context: OperatorContext,
    finalizer: Option<Box<TableFinalizer>>,
    build_side: Option<Arc<BuildSide>>,
    /// The table of `build_side`, until the probe is finished.
    table: Option<Arc<JoinHashTable>>,
    probe_batch: Option<ProbeBatch>,
    /// Longest entries of the probe side's dictionaries.
    longest_entries: LongestEntries,
    /// The keys of the probe side's current dictionary.
    dictionary_lookup: DictionaryLookup,
    /// Rows whose matches are spilled; `None` if no build rows are.
    spill: Option<PartitionedSpill>,
    /// Number of unmatched-scan morsels, known after the probe.
    num_unmatched_morsels: Option<usize>,
    /// The current unmatched-scan morsel of the table.
    unmatched_scan: Option<(Arc<JoinHashTable>, BuildSideOutput)>,
    /// The spilled partition that is being joined.
    partition_join: Option<SpilledPartitionJoin>,
}

impl LocalProbe {
    /// Finalizes the table, if this task was assigned to. Returns the gate of a spill in progress.
    fn finalize(&mut self) -> Result<Option<Gate>> {
        let Some(finalizer) = &mut self.finalizer else { return Ok(None) };
        match finalizer.poll()? {
            FinalizeResult::Blocked(gate) => return Ok(Some(gate)),
            FinalizeResult::Table(build_side, morsels) => {
                self.context.metrics().add("build_input_rows", build_side.rows() as u64);
                self.consumer.finish_finalize(build_side, morsels);
            }
        }
        self.finalizer = None;
        Ok(None)
    }

    fn build(&mut self, build_side: &BuildSide, morsel: usize, task: &DriverContext) -> Result<()> {
        let table = build_side.table()?;
        table.build(morsel, task)?;
        if self.consumer.finish_build_morsel() {
            table.finish()?;
            if let Some(producer) = self.filter.lock().take() {
                self.plan.publish(build_side, producer)?;
            }
            self.consumer.publish_table();
        }
        Ok(())
    }

    fn start_batch(&mut self, batch: Batch) -> Result<()> {
        let sequence = batch.sequence();
        let mut data = apply_selection(batch)?;
        if self.spill.is_some() {
            data = decode_columns(data, &self.plan.config.right_schema).query_err()?;
        }
        let mut columns = self.plan.probe_keys(&data)?;
        if self.plan.config.null_aware {
            self.plan.probe_saw_rows.store(true, Ordering::Relaxed);
            if columns.iter().any(|column| column.logical_null_count() > 0) {
                self.plan.probe_saw_null.store(true, Ordering::Relaxed);
            }
        }
        if let Some(in_memory) = self.spill_rows(&data, &columns)? {
            if in_memory.true_count() == 0 {
                return Ok(());
            }
            data = filter_record_batch(&data, &in_memory).query_err()?;
            for column in &mut columns {
                *column = filter(column, &in_memory).query_err()?;
            }
        }
        let Some(table) = &self.table else {
            return Err(Error::InvalidConfiguration(
                "the join probe received a batch before its hash table".into(),
            ));
        };
        let lookup = &mut self.dictionary_lookup;
        let keys = self.plan.look_up(table, &data, columns, lookup)?;
        self.probe_batch = Some(self.plan.probe_batch(data, sequence, keys));
        Ok(())
    }

    /// Spills the rows whose matches are spilled. Returns which rows remain, `None` if all do.
    fn spill_rows(
        &mut self,
        data: &RecordBatch,
        keys: &[ArrayRef],
    ) -> Result<Option<BooleanArray>> {
        let (Some(spill), Some(build_side)) = (&mut self.spill, &self.build_side) else {
            return Ok(None);
        };
        let mut hashes = Vec::new();
        self.plan.encoder.encode(keys).query_err()?.hash_into(&mut hashes);
        let mut spilled = BooleanBuffer::collect_bool(hashes.len(), |row| {
            build_side.spilled_partitions.contains(partition_of(hashes[row], 0))
        });
        if self.plan.null_keys == KeyNulls::NeverMatch
            && let Some(valid) = KeyEncoder::without_nulls(keys)
        {
            spilled = &spilled & valid.inner();
        }
        if spilled.count_set_bits() == 0 {
            return Ok(None);
        }
        let in_memory = BooleanArray::new(!&spilled, None);
        let spilled = BooleanArray::new(spilled, None);
        let mut bits = spilled.values().iter();
        hashes.retain(|_| bits.next() == Some(true));
        let spilled = filter_record_batch(&self.plan.keyed(data, keys)?, &spilled).query_err()?;
        spill.add(spilled, &hashes, None)?;
        Ok(Some(in_memory))
    }

    /// Returns the next output of the current batch.
    fn advance(&mut self, task: &DriverContext) -> Result<OperatorResult> {
        let (Some(table), Some(probe_batch)) = (&self.table, &mut self.probe_batch) else {
            return Ok(OperatorResult::NeedInput);
        };
        match self.plan.next_matches(table, probe_batch, &mut self.longest_entries, task)? {
            NextMatches::Batch(pairs) => return Ok(OperatorResult::HaveMoreOutput(pairs)),
            NextMatches::Yield => return Ok(OperatorResult::Yield),
            NextMatches::End => {}
        }
        match self.probe_batch.take() {
            Some(probe_batch) => self.plan.unmatched_probe_rows(probe_batch),
            None => Ok(OperatorResult::NeedInput),
        }
    }

    /// Reports, once, that this task's input has ended. Returns the gate of a spill in progress.
    fn finish_probe(&mut self) -> Result<Option<Gate>> {
        let Some(build_side) = &self.build_side else { return Ok(None) };
        if self.num_unmatched_morsels.is_some() {
            return Ok(None);
        }
        let mut segments = Vec::new();
        if let Some(spill) = &mut self.spill {
            if let Some(gate) = spill.poll_all(true)? {
                return Ok(Some(gate));
            }
            segments = self.spill.take().map(|spill| spill.into_parts().1).unwrap_or_default();
        }
        self.table = None;
        self.dictionary_lookup = DictionaryLookup::default();
        let morsels = build_side.finish_probe(segments);
        self.num_unmatched_morsels = Some(morsels);
        self.consumer.finish_probe(morsels);
        Ok(None)
    }

    /// Starts unmatched-scan morsel `morsel`: one of the table, or a spilled partition.
    fn start_unmatched_morsel(&mut self, build_side: &BuildSide, morsel: usize) -> Result<()> {
        if let Some(table) = build_side.table_of_morsel(morsel)? {
            let output = self.plan.build_side_output(&table, morsel);
            self.unmatched_scan = Some((table, output));
        } else if let Some((build, probe)) = build_side.take_partition(morsel) {
            let (plan, context) = (self.plan.clone(), self.context.clone());
            self.partition_join = Some(SpilledPartitionJoin::new(plan, context, build, probe));
        }
        Ok(())
    }

    /// Returns the next rows of the table's current unmatched-scan morsel.
    fn next_unmatched_batch(&mut self) -> Result<Option<Batch>> {
        let Some((table, output)) = &mut self.unmatched_scan else { return Ok(None) };
        let batch = self.plan.next_build_side_batch(table, output)?;
        if batch.is_none() {
            self.unmatched_scan = None;
        }
        Ok(batch.map(Batch::new))
    }
}

impl Drop for LocalProbe {
    fn drop(&mut self) {
        // This task's output is not needed any more, but other probe tasks may still need the
        // table.
        if let Some(finalizer) = self.finalizer.take() {
            self.consumer.hand_over_finalize(vec![BuildInput::Unfinished(finalizer)]);
        }
    }
}

impl LocalOperator for LocalProbe {
    fn abort(&mut self) {
        self.finalizer = None;
    }

    fn start(&mut self, task: &DriverContext) -> Result<StartResult> {
        loop {
            task.check_cancelled()?;
            if let Some(gate) = self.finalize()? {
                return Ok(StartResult::Blocked(gate.into()));
            }
            match self.consumer.next_build_step() {
                BuildStep::Finalize(inputs) => {
                    let (plan, context) = (self.plan.clone(), self.context.clone());
                    self.finalizer = Some(TableFinalizer::new(plan, context, inputs));
                }
                BuildStep::Morsel(build_side, morsel) => {
                    self.build(&build_side, morsel, task)?;
                    if task.should_yield() {
                        return Ok(StartResult::Yield);
                    }
                }
                BuildStep::Blocked(gate) => return Ok(StartResult::Blocked(gate.into())),
                BuildStep::Aborted => return Err(Error::ProducerAborted),
                BuildStep::Ready(build_side) => {
                    let empty_result =
                        build_side.rows() == 0 && !self.plan.layout.preserves_probe_rows();
                    self.table = Some(build_side.table()?);
                    if !build_side.spilled_partitions.is_empty() {
                        self.spill = Some(PartitionedSpill::new(self.context.clone(), 0, 0));
                    }
                    self.build_side = Some(build_side);
                    return Ok(if empty_result {
                        StartResult::Finished
                    } else {
                        StartResult::Ready
                    });
                }
            }
        }
    }

    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.start_batch(batch)?;
        }
        if let Some(spill) = &mut self.spill
            && let Some(gate) = spill.poll_all(false)?
        {
            return Ok(OperatorResult::Blocked(gate.into()));
        }
        self.advance(task)
    }

    fn finish(&mut self, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(gate) = self.finish_probe()? {
            return Ok(OperatorResult::Blocked(gate.into()));
        }
        if self.num_unmatched_morsels.is_none_or(|morsels| morsels == 0) {
            return Ok(OperatorResult::Finished);
        }
        loop {
            if let Some(batch) = self.next_unmatched_batch()? {
                return Ok(OperatorResult::HaveMoreOutput(batch));
            }
            if let Some(partition_join) = &mut self.partition_join {
                match partition_join.next(task)? {
                    JoinOutput::Batch(batch) => return Ok(OperatorResult::HaveMoreOutput(batch)),
                    JoinOutput::Blocked(gate) => return Ok(OperatorResult::Blocked(gate.into())),
                    JoinOutput::Yield => return Ok(OperatorResult::Yield),
                    JoinOutput::End => self.partition_join = None,
                }
            }
            match self.consumer.next_unmatched_scan() {
                UnmatchedScan::Morsel(build_side, morsel) => {
                    self.start_unmatched_morsel(&build_side, morsel)?
                }
                UnmatchedScan::Blocked(gate) => return Ok(OperatorResult::Blocked(gate.into())),
                UnmatchedScan::Finished => return Ok(OperatorResult::Finished),
                UnmatchedScan::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
