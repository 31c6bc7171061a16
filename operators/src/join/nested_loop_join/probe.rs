//! Probe of a nested-loop join: tests probe batches against all chunks, then outputs build rows by
//! their match bits.

use std::sync::Arc;

use arrow::{
    array::{BooleanBufferBuilder, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
};
use datafusion_common::JoinSide;
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult, PerTask,
        StartResult,
    },
};
use gatework_shared_state::join_bridge::{BuildStep, ProbeConsumer, UnmatchedScan};

use super::{
    pairs::{AllPairs, Pairs, PairsInRange},
    plan::NestedLoopJoinPlan,
    range::{Bounds, SortedKeys},
    table::{BuildPart, Chunk, Table},
};
use crate::apply_selection;

/// Maximum number of pairs in a block, which is tested at once.
const BLOCK_PAIRS: usize = 8192;

/// Operator that tests the right side's rows against the build side.
#[derive(Debug)]
pub struct NestedLoopProbe {
    consumers: PerTask<ProbeConsumer<BuildPart, Table>>,
    plan: Arc<NestedLoopJoinPlan>,
}

impl NestedLoopProbe {
    pub(super) fn new(
        consumers: Vec<ProbeConsumer<BuildPart, Table>>,
        plan: Arc<NestedLoopJoinPlan>,
    ) -> Self {
        Self { consumers: PerTask::new("nested loop join probe", consumers), plan }
    }
}

impl Operator for NestedLoopProbe {
    fn name(&self) -> &str {
        "nested-loop join probe"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalProbe {
            consumer: self.consumers.take(&context)?,
            plan: self.plan.clone(),
            context,
            table: None,
            probe_batch: None,
        }))
    }
}

struct LocalProbe {
    consumer: ProbeConsumer<BuildPart, Table>,
    plan: Arc<NestedLoopJoinPlan>,
    context: OperatorContext,
    table: Option<Arc<Table>>,
    probe_batch: Option<ProbeBatch>,
}

/// A probe batch that is tested against the chunks.
struct ProbeBatch {
    rows: RecordBatch,
    sequence: u64,
    /// A bit per row, set if it found a match; empty if the join type does not need it.
    matched: BooleanBufferBuilder,
    /// The rows in the order of the key that the filter bounds, or their bounds of the build side's
    /// key.
    sorted: Option<SortedKeys>,
    bounds: Option<Bounds>,
    chunk: usize,
    /// The remaining pairs of the current chunk; `None` before its first block.
    pairs: Option<Pairs>,
    /// Matching pairs of the current chunk that are not emitted yet.
    build_matches: Vec<u32>,
    probe_matches: Vec<u32>,
}

impl LocalOperator for LocalProbe {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        loop {
            match self.consumer.next_build_step() {
                BuildStep::Finalize(parts) => {
                    let memory = self.context.reservation();
                    let table = Table::new(parts, self.plan.layout.tracks_build_matches(), memory)?;
                    self.consumer.finish_finalize(table, 0);
                }
                // A table without build morsels is ready when it is finalized; this arm completes
                // the protocol.
                BuildStep::Morsel(..) => {
                    if self.consumer.finish_build_morsel() {
                        self.consumer.publish_table();
                    }
                }
                BuildStep::Blocked(gate) => return Ok(StartResult::Blocked(gate.into())),
                BuildStep::Ready(table) => {
                    let empty_result =
                        table.chunks.is_empty() && !self.plan.layout.preserves_probe_rows();
                    self.table = Some(table);
                    return Ok(if empty_result {
                        StartResult::Finished
                    } else {
                        StartResult::Ready
                    });
                }
                BuildStep::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }

    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            let sequence = batch.sequence();
            self.probe_batch = Some(ProbeBatch::new(apply_selection(batch)?, sequence, &self.plan));
        }
        let (Some(table), Some(probe_batch)) = (&self.table, &mut self.probe_batch) else {
            return Ok(OperatorResult::NeedInput);
        };
        if let Some(chunk) = table.chunks.get(probe_batch.chunk) {
            // `HaveMoreOutput` even without rows: between two blocks the task may yield.
            let batch = probe_batch.advance(chunk, &self.plan, task)?;
            return Ok(OperatorResult::HaveMoreOutput(
                batch.unwrap_or_else(|| self.plan.empty_batch()),
            ));
        }
        let Some(mut probe_batch) =
            self.probe_batch.take().filter(|_| self.plan.layout.tracks_probe_matches())
        else {
            return Ok(OperatorResult::NeedInput);
        };
        let matched = probe_batch.matched.finish();
        let rows = self.plan.layout.one_side(JoinSide::Right, &probe_batch.rows, matched)?;
        Ok(match rows {
            Some(rows) => OperatorResult::Batch(rows.with_sequence(probe_batch.sequence)),
            None => OperatorResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        let morsels = match &self.table {
            Some(table) if self.plan.layout.tracks_build_matches() => table.chunks.len(),
            _ => 0,
        };
        self.consumer.finish_probe(morsels);
        if morsels == 0 {
            return Ok(OperatorResult::Finished);
        }
        match self.consumer.next_unmatched_scan() {
            UnmatchedScan::Morsel(table, morsel) => {
                let chunk = &table.chunks[morsel];
                let matched = chunk.matched_rows();
                let rows = self.plan.layout.one_side(JoinSide::Left, &chunk.rows, matched)?;
                Ok(OperatorResult::HaveMoreOutput(rows.unwrap_or_else(|| self.plan.empty_batch())))
            }
            UnmatchedScan::Blocked(gate) => Ok(OperatorResult::Blocked(gate.into())),
            UnmatchedScan::Finished => Ok(OperatorResult::Finished),
            UnmatchedScan::Aborted => Err(Error::ProducerAborted),
        }
    }
}

impl ProbeBatch {
    fn new(rows: RecordBatch, sequence: u64, plan: &NestedLoopJoinPlan) -> Self {
        let bits = if plan.layout.tracks_probe_matches() { rows.num_rows() } else { 0 };
        let mut matched = BooleanBufferBuilder::new(bits);
        matched.append_n(bits, false);
        let (mut sorted, mut bounds) = (None, None);
        match &plan.range {
            Some(range) if range.sorted == JoinSide::Left => bounds = range.bounds(&rows),
            Some(range) => sorted = range.sort(&rows),
            None => {}
        }
        Self {
            rows,
            sorted,
            bounds,
            sequence,
            matched,
            chunk: 0,
            pairs: None,
            build_matches: Vec::new(),
            probe_matches: Vec::new(),
        }
    }

    /// Tests the next block of `chunk`; after its last block, moves to the next chunk.
    fn advance(
        &mut self,
        chunk: &Chunk,
        plan: &NestedLoopJoinPlan,
        task: &DriverContext,
    ) -> Result<Option<Batch>> {
        let mut pairs = match self.pairs.take() {
            Some(pairs) => pairs,
            None => self.begin(chunk, plan),
        };
        // Matches may remain that did not fit into the last batch.
        if !pairs.is_done() && self.build_matches.len() < plan.batch_size {
            self.test_block(&mut pairs, chunk, plan, task)?;
        }
        let full_batch = self.build_matches.len() >= plan.batch_size;
        if !pairs.is_done() {
            self.pairs = Some(pairs);
            return if full_batch { self.emit(chunk, plan) } else { Ok(None) };
        }
        let batch = self.emit(chunk, plan)?;
        if self.build_matches.is_empty() {
            self.chunk += 1;
        } else {
            self.pairs = Some(pairs);
        }
        Ok(batch)
    }

    /// Returns the pairs of `chunk` to test.
    fn begin(&mut self, chunk: &Chunk, plan: &NestedLoopJoinPlan) -> Pairs {
        let mut num_build_rows = chunk.rows.num_rows();
        if plan.filter.is_none() {
            // Every row has a match; no pair needs to be tested for that.
            if plan.layout.tracks_build_matches() {
                chunk.matched.set_all();
            }
            (0..self.matched.len()).for_each(|row| self.matched.set_bit(row, true));
            if !plan.layout.emits_pairs() {
                num_build_rows = 0;
            }
        }
        if let Some(pairs) = self.in_range(chunk, plan) {
            return Pairs::InRange(pairs);
        }
        Pairs::All(AllPairs::new(num_build_rows, (0..self.rows.num_rows() as u32).collect()))
    }

    /// Returns the pairs of `chunk` that lie within the bounds of the filter's condition, if it has
    /// one.
    fn in_range(&self, chunk: &Chunk, plan: &NestedLoopJoinPlan) -> Option<PairsInRange> {
        let range = plan.range.as_ref()?;
        if let (Some(sorted), Some(bounds)) = (&chunk.sorted, &self.bounds) {
            let ranges = range.ranges(sorted, bounds)?;
            return Some(PairsInRange::new(false, sorted.rows.clone(), ranges));
        }
        let (sorted, bounds) = (self.sorted.as_ref()?, range.bounds(&chunk.rows)?);
        let ranges = range.ranges(sorted, &bounds)?;
        Some(PairsInRange::new(true, sorted.rows.clone(), ranges))
    }

    /// Tests the next block of pairs and records the matches.
    fn test_block(
        &mut self,
        pairs: &mut Pairs,
        chunk: &Chunk,
        plan: &NestedLoopJoinPlan,
        task: &DriverContext,
    ) -> Result<()> {
        let max_pairs = plan.batch_size.min(BLOCK_PAIRS);
        let Some(filter) = &plan.filter else {
            let (build_rows, probe_rows) = (&mut self.build_matches, &mut self.probe_matches);
            pairs.fill(max_pairs, (|_| false, |_| false), build_rows, probe_rows);
            return Ok(());
        };
        // One match decides the output of a row.
        let decides = !plan.layout.emits_pairs();
        let known_probe = decides && plan.layout.tracks_probe_matches();
        let known_build = decides && plan.layout.tracks_build_matches();
        let (mut build_rows, mut probe_rows) =
            (Vec::with_capacity(max_pairs), Vec::with_capacity(max_pairs));
        pairs.fill(
            max_pairs,
            (
                |row| known_build && chunk.matched.is_set(row),
                |row: u32| known_probe && self.matched.get_bit(row as usize),
            ),
            &mut build_rows,
            &mut probe_rows,
        );
        if build_rows.is_empty() {
            return Ok(());
        }
        let (build_rows, probe_rows) =
            (UInt32Array::from(build_rows), UInt32Array::from(probe_rows));
        let passes = filter.evaluate(&chunk.rows, &self.rows, &build_rows, &probe_rows, task)?;
        self.record_matches(&passes, build_rows.values(), probe_rows.values(), chunk, plan);
        Ok(())
    }

    fn record_matches(
        &mut self,
        passes: &BooleanBuffer,
        build_rows: &[u32],
        probe_rows: &[u32],
        chunk: &Chunk,
        plan: &NestedLoopJoinPlan,
    ) {
        for pair in passes.set_indices() {
            if plan.layout.tracks_build_matches() {
                chunk.matched.set(build_rows[pair]);
            }
            if plan.layout.tracks_probe_matches() {
                self.matched.set_bit(probe_rows[pair] as usize, true);
            }
            if plan.layout.emits_pairs() {
                self.build_matches.push(build_rows[pair]);
                self.probe_matches.push(probe_rows[pair]);
            }
        }
    }

    /// Returns up to a batch of the matching pairs.
    fn emit(&mut self, chunk: &Chunk, plan: &NestedLoopJoinPlan) -> Result<Option<Batch>> {
        let count = self.build_matches.len().min(plan.batch_size);
        if count == 0 {
            return Ok(None);
        }
        let matches = (&self.build_matches[..count], &self.probe_matches[..count]);
        let count = plan.pairs_within(&chunk.rows, &self.rows, matches.0, matches.1);
        let build_rows: UInt32Array = self.build_matches.drain(..count).collect::<Vec<_>>().into();
        let probe_rows: UInt32Array = self.probe_matches.drain(..count).collect::<Vec<_>>().into();
        let batch = plan.pairs_batch(&chunk.rows, &self.rows, &build_rows, &probe_rows)?;
        Ok(Some(batch.with_sequence(self.sequence)))
    }
}
