//! Limit: skips and counts rows over all tasks of its pipeline.
//!
//! Tasks draw from one budget, so which rows are taken depends on who comes first. Where the order
//! counts, the planner gives the pipeline one task. When the budget is used up, `closed` opens and
//! tasks that wait for their sources end as well.

use std::sync::Arc;

use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, Start, TaskContext},
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

use crate::compact;

#[cfg(test)]
mod tests;

/// Skips the first rows, then passes a number of rows.
#[derive(Debug)]
pub struct Limit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Rows still to skip and rows still to pass.
    left: Mutex<(usize, usize)>,
    used_up: Gate,
}

impl Limit {
    /// Skips `skip` rows and passes `fetch` rows; all others if `fetch` is `None`.
    pub fn new(skip: usize, fetch: Option<usize>) -> Self {
        let used_up = Dependency::blocked("limit reached", DependencyKind::Closed);
        if fetch == Some(0) {
            used_up.set_always_ready();
        }
        let left = Mutex::new((skip, fetch.unwrap_or(usize::MAX)));
        Self { shared: Arc::new(Shared { left, used_up }) }
    }
}

impl Operator for Limit {
    fn name(&self) -> &str {
        "limit"
    }

    fn local(&self, _setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalLimit { shared: self.shared.clone() }))
    }
}

struct LocalLimit {
    shared: Arc<Shared>,
}

impl Shared {
    /// The part of `rows` rows to pass: its offset and length.
    fn draw(&self, rows: usize) -> (usize, usize) {
        let mut left = self.left.lock();
        let skipped = rows.min(left.0);
        left.0 -= skipped;
        let passed = (rows - skipped).min(left.1);
        if left.1 != usize::MAX {
            left.1 -= passed;
        }
        if left.1 == 0 {
            self.used_up.set_always_ready();
        }
        (skipped, passed)
    }
}

impl LocalOperator for LocalLimit {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        Ok(if self.shared.used_up.is_ready() { Start::Finished } else { Start::Ready })
    }

    fn execute(&mut self, input: Option<Batch>, _task: &TaskContext) -> Result<OperatorResult> {
        let Some(batch) = input else {
            let used_up = self.shared.used_up.is_ready();
            return Ok(if used_up { OperatorResult::Finished } else { OperatorResult::NeedInput });
        };
        let (skipped, passed) = self.shared.draw(batch.rows());
        if passed == 0 {
            let used_up = self.shared.used_up.is_ready();
            return Ok(if used_up { OperatorResult::Finished } else { OperatorResult::NeedInput });
        }
        if passed == batch.rows() {
            return Ok(self.more(batch));
        }
        let sequence = batch.sequence();
        let data = compact(batch)?.slice(skipped, passed);
        Ok(self.more(Batch::new(data).at(sequence)))
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.shared.used_up.clone())
    }
}

impl LocalLimit {
    /// After the last batch the operator is called once more, to say that it has finished.
    fn more(&self, batch: Batch) -> OperatorResult {
        if self.shared.used_up.is_ready() {
            OperatorResult::HaveMore(batch)
        } else {
            OperatorResult::Batch(batch)
        }
    }
}
