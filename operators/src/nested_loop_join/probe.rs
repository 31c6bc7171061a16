//! The probe of a nested-loop join: takes right batches past all chunks, then drains left rows.

use std::sync::Arc;

use arrow::{
    array::{BooleanBufferBuilder, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
};
use datafusion_common::JoinSide;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, Slots, Start, TaskContext},
};
use gatework_shared_state::join::{Build, Drain, ProbeSource};

use super::{
    pairs::Pairs,
    plan::Plan,
    table::{Chunk, Part, Table},
};
use crate::compact;

/// The most pairs that are tested at a time.
const BLOCK_PAIRS: usize = 8192;

/// Tests the right side's rows against the collected left side.
#[derive(Debug)]
pub struct NestedLoopProbe {
    slots: Slots<ProbeSource<Part, Table>>,
    plan: Arc<Plan>,
}

impl NestedLoopProbe {
    pub(super) fn new(sources: Vec<ProbeSource<Part, Table>>, plan: Arc<Plan>) -> Self {
        Self { slots: Slots::new(sources), plan }
    }
}

impl Operator for NestedLoopProbe {
    fn name(&self) -> &str {
        "nested-loop join"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalProbe {
            source: self.slots.take(&setup)?,
            plan: self.plan.clone(),
            setup,
            table: None,
            right: None,
        }))
    }
}

struct LocalProbe {
    source: ProbeSource<Part, Table>,
    plan: Arc<Plan>,
    setup: Setup,
    table: Option<Arc<Table>>,
    right: Option<Right>,
}

/// A right batch on its way past the chunks.
struct Right {
    rows: RecordBatch,
    sequence: u64,
    /// A bit per row that met a match; empty if nobody asks.
    matched: BooleanBufferBuilder,
    chunk: usize,
    /// What is left of the current chunk; `None` before it is begun.
    pairs: Option<Pairs>,
    /// Matching pairs of the current chunk that have not been given.
    left_matches: Vec<u32>,
    right_matches: Vec<u32>,
}

impl LocalOperator for LocalProbe {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        loop {
            match self.source.build() {
                Build::Prepare(parts) => {
                    let memory = self.setup.reservation();
                    let table = Table::new(parts, self.plan.gives_left(), memory)?;
                    self.source.prepared(table, 0);
                }
                // A table of no units is ready when it is prepared; this keeps to the protocol.
                Build::Unit(..) => {
                    if self.source.built() {
                        self.source.publish();
                    }
                }
                Build::Blocked(gate) => return Ok(Start::Blocked(gate.into())),
                Build::Ready(table) => {
                    let idle = table.chunks.is_empty() && self.plan.needs_left();
                    self.table = Some(table);
                    return Ok(if idle { Start::Finished } else { Start::Ready });
                }
                Build::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }

    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            let sequence = batch.sequence();
            self.right = Some(Right::new(compact(batch)?, sequence, &self.plan));
        }
        let (Some(table), Some(right)) = (&self.table, &mut self.right) else {
            return Ok(OperatorResult::NeedInput);
        };
        if let Some(chunk) = table.chunks.get(right.chunk) {
            // Called again even without rows: between two blocks the task may yield.
            let batch = right.advance(chunk, &self.plan, task)?;
            return Ok(OperatorResult::HaveMore(batch.unwrap_or_else(|| self.plan.nothing())));
        }
        let Some(mut right) = self.right.take().filter(|_| self.plan.gives_right()) else {
            return Ok(OperatorResult::NeedInput);
        };
        let matched = right.matched.finish();
        let batch = self.plan.one_side(JoinSide::Right, &right.rows, matched)?;
        Ok(OperatorResult::Batch(batch.at(right.sequence)))
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<OperatorResult> {
        let units = match &self.table {
            Some(table) if self.plan.gives_left() => table.chunks.len(),
            _ => 0,
        };
        self.source.end_probe(units);
        if units == 0 {
            return Ok(OperatorResult::Finished);
        }
        match self.source.drain() {
            Drain::Unit(table, unit) => {
                let chunk = &table.chunks[unit];
                let batch = self.plan.one_side(JoinSide::Left, &chunk.rows, chunk.matched())?;
                Ok(OperatorResult::HaveMore(batch))
            }
            Drain::Blocked(gate) => Ok(OperatorResult::Blocked(gate.into())),
            Drain::Finished => Ok(OperatorResult::Finished),
            Drain::Aborted => Err(Error::ProducerAborted),
        }
    }
}

impl Right {
    fn new(rows: RecordBatch, sequence: u64, plan: &Plan) -> Self {
        let bits = if plan.gives_right() { rows.num_rows() } else { 0 };
        let mut matched = BooleanBufferBuilder::new(bits);
        matched.append_n(bits, false);
        Self {
            rows,
            sequence,
            matched,
            chunk: 0,
            pairs: None,
            left_matches: Vec::new(),
            right_matches: Vec::new(),
        }
    }

    /// Does the next block of `chunk`, and goes on to the next chunk after its last one.
    fn advance(&mut self, chunk: &Chunk, plan: &Plan, task: &TaskContext) -> Result<Option<Batch>> {
        let mut pairs = match self.pairs.take() {
            Some(pairs) => pairs,
            None => self.begin(chunk, plan),
        };
        // Matches may be left that a batch had no room for.
        if !pairs.is_done() && self.left_matches.len() < plan.batch_size {
            self.block(&mut pairs, chunk, plan, task)?;
        }
        let whole = self.left_matches.len() >= plan.batch_size;
        if !pairs.is_done() {
            self.pairs = Some(pairs);
            return if whole { self.give(chunk, plan) } else { Ok(None) };
        }
        let batch = self.give(chunk, plan)?;
        if self.left_matches.is_empty() {
            self.chunk += 1;
        } else {
            self.pairs = Some(pairs);
        }
        Ok(batch)
    }

    /// The pairs of `chunk` that are to be looked at.
    fn begin(&mut self, chunk: &Chunk, plan: &Plan) -> Pairs {
        let mut left_rows = chunk.rows.num_rows();
        if plan.filter.is_none() {
            // Every row has a match, which needs no pairs to be known.
            if plan.gives_left() {
                chunk.set_all_matched();
            }
            (0..self.matched.len()).for_each(|row| self.matched.set_bit(row, true));
            if !plan.gives_pairs() {
                left_rows = 0;
            }
        }
        Pairs::new(left_rows, (0..self.rows.num_rows() as u32).collect())
    }

    /// Tests the next block of pairs and notes what matches.
    fn block(
        &mut self,
        pairs: &mut Pairs,
        chunk: &Chunk,
        plan: &Plan,
        task: &TaskContext,
    ) -> Result<()> {
        let most = plan.batch_size.min(BLOCK_PAIRS);
        let Some(filter) = &plan.filter else {
            pairs.fill(most, |_| false, &mut self.left_matches, &mut self.right_matches);
            return Ok(());
        };
        if !plan.gives_pairs() && plan.gives_right() {
            // One match is all there is to know of a row.
            pairs.retain_right(|row| !self.matched.get_bit(row as usize));
        }
        let known = !plan.gives_pairs() && plan.gives_left();
        let (mut left, mut right) = (Vec::with_capacity(most), Vec::with_capacity(most));
        pairs.fill(most, |row| known && chunk.is_matched(row), &mut left, &mut right);
        if left.is_empty() {
            return Ok(());
        }
        let (left, right) = (UInt32Array::from(left), UInt32Array::from(right));
        let answer = filter.evaluate(&chunk.rows, &self.rows, &left, &right, task)?;
        self.note(&answer, left.values(), right.values(), chunk, plan);
        Ok(())
    }

    fn note(
        &mut self,
        answer: &BooleanBuffer,
        left: &[u32],
        right: &[u32],
        chunk: &Chunk,
        plan: &Plan,
    ) {
        for pair in answer.set_indices() {
            if plan.gives_left() {
                chunk.set_matched(left[pair]);
            }
            if plan.gives_right() {
                self.matched.set_bit(right[pair] as usize, true);
            }
            if plan.gives_pairs() {
                self.left_matches.push(left[pair]);
                self.right_matches.push(right[pair]);
            }
        }
    }

    /// Gives up to a batch of the pairs that matched.
    fn give(&mut self, chunk: &Chunk, plan: &Plan) -> Result<Option<Batch>> {
        let count = self.left_matches.len().min(plan.batch_size);
        if count == 0 {
            return Ok(None);
        }
        let matches = (&self.left_matches[..count], &self.right_matches[..count]);
        let count = plan.pairs_within(&chunk.rows, &self.rows, matches.0, matches.1);
        let left: UInt32Array = self.left_matches.drain(..count).collect::<Vec<_>>().into();
        let right: UInt32Array = self.right_matches.drain(..count).collect::<Vec<_>>().into();
        let batch = plan.pairs(&chunk.rows, &self.rows, &left, &right)?;
        Ok(Some(batch.at(self.sequence)))
    }
}
