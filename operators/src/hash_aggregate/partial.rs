//! Partial aggregate as a streaming operator, not a breaker.
//!
//! The table has a bounded size. Its groups are emitted as partial states when it is full and at
//! the end, so the merging aggregate sees some keys repeatedly. Where nearly every row starts a new
//! group, rows bypass the table and become states of themselves. (Presto's adaptive partial
//! aggregation.)

use std::sync::Arc;

use arrow::array::RecordBatch;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult},
};

use super::{
    config::{AggregateConfig, AggregatePlan},
    group_emitter::GroupEmitter,
    groups::AggregateHashTable,
    row_states::reduces,
};
use crate::apply_selection;

/// Groups at which the table is flushed.
const MAX_GROUPS: usize = 1 << 18;
/// Groups at which the table is flushed if they average [`FLUSH_ROWS_PER_GROUP`] rows, because rows
/// then arrive roughly in key order. At about ten bytes per slot, plus a key and a state, the table
/// stays within a core's own cache.
const FLUSH_GROUPS: usize = 1 << 16;
const FLUSH_ROWS_PER_GROUP: usize = 3;
/// Reserved bytes at which the table is flushed: 16 MiB.
const MAX_BYTES: usize = 16 << 20;
/// Rows after which the table's effectiveness is first checked. Among this many random rows of
/// [`MAX_GROUPS`] keys, one in sixteen repeats a key.
const SAMPLE_ROWS: usize = 1 << 15;
const REPEATS_ONE_IN: usize = 16;
/// Rows that bypass the table before it is tried again. Each further bypass is four times as long.
const FIRST_BYPASS_ROWS: usize = 1 << 17;

/// Aggregates rows, or states, to partial states as long as that reduces their number.
#[derive(Debug)]
pub struct PartialAggregate {
    plan: Arc<AggregatePlan>,
}

impl PartialAggregate {
    /// Creates an aggregate whose output is partial states.
    ///
    /// # Errors
    /// If [`AggregateConfig::can_flush_partial`] is false, or a key cannot be compared.
    pub fn new(config: AggregateConfig) -> Result<Self> {
        if !config.can_flush_partial() {
            return Err(Error::InvalidConfiguration(
                "a streaming partial aggregate needs group keys without grouping sets, \
                 functions without ORDER BY, and partial states as its output"
                    .into(),
            ));
        }
        Ok(Self { plan: Arc::new(config.prepare(1)?) })
    }
}

impl Operator for PartialAggregate {
    fn name(&self) -> &str {
        "partial aggregate"
    }

    fn take_dictionaries(&self, _output: &[usize]) -> Vec<usize> {
        self.plan.dictionary_columns.clone()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalPartial {
            groups: AggregateHashTable::new(self.plan.clone(), &context)?.without_spilling(),
            rows: 0,
            groups_at_check: 0,
            next_check: SAMPLE_ROWS,
            bypass_rows: FIRST_BYPASS_ROWS,
            bypass_remaining: 0,
            emitting: None,
            context,
        }))
    }
}

struct LocalPartial {
    groups: AggregateHashTable,
    /// Rows in the table, and the number of its groups at the last check.
    rows: usize,
    groups_at_check: usize,
    next_check: usize,
    /// Rows of the next bypass.
    bypass_rows: usize,
    /// Rows that still bypass the table.
    bypass_remaining: usize,
    /// Groups that are being emitted.
    emitting: Option<GroupEmitter>,
    context: OperatorContext,
}

impl LocalPartial {
    fn update(&mut self, rows: &RecordBatch, task: &DriverContext) -> Result<()> {
        self.rows += rows.num_rows();
        self.groups.update(rows, task)?;
        if self.groups.update_reservation().is_ok() {
            return self.check_effectiveness();
        }
        // Rows that bypass the table need no memory.
        self.bypass_remaining = SAMPLE_ROWS;
        self.flush()
    }

    /// Flushes the table if it is full or ineffective.
    fn check_effectiveness(&mut self) -> Result<()> {
        let groups = self.groups.num_groups();
        let grew = std::mem::replace(&mut self.groups_at_check, groups) < FLUSH_GROUPS
            && groups >= FLUSH_GROUPS;
        let full = groups >= MAX_GROUPS
            || grew && self.rows >= groups * FLUSH_ROWS_PER_GROUP
            || self.groups.reserved() >= MAX_BYTES;
        let ineffective = if full {
            !reduces(self.rows, groups)
        } else if self.rows >= self.next_check {
            self.next_check = usize::MAX;
            (self.rows - groups) * REPEATS_ONE_IN < self.rows
        } else {
            false
        };
        if ineffective {
            self.bypass_remaining = self.bypass_rows;
            self.bypass_rows = self.bypass_rows.saturating_mul(4);
        }
        if full || self.bypass_remaining > 0 { self.flush() } else { Ok(()) }
    }

    /// Starts to emit all groups.
    fn flush(&mut self) -> Result<()> {
        (self.rows, self.groups_at_check, self.next_check) = (0, 0, SAMPLE_ROWS);
        self.emitting = self.groups.drain()?;
        Ok(())
    }

    /// Returns the next batch of emitted groups.
    fn next(&mut self) -> Result<Option<Batch>> {
        let Some(emitting) = &mut self.emitting else { return Ok(None) };
        let next = emitting.next()?;
        if emitting.remaining() == 0 {
            self.emitting = None;
        }
        Ok(next.map(Batch::new))
    }
}

impl LocalOperator for LocalPartial {
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(input) = input {
            let rows = apply_selection(input)?;
            if self.bypass_remaining > 0 {
                self.bypass_remaining = self.bypass_remaining.saturating_sub(rows.num_rows());
                let states = self.groups.convert_to_state(&rows)?;
                self.context.metrics().add("skipped_aggregation_rows", rows.num_rows() as u64);
                return Ok(OperatorResult::Batch(Batch::new(states)));
            }
            self.update(&rows, task)?;
        }
        Ok(match self.next()? {
            Some(batch) if self.emitting.is_some() => OperatorResult::HaveMoreOutput(batch),
            Some(batch) => OperatorResult::Batch(batch),
            None => OperatorResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        if self.emitting.is_none() {
            self.flush()?;
        }
        Ok(match self.next()? {
            Some(batch) => OperatorResult::HaveMoreOutput(batch),
            None => OperatorResult::Finished,
        })
    }
}
