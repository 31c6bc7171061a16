//! The source of a window: evaluates whole window partitions, and pieces of long ones.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::SortColumn,
};
use datafusion_common::utils::evaluate_partition_ranges;
use datafusion_physical_expr::window::WindowExpr;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalSource, Reservation, Setup, Slots, Source, SourceResult, TaskContext},
};
use gatework_shared_state::{Take, analytic::AnalyticSource};

use super::{
    Content, OpensGate, Partitions, Plan, Steps, bytes,
    large::{Giving, Next},
    long::Long,
};
use crate::{
    OrFail,
    concat::{concat_arrays, concat_rows},
    spilling::resize,
};

/// Gives the rows with the window expressions' columns.
#[derive(Debug)]
pub struct WindowSource {
    slots: Slots<AnalyticSource<Partitions>>,
    plan: Arc<Plan>,
}

impl WindowSource {
    pub(super) fn new(sources: Vec<AnalyticSource<Partitions>>, plan: Arc<Plan>) -> Self {
        Self { slots: Slots::new(sources), plan }
    }
}

impl Source for WindowSource {
    fn name(&self) -> &str {
        "window"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(LocalWindowSource {
            source: self.slots.take(&setup)?,
            plan: self.plan.clone(),
            memory: setup.reservation(),
            setup,
            long: None,
            piece: None,
            giving: None,
            ready: None,
            sequence: 0,
        }))
    }
}

/// Rows of a long window partition that have not been evaluated.
struct Piece {
    rows: Steps,
    /// The partition ends with them.
    last: bool,
    _memory: Reservation,
}

struct LocalWindowSource {
    source: AnalyticSource<Partitions>,
    plan: Arc<Plan>,
    memory: Reservation,
    setup: Setup,
    /// A window partition of which not all pieces have come.
    long: Option<Long>,
    /// The piece of it that is being evaluated.
    piece: Option<Piece>,
    /// A large one of which not all rows have been given.
    giving: Option<(Giving, OpensGate)>,
    /// Evaluated rows, and how many of them have been given.
    ready: Option<(RecordBatch, usize)>,
    sequence: u64,
}

impl LocalSource for LocalWindowSource {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        loop {
            if let Some((giving, _)) = &mut self.giving {
                match giving.next(task)? {
                    Next::Rows(rows) => return Ok(SourceResult::Batch(self.in_turn(rows))),
                    Next::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                    Next::End => self.giving = None,
                }
            }
            if let Some(batch) = self.next_ready()? {
                return Ok(SourceResult::Batch(batch));
            }
            if let Some(piece) = self.piece.take() {
                task.check()?;
                let rows = self.evaluate_step(piece)?;
                let nothing = rows.num_rows() == 0;
                self.ready = Some((rows, 0));
                if let Some(gate) = task.breath().filter(|_| nothing) {
                    return Ok(SourceResult::Blocked(gate.into()));
                }
                continue;
            }
            match self.source.take() {
                Take::Item(Partitions { content, bytes, memory, .. }) => match content {
                    Content::Whole(batches) => {
                        let rows = self.evaluate(batches, bytes, memory, task)?;
                        self.ready = Some((rows, 0));
                    }
                    Content::Piece(batches, last) => {
                        self.piece =
                            Some(Piece { rows: Steps(batches.into()), last, _memory: memory });
                    }
                    Content::Large(large, opens) => {
                        self.giving = Some((large.give(memory, &self.setup, task)?, opens));
                    }
                },
                Take::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Take::Finished => return Ok(SourceResult::Finished),
                Take::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}

impl LocalWindowSource {
    /// The next batch of the rows that are evaluated.
    fn next_ready(&mut self) -> Result<Option<Batch>> {
        let Some((rows, given)) = self.ready.take() else { return Ok(None) };
        let count = self.plan.batch_size.min(rows.num_rows() - given);
        let batch = rows.slice(given, count);
        if given + count < rows.num_rows() {
            self.ready = Some((rows, given + count));
        } else {
            drop(rows);
            let kept = self.long.as_ref().map_or(0, Long::bytes);
            resize(&mut self.memory, kept, self.setup.overdraft())?;
        }
        Ok((count > 0).then(|| self.in_turn(batch)))
    }

    fn in_turn(&mut self, rows: RecordBatch) -> Batch {
        self.sequence += 1;
        Batch::new(rows).at(self.sequence - 1)
    }

    /// Reserves `bytes`, or goes on without: so little is evaluated at a time that waiting would not help.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        match self.memory.resize(bytes) {
            Err(Error::OutOfMemory { .. }) => Ok(()),
            other => other,
        }
    }

    /// How many rows the next step has at least.
    fn step_rows(&self) -> usize {
        self.long.as_ref().map_or(0, Long::kept_rows).max(self.plan.batch_size)
    }

    /// The rows that get their results from the next step of a piece of a long window partition.
    fn evaluate_step(&mut self, mut piece: Piece) -> Result<RecordBatch> {
        let batches = piece.rows.next(self.step_rows());
        let done = piece.rows.is_empty();
        let last = piece.last && done;
        let long = match &mut self.long {
            Some(long) => long,
            none => {
                let Some(rows) = batches.first() else {
                    return Err(Error::Setup("a window partition without rows".into()));
                };
                none.insert(Long::new(self.plan.piecewise(), &rows.schema()))
            }
        };
        let (rows, results) = long.add(&batches, last)?;
        let output = self.plan.output(&rows, results)?;
        let kept = long.bytes();
        if last {
            self.long = None;
        }
        drop(batches);
        if !done {
            self.piece = Some(piece);
        }
        // The output is on its way out; only what is kept can grow.
        match self.memory.resize(kept + bytes(&output)) {
            Err(Error::OutOfMemory { .. }) => {
                resize(&mut self.memory, kept, self.setup.overdraft())?;
            }
            other => other?,
        }
        Ok(output)
    }

    /// The rows of window partitions, `size` bytes for which `memory` is reserved, with a column per expression.
    fn evaluate(
        &mut self,
        batches: Vec<RecordBatch>,
        size: usize,
        memory: Reservation,
        task: &TaskContext,
    ) -> Result<RecordBatch> {
        if batches.len() > 1 {
            self.reserve(size)?;
        }
        let rows = concat_rows(&batches)?;
        let sort_column = |values| SortColumn { values, options: None };
        let keys: Vec<_> = self.plan.keys(&rows)?.into_iter().map(sort_column).collect();
        let ranges = evaluate_partition_ranges(rows.num_rows(), &keys).or_fail()?;
        let slices: Vec<_> =
            ranges.iter().map(|range| rows.slice(range.start, range.len())).collect();
        let mut results = Vec::with_capacity(self.plan.expressions.len());
        for expression in &self.plan.expressions {
            results.push(over_partitions(expression.as_ref(), &slices, task)?);
        }
        let output = self.plan.output(&rows, results)?;
        // From here on the input lives in the output only.
        drop((batches, memory));
        self.reserve(bytes(&output))?;
        Ok(output)
    }
}

fn over_partitions(
    expression: &dyn WindowExpr,
    partitions: &[RecordBatch],
    task: &TaskContext,
) -> Result<ArrayRef> {
    let mut parts = Vec::with_capacity(partitions.len());
    for partition in partitions {
        task.check()?;
        parts.push(expression.evaluate(partition).or_fail()?);
    }
    concat_arrays(&parts)
}
