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

use super::{Kind, Partitions, Plan, bytes, long::Long};
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
            overdraft: setup.overdraft(),
            long: None,
            ready: None,
            sequence: 0,
        }))
    }
}

struct LocalWindowSource {
    source: AnalyticSource<Partitions>,
    plan: Arc<Plan>,
    memory: Reservation,
    overdraft: usize,
    /// A window partition of which not all pieces have come.
    long: Option<Long>,
    /// Evaluated rows, and how many of them have been given.
    ready: Option<(RecordBatch, usize)>,
    sequence: u64,
}

impl LocalSource for LocalWindowSource {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        while self.ready.is_none() {
            match self.source.take() {
                Take::Item(partitions) => {
                    let rows = match partitions.kind {
                        Kind::Whole => self.evaluate(partitions, task)?,
                        Kind::Piece | Kind::LastPiece => self.evaluate_piece(partitions)?,
                    };
                    self.ready = (rows.num_rows() > 0).then_some((rows, 0));
                }
                Take::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                Take::Finished => return Ok(SourceResult::Finished),
                Take::Aborted => return Err(Error::ProducerAborted),
            }
        }
        let Some((rows, given)) = self.ready.take() else { return Ok(SourceResult::Finished) };
        let count = self.plan.batch_size.min(rows.num_rows() - given);
        let batch = Batch::new(rows.slice(given, count)).at(self.sequence);
        self.sequence += 1;
        if given + count < rows.num_rows() {
            self.ready = Some((rows, given + count));
        } else {
            drop(rows);
            let kept = self.long.as_ref().map_or(0, Long::bytes);
            resize(&mut self.memory, kept, self.overdraft)?;
        }
        Ok(SourceResult::Batch(batch))
    }
}

impl LocalWindowSource {
    /// Reserves `bytes`, or goes on without if window partitions are evaluated piece by piece, so that these
    /// are bounded by what makes one long.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        match self.memory.resize(bytes) {
            Err(Error::OutOfMemory { .. }) if self.plan.long_bytes.is_some() => Ok(()),
            other => other,
        }
    }

    /// The rows that get their results from a piece of a long window partition.
    fn evaluate_piece(&mut self, piece: Partitions) -> Result<RecordBatch> {
        let last = piece.kind == Kind::LastPiece;
        let long = match &mut self.long {
            Some(long) => long,
            none => {
                let Some(rows) = piece.batches.first() else {
                    return Err(Error::Setup("a window partition without rows".into()));
                };
                none.insert(Long::new(self.plan.clone(), &rows.schema()))
            }
        };
        let output = long.add(&piece.batches, last)?;
        let kept = long.bytes();
        if last {
            self.long = None;
        }
        drop(piece);
        // The output is on its way out; only what is kept can grow.
        match self.memory.resize(kept + bytes(&output)) {
            Err(Error::OutOfMemory { .. }) => resize(&mut self.memory, kept, self.overdraft)?,
            other => other?,
        }
        Ok(output)
    }

    /// The rows of `partitions` with a column per expression.
    fn evaluate(&mut self, partitions: Partitions, task: &TaskContext) -> Result<RecordBatch> {
        if partitions.batches.len() > 1 {
            self.reserve(partitions.bytes)?;
        }
        let rows = concat_rows(&partitions.batches)?;
        let sort_column = |values| SortColumn { values, options: None };
        let keys: Vec<_> = self.plan.keys(&rows)?.into_iter().map(sort_column).collect();
        let ranges = evaluate_partition_ranges(rows.num_rows(), &keys).or_fail()?;
        let slices: Vec<_> =
            ranges.iter().map(|range| rows.slice(range.start, range.len())).collect();
        let mut columns = rows.columns().to_vec();
        for expression in &self.plan.expressions {
            columns.push(over_partitions(expression.as_ref(), &slices, task)?);
        }
        let output = RecordBatch::try_new(self.plan.schema.clone(), columns).or_fail()?;
        // From here on the input lives in the output only.
        drop(partitions);
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
