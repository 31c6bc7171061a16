//! Rows of grouping sets, aggregated by all keys first.
//!
//! Without this, each row updates one group per set. With it, each row updates one group, the
//! *finest*. When there are many of these, and at the end, the groups of each set are made: those
//! of a set that leaves out a key from those of the smallest set that has its keys, rather than
//! from the finest. (Gray et al., "Data Cube: A Relational Aggregation Operator", 1997; Agarwal et
//! al., "On the Computation of Multidimensional Aggregates", 1996.)

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, new_null_array};
use datafusion_expr::{EmitTo, GroupsAccumulator};
use gatework_runtime::{
    Result,
    pipeline::{DriverContext, QueryContext},
};

use super::{
    config::{AggregateInput, AggregatePlan},
    group_keys::{GroupKeys, SLICE_GROUPS},
    groups::{Arguments, accumulators, update_groups},
};
use crate::{
    ResultExt,
    keys::{GroupValues, KeyEncoder, KeyNulls},
};

/// Number and bytes of groups at which the groups of the sets are made. These take as much again
/// for each set.
const LIMITS: (usize, usize) = (if cfg!(test) { 7 } else { 1 << 16 }, 4 << 20);
/// The same where each set has a part of the keys of the one before it, as in ROLLUP: the groups of
/// two sets are in memory at a time.
const ROLLUP_LIMITS: (usize, usize) = (if cfg!(test) { 25 } else { 1 << 18 }, 32 << 20);

/// The groups by all keys, whatever their set.
pub(super) struct FinestGroups {
    plan: Arc<AggregatePlan>,
    encoder: KeyEncoder,
    query: Arc<QueryContext>,
    keys: GroupKeys,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    rows: usize,
    groups: Vec<usize>,
    max_groups: usize,
    max_bytes: usize,
}

/// Groups of one set: a column per key, which is NULL where the set leaves it out, without
/// dictionaries and runs; and the columns of each function's state.
pub(super) struct GroupStates {
    pub(super) len: usize,
    pub(super) keys: Vec<ArrayRef>,
    pub(super) states: Vec<Vec<ArrayRef>>,
}

impl FinestGroups {
    /// Returns an empty table; `None` if the plan has only one set, or if a function's state cannot
    /// be merged in any order.
    pub(super) fn new(
        plan: &Arc<AggregatePlan>,
        query: &Arc<QueryContext>,
    ) -> Result<Option<Self>> {
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
        let (max_groups, max_bytes) = match is_rollup(&config.group_by.sets) {
            true if !config.memory_is_limited => ROLLUP_LIMITS,
            _ => LIMITS,
        };
        Ok(Some(Self {
            plan: plan.clone(),
            keys: GroupKeys::new(encoder.clone(), query.clone()),
            encoder,
            query: query.clone(),
            accumulators: accumulators(plan).query_err()?,
            rows: 0,
            groups: Vec::new(),
            max_groups,
            max_bytes,
        }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.len() == 0
    }

    /// Returns whether the groups of the sets are to be made before more rows are added.
    pub(super) fn is_full(&self) -> bool {
        self.keys.len() >= self.max_groups || self.bytes() >= self.max_bytes
    }

    /// Returns the number of rows that were aggregated.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the memory of the groups, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.bytes() + self.accumulators.iter().map(|a| a.size()).sum::<usize>()
    }

    /// Returns the memory of the groups, and as much for those of the sets, in bytes.
    pub(super) fn bytes_with_sets(&self) -> usize {
        2 * self.bytes()
    }

    /// Aggregates rows with these keys, which may be dictionaries.
    pub(super) fn update(&mut self, keys: &[ArrayRef], arguments: &[Arguments]) -> Result<()> {
        let rows = keys.first().map_or(0, |key| key.len());
        if !self.keys.assign_codes(keys, &mut self.groups)? {
            self.keys.reserve(rows)?;
            self.keys.assign(&self.keys.decode(keys)?, &mut self.groups)?;
            self.keys.rows += rows;
        }
        self.rows += rows;
        let (groups, total) = (&self.groups, self.keys.len());
        let input = AggregateInput::Raw;
        update_groups(&mut self.accumulators, arguments, input, groups, total).query_err()
    }

    /// Removes all groups, which are not empty, and returns them.
    pub(super) fn take(&mut self) -> Result<GroupStates> {
        let states = states(&mut self.accumulators)?;
        let len = self.keys.len();
        let keys = self.keys.columns(0..len)?;
        self.keys = GroupKeys::new(self.encoder.clone(), self.query.clone());
        self.accumulators = accumulators(&self.plan).query_err()?;
        self.rows = 0;
        Ok(GroupStates { len, keys, states })
    }
}

/// Returns the states of all groups, and removes these.
fn states(accumulators: &mut [Box<dyn GroupsAccumulator>]) -> Result<Vec<Vec<ArrayRef>>> {
    let states = accumulators.iter_mut().map(|accumulator| accumulator.state(EmitTo::All));
    states.collect::<Result<_, _>>().query_err()
}

/// Returns whether a set with these flags of keys that it leaves out has all keys of `other`.
fn covers(set: &[bool], other: &[bool]) -> bool {
    set.iter().zip(other).all(|(out, other_out)| !out || *other_out)
}

/// Returns the order in which sets are made: each after those that have more keys.
fn order(sets: &[Vec<bool>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|set| sets[*set].iter().filter(|out| **out).count());
    order
}

fn is_rollup(sets: &[Vec<bool>]) -> bool {
    order(sets).windows(2).all(|pair| covers(&sets[pair[0]], &sets[pair[1]]))
}

/// Makes the groups of each grouping set from the finest groups.
pub(super) struct SetsOfGroups {
    plan: Arc<AggregatePlan>,
    /// Sets to come, the last one first.
    order: Vec<usize>,
    finest: GroupStates,
    /// Groups of sets from which later ones can be made.
    made: Vec<(usize, GroupStates)>,
}

impl SetsOfGroups {
    pub(super) fn new(plan: Arc<AggregatePlan>, finest: GroupStates) -> Self {
        let mut order = order(&plan.config.group_by.sets);
        order.reverse();
        Self { plan, order, finest, made: Vec::new() }
    }

    /// Makes the groups of the next set. Returns the set, its groups, and the number of groups that
    /// they were made from; `None` after the last set.
    pub(super) fn next(
        &mut self,
        task: &DriverContext,
    ) -> Result<Option<(usize, &GroupStates, usize)>> {
        let Some(set) = self.order.pop() else { return Ok(None) };
        let sets = &self.plan.config.group_by.sets;
        if !sets[set].contains(&true) {
            return Ok(Some((set, &self.finest, 0)));
        }
        let made = self.made.iter().filter(|(made, _)| covers(&sets[*made], &sets[set]));
        let source = made.map(|(_, groups)| groups).min_by_key(|groups| groups.len);
        let source = source.unwrap_or(&self.finest);
        let (groups, merged) = (source.coarser(&self.plan, &sets[set], task)?, source.len);
        // A set whose keys this one has, and which is no larger, is no longer needed.
        self.made.retain(|(made, made_groups)| {
            let is_worse = |later: &usize| {
                !covers(&sets[*made], &sets[*later])
                    || covers(&sets[set], &sets[*later]) && groups.len <= made_groups.len
            };
            !self.order.iter().all(is_worse)
        });
        self.made.push((set, groups));
        Ok(self.made.last().map(|(set, groups)| (*set, groups, merged)))
    }
}

impl GroupStates {
    /// Returns the groups of a set that leaves out keys.
    fn coarser(&self, plan: &AggregatePlan, set: &[bool], task: &DriverContext) -> Result<Self> {
        let kept: Vec<_> = (0..set.len()).filter(|key| !set[*key]).collect();
        let types = kept.iter().map(|key| (self.keys[*key].data_type().clone(), true));
        let encoder = KeyEncoder::new(&types.collect::<Vec<_>>(), KeyNulls::Equal).query_err()?;
        let mut table = GroupValues::new(&encoder);
        let mut accumulators = accumulators(plan).query_err()?;
        let mut groups = Vec::new();
        for slice in self.slices(SLICE_GROUPS) {
            task.check_cancelled()?;
            if kept.is_empty() {
                groups.clear();
                groups.resize(slice.len, 0);
            } else {
                let keys: Vec<_> = kept.iter().map(|key| slice.keys[*key].clone()).collect();
                table.reserve(slice.len, || task.check_cancelled())?;
                table.assign(&encoder.encode(&keys).query_err()?, &mut groups);
            }
            let total = if kept.is_empty() { 1 } else { table.len() };
            for (accumulator, values) in accumulators.iter_mut().zip(&slice.states) {
                accumulator.merge_batch(values, &groups, total).query_err()?;
            }
        }
        let len = if kept.is_empty() { 1 } else { table.len() };
        let mut keys: Vec<_> =
            self.keys.iter().map(|key| new_null_array(key.data_type(), len)).collect();
        if !kept.is_empty() {
            let columns = encoder.decode_plain_range(table.keys(), 0..len).query_err()?;
            kept.iter().zip(columns).for_each(|(key, column)| keys[*key] = column);
        }
        Ok(Self { len, keys, states: states(&mut accumulators)? })
    }

    /// Returns the groups in slices of at most `rows` groups.
    pub(super) fn slices(&self, rows: usize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(rows).map(move |first| {
            let len = rows.min(self.len - first);
            let slice = |column: &ArrayRef| column.slice(first, len);
            let states = self.states.iter().map(|columns| columns.iter().map(slice).collect());
            Self { len, keys: self.keys.iter().map(slice).collect(), states: states.collect() }
        })
    }
}
