//! Rows of grouping sets, aggregated by all keys first.
//!
//! Without this, each row updates one group per set. With it, each row updates one group, the
//! *finest*, and the states of the finest groups are merged into the groups of each set: when there
//! are many, and at the end. (Gray et al., "Data Cube: A Relational Aggregation Operator", 1997.)

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use datafusion_common::DataFusionError;
use datafusion_expr::{EmitTo, GroupsAccumulator};

use super::{
    config::{AggregateInput, AggregatePlan},
    groups::{Arguments, accumulators, update_groups},
};
use crate::keys::{GroupValues, KeyEncoder};

/// Groups at which the states are merged into those of the sets. The table then outgrows a core's
/// own cache.
const MAX_GROUPS: usize = if cfg!(test) { 7 } else { 1 << 16 };
/// Bytes at which the states are merged, 4 MiB: merging takes as much again for each set.
const MAX_BYTES: usize = 4 << 20;
/// Minimum average of rows per finest group. With fewer, most of them would be aggregated twice.
const MIN_ROWS_PER_GROUP: usize = 2;

/// The groups by all keys, whatever their set.
pub(super) struct FinestGroups {
    encoder: KeyEncoder,
    table: GroupValues,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    rows: usize,
    groups: Vec<usize>,
}

/// Keys and states of finest groups: a column per key, without dictionaries and runs, and the
/// columns of each state.
pub(super) struct FinestStates {
    pub(super) keys: Vec<ArrayRef>,
    pub(super) states: Vec<Vec<ArrayRef>>,
}

impl FinestGroups {
    /// Returns an empty table; `None` if the plan has only one set, or if a function's state cannot
    /// be merged in any order.
    pub(super) fn new(plan: &AggregatePlan) -> Result<Option<Self>, DataFusionError> {
        let config = &plan.config;
        let ordered = config.aggregates.iter().any(|call| !call.function.order_bys().is_empty());
        if config.group_by.sets.len() < 2 || config.input != AggregateInput::Raw || ordered {
            return Ok(None);
        }
        let Some(encoder) = plan.finest_encoder.clone() else { return Ok(None) };
        // Arrow rows are encoded from their declared types only.
        let is_rows = |encoder: &KeyEncoder| encoder.empty_keys().is_variable_length();
        if is_rows(&encoder) || is_rows(&plan.encoder) {
            return Ok(None);
        }
        Ok(Some(Self {
            table: GroupValues::new(&encoder),
            accumulators: accumulators(plan)?,
            encoder,
            rows: 0,
            groups: Vec::new(),
        }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns whether the states are to be merged before more rows are added.
    pub(super) fn is_full(&self) -> bool {
        self.table.len() >= MAX_GROUPS || self.bytes() >= MAX_BYTES
    }

    /// Returns whether the groups since the last merge had enough rows.
    pub(super) fn is_effective(&self) -> bool {
        self.rows >= MIN_ROWS_PER_GROUP * self.table.len()
    }

    /// Returns the memory of the groups, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.accumulators.iter().map(|a| a.size()).sum::<usize>()
    }

    /// Aggregates rows with these keys.
    pub(super) fn update(
        &mut self,
        keys: &[ArrayRef],
        arguments: &[Arguments],
    ) -> Result<(), DataFusionError> {
        let encoded = self.encoder.encode(keys)?;
        self.table.assign(&encoded, &mut self.groups);
        self.rows += encoded.len();
        let (groups, total) = (&self.groups, self.table.len());
        update_groups(&mut self.accumulators, arguments, AggregateInput::Raw, groups, total)
    }

    /// Removes all groups, which are not empty, and returns them.
    pub(super) fn take(
        &mut self,
        plan: &Arc<AggregatePlan>,
    ) -> Result<FinestStates, DataFusionError> {
        let mut states = Vec::with_capacity(self.accumulators.len());
        for accumulator in &mut self.accumulators {
            states.push(accumulator.state(EmitTo::All)?);
        }
        let keys = self.encoder.decode_plain_range(self.table.keys(), 0..self.table.len())?;
        self.table = GroupValues::new(&self.encoder);
        self.accumulators = accumulators(plan)?;
        self.rows = 0;
        Ok(FinestStates { keys, states })
    }
}

impl FinestStates {
    /// Returns the groups in slices of at most `rows` groups.
    pub(super) fn slices(&self, rows: usize) -> impl Iterator<Item = Self> {
        let total = self.keys.first().map_or(0, |key| key.len());
        (0..total).step_by(rows).map(move |first| {
            let slice = |column: &ArrayRef| column.slice(first, rows.min(total - first));
            let states = self.states.iter().map(|columns| columns.iter().map(slice).collect());
            Self { keys: self.keys.iter().map(slice).collect(), states: states.collect() }
        })
    }
}
