//! `count(DISTINCT value)` without group keys: all tasks share the work.
//!
//! The values of a call are the groups of a plan of their own, which has no functions. So they are
//! partitioned, spilled and merged like the groups of other aggregates. A source task counts the
//! values of each partition that it has merged; the one that finishes the last partition emits the
//! only row. Partial states are another matter: they are lists ([`DistinctCount`]).
//!
//! [`DistinctCount`]: super::distinct_count::DistinctCount

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef},
    compute::{filter, is_not_null},
    datatypes::{Field, Schema},
};
use datafusion_physical_expr::expressions::Column;
use gatework_runtime::{Result, pipeline::Reservation};
use parking_lot::Mutex;

use super::{
    config::{
        AggregateCall, AggregateConfig, AggregateInput, AggregatePlan, AggregateResult, GroupBy,
    },
    distinct_count::{DistinctType, retyped},
    ungrouped::Accumulators,
};
use crate::{ResultExt, dictionary};

/// The distinct values of one call.
#[derive(Debug)]
pub(super) struct DistinctValues {
    /// Index of the call.
    pub(super) call: usize,
    kind: DistinctType,
    /// The plan whose groups are the values.
    pub(super) plan: Arc<AggregatePlan>,
}

impl DistinctValues {
    /// Returns the type of the values of `call`; `None` if it has an accumulator.
    pub(super) fn kind(
        call: &AggregateCall,
        config: &AggregateConfig,
    ) -> Result<Option<DistinctType>> {
        let is_whole =
            config.input == AggregateInput::Raw && config.output == AggregateResult::Final;
        if !is_whole || !config.group_by.is_ungrouped() {
            return Ok(None);
        }
        DistinctType::of(call, config).query_err()
    }

    /// Returns the values of call `call` for `sinks` tasks; `None` if it has an accumulator.
    pub(super) fn of(call: usize, config: &AggregateConfig, sinks: usize) -> Result<Option<Self>> {
        let Some(kind) = Self::kind(&config.aggregates[call], config)? else { return Ok(None) };
        let schema = Arc::new(Schema::new(vec![Field::new("value", kind.key.clone(), false)]));
        let group_by = GroupBy {
            keys: vec![Arc::new(Column::new("value", 0))],
            sets: vec![vec![false]],
            set_ids: None,
        };
        let values = AggregateConfig {
            group_by,
            aggregates: Vec::new(),
            input_schema: schema.clone(),
            schema,
            ..config.clone()
        };
        Ok(Some(Self { call, kind, plan: Arc::new(values.prepare(sinks)?) }))
    }

    /// Returns the keys of values that may be a dictionary, without NULLs.
    pub(super) fn keys(&self, values: &ArrayRef) -> Result<ArrayRef> {
        let DistinctType { kind, key } = &self.kind;
        let values = match values.logical_null_count() {
            0 => values.clone(),
            _ => filter(values, &is_not_null(values).query_err()?).query_err()?,
        };
        if key == kind {
            return Ok(values);
        }
        retyped(dictionary::decode(&values, kind).query_err()?, key).query_err()
    }
}

/// What the source tasks have found out about the only row.
#[derive(Debug, Default)]
pub(super) struct DistinctTotals(Mutex<Totals>);

#[derive(Default)]
struct Totals {
    /// Partitions that are not finished, those of other calls' accumulators included.
    pending: usize,
    /// Distinct values of each call.
    counts: Vec<usize>,
    /// The accumulators of the other calls, and their reservation.
    others: Option<(Accumulators, Reservation)>,
}

/// The only row: the accumulators, and the number of distinct values of each call.
pub(super) type LastRow = (Accumulators, Vec<usize>);

impl DistinctTotals {
    pub(super) fn new(partitions: usize, calls: usize) -> Self {
        let (counts, others) = (vec![0; calls], None);
        Self(Mutex::new(Totals { pending: partitions, counts, others }))
    }

    /// Takes the accumulators of the calls that count no distinct values: one partition is
    /// finished. Returns the row if it was the last one.
    pub(super) fn finish_others(
        &self,
        accumulators: Accumulators,
        memory: Reservation,
    ) -> Option<LastRow> {
        let mut totals = self.0.lock();
        totals.others = Some((accumulators, memory));
        totals.finish()
    }

    /// Adds the number of values of a finished partition of call `call`. Returns the row if it was
    /// the last one.
    pub(super) fn finish_values(&self, call: usize, count: usize) -> Option<LastRow> {
        let mut totals = self.0.lock();
        totals.counts[call] += count;
        totals.finish()
    }

    /// Replaces a partition by `parts` others.
    pub(super) fn split(&self, parts: usize) {
        let mut totals = self.0.lock();
        totals.pending = totals.pending + parts - 1;
    }
}

impl Totals {
    fn finish(&mut self) -> Option<LastRow> {
        self.pending -= 1;
        if self.pending > 0 {
            return None;
        }
        let (accumulators, _reservation) = self.others.take()?;
        Some((accumulators, std::mem::take(&mut self.counts)))
    }
}

impl std::fmt::Debug for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} partitions pending, {:?} values", self.pending, self.counts)
    }
}
