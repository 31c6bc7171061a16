//! The source of a window: evaluates whole window partitions.

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

use super::{Partitions, Plan, bytes};
use crate::{
    OrFail,
    concat::{concat_arrays, concat_rows},
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
            source: self.slots.take(setup.instance())?,
            plan: self.plan.clone(),
            memory: setup.reservation(),
            ready: None,
            sequence: 0,
        }))
    }
}

struct LocalWindowSource {
    source: AnalyticSource<Partitions>,
    plan: Arc<Plan>,
    memory: Reservation,
    /// Evaluated rows, and how many of them have been given.
    ready: Option<(RecordBatch, usize)>,
    sequence: u64,
}

impl LocalSource for LocalWindowSource {
    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        if self.ready.is_none() {
            match self.source.take() {
                Take::Item(partitions) => {
                    let rows = self.evaluate(partitions, task)?;
                    self.ready = Some((rows, 0));
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
            self.memory.resize(0)?;
        }
        Ok(SourceResult::Batch(batch))
    }
}

impl LocalWindowSource {
    /// The rows of `partitions` with a column per expression.
    fn evaluate(&mut self, partitions: Partitions, task: &TaskContext) -> Result<RecordBatch> {
        if partitions.batches.len() > 1 {
            self.memory.grow(partitions.bytes)?;
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
        self.memory.resize(bytes(&output))?;
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
