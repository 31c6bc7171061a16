//! Limit: skips and counts rows over all tasks of its pipeline.
//!
//! Tasks draw from one shared row count, so the rows taken depend on the order of the draws. Where
//! the order matters, the planner gives the pipeline one task. When the count is used up, `closed`
//! becomes ready, and tasks that wait for their sources finish as well.

use std::sync::Arc;

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult, StartResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, StateLock};

use crate::apply_selection;

#[cfg(test)]
mod tests;

/// Operator that skips the first rows, then passes a number of rows.
#[derive(Debug)]
pub struct Limit {
    state: Arc<LimitState>,
}

#[derive(Debug)]
struct LimitState {
    /// Remaining rows to skip, and remaining rows to pass.
    remaining: StateLock<(usize, usize)>,
    used_up: Gate,
}

impl Limit {
    /// Creates a limit that skips `skip` rows and passes `fetch` rows; all others if `fetch` is
    /// `None`.
    pub fn new(skip: usize, fetch: Option<usize>) -> Self {
        let used_up = Dependency::blocked("limit reached", DependencyKind::ConsumersGone);
        if fetch == Some(0) {
            used_up.set_always_ready();
        }
        let remaining = StateLock::new((skip, fetch.unwrap_or(usize::MAX)));
        Self { state: Arc::new(LimitState { remaining, used_up }) }
    }
}

impl Operator for Limit {
    fn name(&self) -> &str {
        "limit"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalLimit { state: self.state.clone() }))
    }
}

struct LocalLimit {
    state: Arc<LimitState>,
}

impl LimitState {
    /// Returns the offset and length of the slice of `rows` rows to pass.
    fn draw(&self, rows: usize) -> (usize, usize) {
        let mut remaining = self.remaining.lock();
        let skipped = rows.min(remaining.0);
        remaining.0 -= skipped;
        let passed = (rows - skipped).min(remaining.1);
        if remaining.1 != usize::MAX {
            remaining.1 -= passed;
        }
        if remaining.1 == 0 {
            remaining.set_always_ready(&self.used_up);
        }
        (skipped, passed)
    }
}

impl LocalOperator for LocalLimit {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        Ok(if self.state.used_up.is_ready() { StartResult::Finished } else { StartResult::Ready })
    }

    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else {
            let used_up = self.state.used_up.is_ready();
            return Ok(if used_up { OperatorResult::Finished } else { OperatorResult::NeedInput });
        };
        let (skipped, passed) = self.state.draw(batch.num_rows());
        if passed == 0 {
            let used_up = self.state.used_up.is_ready();
            return Ok(if used_up { OperatorResult::Finished } else { OperatorResult::NeedInput });
        }
        if passed == batch.num_rows() {
            return Ok(self.output_result(batch));
        }
        let sequence = batch.sequence();
        let data = apply_selection(batch)?.slice(skipped, passed);
        Ok(self.output_result(Batch::new(data).with_sequence(sequence)))
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.state.used_up.clone())
    }
}

impl LocalLimit {
    /// Returns the result for `batch`. After the last batch the operator is called once more, to
    /// return `Finished`.
    fn output_result(&self, batch: Batch) -> OperatorResult {
        if self.state.used_up.is_ready() {
            OperatorResult::HaveMoreOutput(batch)
        } else {
            OperatorResult::Batch(batch)
        }
    }
}
