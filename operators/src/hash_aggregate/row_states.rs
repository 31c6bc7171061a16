//! Rows that bypass a sink's table: each becomes the states of a group of its own.
//!
//! Where nearly every row starts a new group, a local table looks up each row and merges nothing;
//! the rows are looked up once, when the partitions are merged. (Presto's adaptive partial
//! aggregation; DataFusion skips partial aggregation alike.)

use arrow::{
    array::{Array, ArrayRef},
    compute::concat,
};
use datafusion_common::{DataFusionError, cast::as_boolean_array};
use datafusion_expr::GroupsAccumulator;

use super::{
    config::{AggregateCall, AggregateInput, AggregatePlan},
    groups::Arguments,
};
use crate::keys::EncodedKeys;

/// Rows that bypass the table before it is tried again. Each further bypass is four times as long.
const FIRST_BYPASS_ROWS: usize = if cfg!(test) { 64 } else { 1 << 19 };
/// Maximum number of rows that bypass the table before it is tried again, since all of them are
/// kept until they are merged.
const MAX_BYPASS_ROWS: usize = 1 << 23;

/// Returns whether a table with `groups` groups of `rows` rows is effective: five rows for four
/// groups.
pub(super) fn reduces(rows: usize, groups: usize) -> bool {
    4 * rows >= 5 * groups
}

/// Keys and states of rows, in the order of arrival.
pub(super) struct RowStates {
    pub(super) keys: EncodedKeys,
    pub(super) hashes: Vec<u64>,
    new_hashes: Vec<u64>,
    /// For each aggregate the batches of each state column.
    states: Vec<Vec<Vec<ArrayRef>>>,
    state_bytes: usize,
}

impl RowStates {
    pub(super) fn new(plan: &AggregatePlan) -> Self {
        let states = vec![Vec::new(); plan.config.aggregates.len()];
        let (hashes, new_hashes) = (Vec::new(), Vec::new());
        Self { keys: plan.encoder.empty_keys(), hashes, new_hashes, states, state_bytes: 0 }
    }

    /// Keeps the memory of keys and hashes that were taken from here. Called while there are no
    /// rows.
    pub(super) fn reuse(&mut self, mut keys: EncodedKeys, mut hashes: Vec<u64>) {
        keys.clear();
        hashes.clear();
        (self.keys, self.hashes) = (keys, hashes);
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns the memory of the rows, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.bytes() + 8 * self.hashes.capacity() + self.state_bytes
    }

    /// Adds rows with their keys, which have plain values, and the functions' arguments.
    pub(super) fn add(
        &mut self,
        plan: &AggregatePlan,
        keys: &[ArrayRef],
        accumulators: &[Box<dyn GroupsAccumulator>],
        arguments: &[Arguments],
        input: AggregateInput,
    ) -> Result<(), DataFusionError> {
        let keys = plan.encoder.encode(keys)?;
        keys.hash_into(&mut self.new_hashes);
        self.keys.append(&keys);
        self.hashes.extend_from_slice(&self.new_hashes);
        for ((states, accumulator), (values, filter)) in
            self.states.iter_mut().zip(accumulators).zip(arguments)
        {
            let columns = match input {
                AggregateInput::Raw => {
                    let filter = filter.as_ref().map(|f| as_boolean_array(f)).transpose()?;
                    accumulator.convert_to_state(values, filter)?
                }
                AggregateInput::Partial => values.clone(),
            };
            states.resize(columns.len(), Vec::new());
            for (batches, column) in states.iter_mut().zip(columns) {
                self.state_bytes += column.to_data().get_slice_memory_size()?;
                batches.push(column);
            }
        }
        Ok(())
    }

    /// Returns each state column in one piece.
    pub(super) fn states(&self) -> Result<Vec<Vec<ArrayRef>>, DataFusionError> {
        let whole = |batches: &Vec<ArrayRef>| {
            let batches: Vec<&dyn Array> = batches.iter().map(AsRef::as_ref).collect();
            Ok(concat(&batches)?)
        };
        let columns = |columns: &Vec<Vec<ArrayRef>>| columns.iter().map(whole).collect();
        self.states.iter().map(columns).collect()
    }
}

/// Decides which rows bypass the table.
#[derive(Debug)]
pub(super) struct Bypass {
    /// Rows that still bypass the table.
    remaining: usize,
    /// Rows of the next bypass.
    next: usize,
}

impl Bypass {
    /// Returns the decision for a plan; `None` if its rows cannot bypass the table: their states
    /// would be of variable length, or expensive to make from a row alone. Rows of grouping sets do
    /// not: they are aggregated by all keys first, and share the groups of coarse sets.
    pub(super) fn new(plan: &AggregatePlan) -> Result<Option<Self>, DataFusionError> {
        if plan.config.group_by.set_ids.is_some() {
            return Ok(None);
        }
        for AggregateCall { function, .. } in &plan.config.aggregates {
            let states = function.state_fields()?;
            if !function.groups_accumulator_supported()
                || !states.iter().all(|state| state.data_type().is_primitive())
            {
                return Ok(None);
            }
        }
        Ok(Some(Self { remaining: 0, next: FIRST_BYPASS_ROWS }))
    }

    /// Returns whether the next rows bypass the table.
    pub(super) fn is_active(&self) -> bool {
        self.remaining > 0
    }

    /// Decides anew when the table, which has `groups` groups of `rows` rows, or the rows that
    /// bypassed it are taken.
    pub(super) fn decide(&mut self, rows: usize, groups: usize, bypassed: usize) {
        if bypassed > 0 {
            self.remaining = self.remaining.saturating_sub(bypassed);
        } else if !reduces(rows, groups) {
            self.remaining = self.next;
            self.next = (4 * self.next).min(MAX_BYPASS_ROWS);
        } else {
            (self.remaining, self.next) = (0, FIRST_BYPASS_ROWS);
        }
    }
}
