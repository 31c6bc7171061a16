//! Partial aggregate in passing: an operator, no breaker.
//!
//! A table of bounded size whose groups go on as partial states when it is full, and at the end; whoever merges them sees
//! some keys more than once. Where nearly every row begins a group of its own the table is left out, and rows go on as
//! states of themselves. (Presto's adaptive partial aggregation.)

use std::sync::Arc;

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, TaskContext},
};

use super::{
    config::{AggregateConfig, Shared},
    emitted::Emitted,
    groups::Groups,
};
use crate::compact;

/// Groups at which a table is emptied.
const MOST_GROUPS: usize = 1 << 18;
/// Groups at which it is emptied if they have [`MANY_ROWS`] each already, since rows come in some order of their keys: at
/// some ten bytes a slot and a key and state each, the table stays within a core's own cache.
const FEW_GROUPS: usize = 1 << 16;
const MANY_ROWS: usize = 3;
/// Bytes at which it is emptied.
const MOST_BYTES: usize = 16 << 20;
/// Rows after which it is looked at for the first time. Of so many random rows of [`MOST_GROUPS`] keys, one in sixteen has
/// a key that was there before.
const SAMPLE_ROWS: usize = 1 << 15;
const REPEATS_ONE_IN: usize = 16;
/// A full table with fewer rows than five for four groups did not pay either.
const PAYS: [usize; 2] = [5, 4];
/// Rows that go on as they are before a table is tried again; each time four times as many.
const FIRST_PAUSE: usize = 1 << 17;

/// Aggregates rows, or states, to partial states, as far as that makes them fewer.
#[derive(Debug)]
pub struct PartialAggregate {
    shared: Arc<Shared>,
}

impl PartialAggregate {
    /// An aggregate whose output is partial states.
    ///
    /// # Errors
    /// If it has no keys, or sets of them, or its output is something else, or a key cannot be compared.
    pub fn new(config: AggregateConfig) -> Result<Self> {
        if !config.may_go_on_in_part() {
            return Err(Error::Setup("only states of groups can go on in part".into()));
        }
        Ok(Self { shared: Arc::new(config.prepare(1)?) })
    }
}

impl Operator for PartialAggregate {
    fn name(&self) -> &str {
        "partial aggregate"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalPartial {
            groups: Groups::new(self.shared.clone(), &setup)?.in_passing(),
            rows: 0,
            seen: 0,
            next_look: SAMPLE_ROWS,
            pause: FIRST_PAUSE,
            paused: 0,
            emitting: None,
            setup,
        }))
    }
}

struct LocalPartial {
    groups: Groups,
    /// Rows in the table, and groups when it was looked at last.
    rows: usize,
    seen: usize,
    next_look: usize,
    /// How long the next pause is.
    pause: usize,
    /// Rows that go on as they are before the table is tried again.
    paused: usize,
    /// Groups that go on.
    emitting: Option<Emitted>,
    setup: Setup,
}

impl LocalPartial {
    fn update(&mut self, rows: &RecordBatch, task: &TaskContext) -> Result<()> {
        self.rows += rows.num_rows();
        match self.groups.update(rows, task) {
            // What did not fit is in the table all the same. Rows as they are need no memory.
            Err(Error::OutOfMemory { .. }) => {
                self.paused = SAMPLE_ROWS;
                self.empty()
            }
            other => {
                other?;
                self.look()
            }
        }
    }

    /// Empties the table if it is full, or does not pay.
    fn look(&mut self) -> Result<()> {
        let groups = self.groups.len();
        let grew = std::mem::replace(&mut self.seen, groups) < FEW_GROUPS && groups >= FEW_GROUPS;
        let full = groups >= MOST_GROUPS
            || grew && self.rows >= groups * MANY_ROWS
            || self.groups.reserved() >= MOST_BYTES;
        let idle = if full {
            self.rows * PAYS[1] < groups * PAYS[0]
        } else if self.rows >= self.next_look {
            self.next_look = usize::MAX;
            (self.rows - groups) * REPEATS_ONE_IN < self.rows
        } else {
            false
        };
        if idle {
            self.paused = self.pause;
            self.pause = self.pause.saturating_mul(4);
        }
        if full || self.paused > 0 { self.empty() } else { Ok(()) }
    }

    /// Groups go on.
    fn empty(&mut self) -> Result<()> {
        (self.rows, self.seen, self.next_look) = (0, 0, SAMPLE_ROWS);
        self.emitting = self.groups.drain()?;
        Ok(())
    }

    /// The next of the groups that go on.
    fn next(&mut self) -> Result<Option<Batch>> {
        let Some(emitting) = &mut self.emitting else { return Ok(None) };
        let next = emitting.next()?;
        if emitting.left() == 0 {
            self.emitting = None;
        }
        Ok(next.map(Batch::new))
    }
}

impl LocalOperator for LocalPartial {
    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(input) = input {
            let rows = compact(input)?;
            if self.paused > 0 {
                self.paused = self.paused.saturating_sub(rows.num_rows());
                let states = self.groups.convert(&rows)?;
                self.setup.metrics().add("rows not aggregated", rows.num_rows() as u64);
                return Ok(OperatorResult::Batch(Batch::new(states)));
            }
            self.update(&rows, task)?;
        }
        Ok(match self.next()? {
            Some(batch) if self.emitting.is_some() => OperatorResult::HaveMore(batch),
            Some(batch) => OperatorResult::Batch(batch),
            None => OperatorResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<OperatorResult> {
        if self.emitting.is_none() {
            self.empty()?;
        }
        Ok(match self.next()? {
            Some(batch) => OperatorResult::HaveMore(batch),
            None => OperatorResult::Finished,
        })
    }
}
