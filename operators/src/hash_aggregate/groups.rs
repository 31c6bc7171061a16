//! Table of groups with the accumulators' states, and the parts made from it.

use std::{ops::Range, sync::Arc};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array};
use datafusion_common::{DataFusionError, cast::as_boolean_array};
use datafusion_expr::{EmitTo, GroupsAccumulator};
use datafusion_physical_expr::{
    GroupsAccumulatorAdapter, PhysicalExpr, aggregate::AggregateFunctionExpr,
};
use gatework_runtime::{
    Result,
    pipeline::{
        DriverContext, OperatorContext, OutOfMemory, QueryContext, Reservation, SpilledBatches,
    },
};

use super::{
    config::{AggregateCall, AggregateInput, AggregatePlan, AggregateResult},
    finest_groups::{FinestGroups, SetsOfGroups},
    group_emitter::GroupEmitter,
    group_keys::{GroupKeys, SLICE_GROUPS},
    partial_states::{PartialStates, UnpartitionedGroups, UnpartitionedStates},
    row_states::{Bypass, RowStates, reduces},
};
use crate::{ResultExt, keys::GroupValues, slices::for_each_slice, spill::try_resize_above};

/// Groups of one hash partition that a sink publishes to a source.
pub(super) enum AggregatePart {
    /// A whole table, of the only sink.
    Table(Box<AggregateHashTable>),
    /// Keys with the partial states of each aggregate.
    States(PartialStates),
    /// Spilled keys with partial states: the file, and the range of its batches.
    Spilled(Arc<dyn SpilledBatches>, Range<usize>),
    /// The accumulators of the only group, and their reservation.
    Single(super::ungrouped::Accumulators, Reservation),
}

/// Groups at which a local table that merges few rows is emptied, if there are several sinks. At
/// about ten bytes per slot, plus a key and a state, the table stays within a core's own cache.
const FULL_TABLE_GROUPS: usize = if cfg!(test) { 50 } else { 1 << 16 };
/// The same for a table that merges rows.
const MAX_FULL_TABLE_GROUPS: usize = if cfg!(test) { 200 } else { 1 << 19 };
/// The same where a row finds its group without a hash table: at its code in a dictionary, or at
/// the values of keys of small ranges.
const FULL_INDEX_GROUPS: usize = if cfg!(test) { 200 } else { 1 << 20 };

/// Maximum number of groups for which a table reserves capacity in advance. Such a table stays
/// within a core's own cache.
const MAX_PRESIZED_GROUPS: usize = 1 << 16;

/// Hash table of groups.
///
/// Invariant: every group below its length has had a row in every accumulator.
pub(super) struct AggregateHashTable {
    plan: Arc<AggregatePlan>,
    /// The groups, except rows that bypassed them.
    keys: GroupKeys,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// Groups at which the table is full.
    full_groups: usize,
    /// Rows of grouping sets that are not in the table yet; `None` if that does not help.
    finest: Option<FinestGroups>,
    /// Decides whether rows bypass the table; `None` if they never do.
    bypass: Option<Bypass>,
    /// Rows that bypassed the table, which then has no groups.
    bypassed: RowStates,
    query: Arc<QueryContext>,
    reservation: Reservation,
    can_spill: bool,
    /// Its groups are never spilled, so the copy made for spilling is not reserved.
    without_spilling: bool,
    /// Bytes below which a denied reservation is ignored.
    min_spill_bytes: usize,
    /// The group of each row of the current slice.
    groups: Vec<usize>,
}

/// Returns an accumulator without groups for each function of `plan`.
pub(super) fn accumulators(
    plan: &AggregatePlan,
) -> Result<Vec<Box<dyn GroupsAccumulator>>, DataFusionError> {
    plan.config.aggregates.iter().map(|call| accumulator(&call.function)).collect()
}

/// Updates the groups of rows with the functions' arguments.
pub(super) fn update_groups(
    accumulators: &mut [Box<dyn GroupsAccumulator>],
    arguments: &[Arguments],
    input: AggregateInput,
    groups: &[usize],
    total: usize,
) -> Result<(), DataFusionError> {
    for (accumulator, (values, filter)) in accumulators.iter_mut().zip(arguments) {
        match input {
            AggregateInput::Raw => {
                let filter = filter.as_ref().map(|f| as_boolean_array(f)).transpose()?;
                accumulator.update_batch(values, groups, filter, total)?;
            }
            AggregateInput::Partial => accumulator.merge_batch(values, groups, total)?,
        }
    }
    Ok(())
}

fn accumulator(
    function: &Arc<AggregateFunctionExpr>,
) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = function.clone();
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
}

fn evaluate(
    expressions: &[Arc<dyn PhysicalExpr>],
    batch: &RecordBatch,
) -> Result<Vec<ArrayRef>, DataFusionError> {
    let rows = batch.num_rows();
    expressions.iter().map(|e| e.evaluate(batch)?.into_array_of_size(rows)).collect()
}

/// Input of an aggregate function: its arguments, and the filter of its rows.
pub(super) type Arguments = (Vec<ArrayRef>, Option<ArrayRef>);

fn arguments(
    calls: &[AggregateCall],
    batch: &RecordBatch,
) -> Result<Vec<Arguments>, DataFusionError> {
    let rows = batch.num_rows();
    let of_call = |call: &AggregateCall| {
        let filter = call.filter.as_ref();
        let filter = filter.map(|filter| filter.evaluate(batch)?.into_array_of_size(rows));
        Ok((evaluate(&call.arguments, batch)?, filter.transpose()?))
    };
    calls.iter().map(of_call).collect()
}

impl AggregateHashTable {
    pub(super) fn new(plan: Arc<AggregatePlan>, context: &OperatorContext) -> Result<Self> {
        let reservation = context.reservation();
        let keys = GroupKeys::new(plan.encoder.clone(), context.query().clone());
        let accumulators = accumulators(&plan).query_err()?;
        Ok(Self {
            bypassed: RowStates::new(&plan),
            plan,
            keys,
            accumulators,
            full_groups: FULL_TABLE_GROUPS,
            finest: None,
            bypass: None,
            query: context.query().clone(),
            reservation,
            can_spill: context.can_spill(),
            without_spilling: false,
            min_spill_bytes: context.min_spill_bytes(),
            groups: Vec::new(),
        })
    }

    /// Returns the table, which aggregates the rows of grouping sets by all keys first.
    pub(super) fn with_finest(self) -> Result<Self> {
        let finest = FinestGroups::new(&self.plan, &self.query)?;
        Ok(Self { finest, ..self })
    }

    /// Returns the table, which rows may bypass until the parts are merged.
    pub(super) fn with_bypass(self) -> Result<Self> {
        let bypass = Bypass::new(&self.plan).query_err()?;
        Ok(Self { bypass, ..self })
    }

    /// Returns the table, marked as never spilled.
    pub(super) fn without_spilling(self) -> Self {
        Self { without_spilling: true, ..self }
    }

    /// Returns the number of groups, of which each row that bypasses the table is one.
    pub(super) fn num_groups(&self) -> usize {
        self.keys.len() + self.bypassed.len()
    }

    /// Returns whether the table of a sink should be emptied. A table whose groups had several rows
    /// grows instead, since these groups would have to be merged once more for each emptied table.
    pub(super) fn is_full(&mut self) -> bool {
        let groups = self.num_groups();
        if self.keys.is_indexed() {
            return groups >= FULL_INDEX_GROUPS;
        }
        while groups >= self.full_groups {
            let grows = groups == self.keys.len() && reduces(self.keys.rows, groups);
            if !grows || self.full_groups >= MAX_FULL_TABLE_GROUPS {
                return true;
            }
            self.full_groups *= 2;
        }
        false
    }

    /// Returns whether no row was aggregated.
    pub(super) fn is_empty(&self) -> bool {
        self.num_groups() == 0 && self.finest.as_ref().is_none_or(FinestGroups::is_empty)
    }

    /// Returns the bytes reserved for groups; 0 for an empty table, which keeps its reservation.
    pub(super) fn reserved(&self) -> usize {
        if self.is_empty() { 0 } else { self.reservation.bytes() }
    }

    /// Aggregates the rows of `batch`, which is not empty. The caller then
    /// [reserves](Self::update_reservation) the groups.
    pub(super) fn update(&mut self, batch: &RecordBatch, task: &DriverContext) -> Result<()> {
        let plan = self.plan.clone();
        for_each_slice(batch, &plan.inputs, task, |slice| self.update_slice(&plan, slice, task))
    }

    fn update_slice(
        &mut self,
        plan: &AggregatePlan,
        rows: &RecordBatch,
        task: &DriverContext,
    ) -> Result<()> {
        let arguments = arguments(&plan.config.aggregates, rows).query_err()?;
        let keys = plan.config.group_by.evaluate_keys(rows).query_err()?;
        self.update_keys(keys, &arguments, rows.num_rows(), task)
    }

    /// As [`Self::update`], with the values of the keys and of the functions' arguments.
    pub(super) fn update_keys(
        &mut self,
        keys: Vec<ArrayRef>,
        arguments: &[Arguments],
        rows: usize,
        task: &DriverContext,
    ) -> Result<()> {
        let plan = self.plan.clone();
        if let Some(finest) = &mut self.finest {
            finest.update(&keys, arguments)?;
            if finest.is_full() {
                self.merge_finest(task)?;
            }
            return Ok(());
        }
        let bypasses = self.keys.len() == 0 && self.bypass.as_ref().is_some_and(Bypass::is_active);
        let is_one_set = plan.config.group_by.set_ids.is_none();
        if !bypasses && is_one_set && self.keys.assign_codes(&keys, &mut self.groups)? {
            self.update_groups(arguments).query_err()?;
            return Ok(());
        }
        let keys = self.keys.decode(&keys)?;
        for keys in plan.config.group_by.columns_of_sets(keys, rows).query_err()? {
            if bypasses {
                let (states, input) = (&mut self.bypassed, plan.config.input);
                states.add(&plan, &keys, &self.accumulators, arguments, input).query_err()?;
                continue;
            }
            self.keys.reserve(rows)?;
            self.keys.assign(&keys, &mut self.groups)?;
            self.keys.rows += rows;
            self.update_groups(arguments).query_err()?;
        }
        Ok(())
    }

    /// Updates the groups of the current rows with the functions' arguments.
    fn update_groups(&mut self, arguments: &[Arguments]) -> Result<(), DataFusionError> {
        let (input, total) = (self.plan.config.input, self.keys.len());
        update_groups(&mut self.accumulators, arguments, input, &self.groups, total)
    }

    /// Merges the rows that are not in the table yet into the groups of each grouping set. Returns
    /// whether there were any; the caller then [reserves](Self::update_reservation) the groups.
    pub(super) fn merge_finest(&mut self, task: &DriverContext) -> Result<bool> {
        let Some(mut finest) = self.finest.take_if(|finest| !finest.is_empty()) else {
            return Ok(false);
        };
        let plan = self.plan.clone();
        let (group_by, rows) = (&plan.config.group_by, finest.rows());
        let mut lookups = rows;
        let mut sets = SetsOfGroups::new(plan.clone(), finest.take()?);
        while let Some((set, groups, merged)) = sets.next(task)? {
            lookups += groups.len + merged;
            for slice in groups.slices(SLICE_GROUPS) {
                task.check_cancelled()?;
                let keys = group_by.with_set_id(slice.keys, set, slice.len).query_err()?;
                self.keys.reserve(slice.len)?;
                self.keys.assign(&keys, &mut self.groups)?;
                let total = self.keys.len();
                for (accumulator, values) in self.accumulators.iter_mut().zip(&slice.states) {
                    accumulator.merge_batch(values, &self.groups, total).query_err()?;
                }
            }
        }
        // Otherwise each row updates one group per set.
        self.finest = (lookups <= group_by.sets.len() * rows).then_some(finest);
        Ok(true)
    }

    /// Makes the groups of each grouping set from the last rows. They bypass the table if it is
    /// empty: each group is there once. Otherwise as [`Self::merge_finest`].
    pub(super) fn finish_finest(&mut self, task: &DriverContext) -> Result<bool> {
        let bypasses = self.plan.sinks > 1 && self.keys.len() == 0;
        let Some(mut finest) = self.finest.take_if(|finest| bypasses && !finest.is_empty()) else {
            return self.merge_finest(task);
        };
        let plan = self.plan.clone();
        let mut sets = SetsOfGroups::new(plan.clone(), finest.take()?);
        while let Some((set, groups, _)) = sets.next(task)? {
            for slice in groups.slices(SLICE_GROUPS) {
                task.check_cancelled()?;
                let keys = plan.config.group_by.with_set_id(slice.keys, set, slice.len);
                let keys = keys.query_err()?;
                let states: Vec<Arguments> =
                    slice.states.into_iter().map(|columns| (columns, None)).collect();
                let (bypassed, input) = (&mut self.bypassed, AggregateInput::Partial);
                bypassed.add(&plan, &keys, &self.accumulators, &states, input).query_err()?;
            }
        }
        Ok(true)
    }

    /// Moves groups of keys that arrived as dictionaries into the table, under the same numbers.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.keys.settle(&mut self.groups)
    }

    /// Reserves capacity for groups about to be merged from parts of `rows` rows each. Parts may
    /// share many of their groups. Keeps an empty table if memory is denied.
    pub(super) fn reserve_groups(
        &mut self,
        rows: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        let max_groups = MAX_PRESIZED_GROUPS.min(4 * rows.clone().max().unwrap_or(0));
        self.keys.reserve(max_groups.min(rows.sum()))?;
        if self.update_reservation().is_err() {
            self.keys.release();
        }
        Ok(())
    }

    /// Merges the partial states of another table. The caller then
    /// [reserves](Self::update_reservation) the groups.
    pub(super) fn merge(&mut self, states: PartialStates) -> Result<()> {
        self.keys.reserve(states.len())?;
        self.keys.table.intern(&states.keys, &states.hashes, &mut self.groups);
        let total = self.keys.table.len();
        for (accumulator, values) in self.accumulators.iter_mut().zip(&states.states) {
            accumulator.merge_batch(values, &self.groups, total).query_err()?;
        }
        Ok(())
    }

    /// Adds the row of each empty grouping set. Called when there was no input.
    pub(super) fn add_empty_sets(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        let config = &plan.config;
        let Some((_, ids)) = &config.group_by.set_ids else { return Ok(()) };
        let fields = config.schema.fields();
        for set in config.group_by.empty_sets() {
            let key_count = config.group_by.keys.len();
            let mut columns: Vec<ArrayRef> =
                fields.iter().take(key_count).map(|f| new_null_array(f.data_type(), 1)).collect();
            let id = datafusion_common::ScalarValue::UInt64(Some(ids[set]));
            let id = id.cast_to(fields[key_count].data_type()).query_err()?;
            columns.push(id.to_array().query_err()?);
            let keys = plan.encoder.encode(&columns).query_err()?;
            self.keys.table.assign(&keys, &mut self.groups);
            let total = self.keys.table.len();
            for (accumulator, call) in self.accumulators.iter_mut().zip(&config.aggregates) {
                // A row that the filter drops: the group exists, but its accumulators have seen no
                // row.
                let types = call.arguments.iter().map(|e| e.data_type(&config.input_schema));
                let types = types.collect::<Result<Vec<_>, _>>().query_err()?;
                let nulls: Vec<_> = types.iter().map(|kind| new_null_array(kind, 1)).collect();
                let none = BooleanArray::from(vec![false]);
                accumulator.update_batch(&nulls, &self.groups, Some(&none), total).query_err()?;
            }
        }
        Ok(())
    }

    /// Returns the bytes of the table and of what spilling it adds: the accumulators' states, the
    /// groups of each partition, and one batch of them at a time.
    fn bytes(&self) -> usize {
        let accumulators: usize = self.accumulators.iter().map(|a| a.size()).sum();
        let table = self.keys.bytes();
        let finest = self.finest.as_ref().map_or(0, FinestGroups::bytes_with_sets);
        match self.can_spill && !self.without_spilling {
            true => table + table / 4 + 2 * accumulators + finest + 2 * self.bypassed.bytes(),
            false => table + accumulators + finest + self.bypassed.bytes(),
        }
    }

    /// Adjusts the reservation to the table's bytes.
    pub(super) fn update_reservation(&mut self) -> Result<(), OutOfMemory> {
        let bytes = self.bytes();
        try_resize_above(&mut self.reservation, bytes, self.min_spill_bytes)
    }

    /// Empties the table into partial states: one part per hash partition that has groups. The hash
    /// bits differ at each `level`. If `more` groups will follow, the table keeps its memory.
    /// Returns the denial if the parts need more than the table's reservation.
    pub(super) fn partition(
        &mut self,
        level: u32,
        parts: &mut [Vec<AggregatePart>],
        more: bool,
    ) -> Result<Option<OutOfMemory>> {
        let Some((unpartitioned, mut reservation)) = self.take_unpartitioned(level)? else {
            return Ok(None);
        };
        let mut bytes = 0;
        for (partition, indices) in unpartitioned.indices().into_iter().enumerate() {
            if indices.is_empty() {
                continue;
            }
            let part = unpartitioned.take_partition(indices)?;
            bytes += part.bytes();
            parts[partition].push(AggregatePart::States(part));
        }
        // Must come before the table's reservation is released.
        if more {
            match unpartitioned.groups {
                UnpartitionedGroups::Table(mut table) => {
                    table.clear();
                    self.keys.table = table;
                }
                UnpartitionedGroups::Rows(keys, hashes) => self.bypassed.reuse(keys, hashes),
            }
            let bytes = self.bytes().saturating_sub(self.reservation.bytes());
            self.reservation.merge(reservation.split(bytes));
            if self.update_reservation().is_err() {
                self.keys.release();
                self.bypassed = RowStates::new(&self.plan);
            }
        }
        let resized = reservation.resize(bytes);
        self.split_reservation(reservation, parts);
        Ok(self.update_reservation().and(resized).err())
    }

    /// Frees the empty table and shrinks the reservation. Called by `AggregateSpiller::spill` after
    /// the groups were taken.
    pub(super) fn release_unused(&mut self) -> Result<(), OutOfMemory> {
        if self.num_groups() == 0 {
            self.keys.release();
        }
        self.update_reservation()
    }

    /// Empties the table: returns its groups, to be partitioned at `level`, and their reservation.
    /// Returns `None` if there are no groups.
    pub(super) fn take_unpartitioned(
        &mut self,
        level: u32,
    ) -> Result<Option<(UnpartitionedStates, Reservation)>> {
        // The task had no rows. Some accumulators cannot return the states of zero groups.
        if self.num_groups() == 0 {
            return Ok(None);
        }
        self.settle()?;
        if let Some(bypass) = &mut self.bypass {
            bypass.decide(self.keys.rows, self.keys.table.len(), self.bypassed.len());
        }
        debug_assert!(
            self.keys.table.is_empty() || self.bypassed.len() == 0,
            "taken one at a time"
        );
        let shares_texts = !self.plan.config.memory_is_limited;
        let (groups, states) = if self.bypassed.len() > 0 {
            let mut rows = std::mem::replace(&mut self.bypassed, RowStates::new(&self.plan));
            let states = rows.states().query_err()?;
            if shares_texts {
                rows.keys.seal_texts();
            }
            (UnpartitionedGroups::Rows(rows.keys, rows.hashes), states)
        } else {
            let mut states = Vec::with_capacity(self.accumulators.len());
            for accumulator in &mut self.accumulators {
                states.push(accumulator.state(EmitTo::All).query_err()?);
            }
            let mut table = self.take_table()?;
            if shares_texts {
                table.seal_texts();
            }
            (UnpartitionedGroups::Table(table), states)
        };
        let plan = self.plan.clone();
        let unpartitioned = UnpartitionedStates { plan, groups, states, level, shares_texts };
        // The reservation keeps the bytes of the empty table.
        let bytes = self.reservation.bytes().saturating_sub(self.bytes());
        Ok(Some((unpartitioned, self.reservation.split(bytes))))
    }

    /// Resets the accumulators, and returns the table of the groups.
    fn take_table(&mut self) -> Result<GroupValues> {
        for (accumulator, call) in self.accumulators.iter_mut().zip(&self.plan.config.aggregates) {
            *accumulator = self::accumulator(&call.function).query_err()?;
        }
        self.full_groups = FULL_TABLE_GROUPS;
        Ok(self.keys.take_table())
    }

    /// Splits the reservation among the new parts.
    fn split_reservation(&self, mut reservation: Reservation, parts: &mut [Vec<AggregatePart>]) {
        for part in parts.iter_mut().filter_map(|parts| parts.last_mut()) {
            if let AggregatePart::States(states) = part
                && states.memory.is_none()
            {
                states.memory = Some(reservation.split(states.bytes()));
            }
        }
    }

    /// Returns each row of `batch` as the states of a group with that row only.
    pub(super) fn convert_to_state(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.convert_inner(batch).query_err()?;
        super::source::build_output_batch(&self.plan.config.schema, columns, batch.num_rows())
    }

    fn convert_inner(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>, DataFusionError> {
        let config = &self.plan.config;
        let keys = self.plan.decode_keys(config.group_by.evaluate_keys(batch)?)?;
        let mut columns = config.group_by.columns_of_sets(keys, batch.num_rows())?.concat();
        for (accumulator, (values, filter)) in
            self.accumulators.iter().zip(arguments(&config.aggregates, batch)?)
        {
            columns.extend(match config.input {
                AggregateInput::Raw => {
                    let filter = filter.as_ref().map(|f| as_boolean_array(f)).transpose()?;
                    accumulator.convert_to_state(&values, filter)?
                }
                AggregateInput::Partial => values,
            });
        }
        Ok(columns)
    }

    /// Empties the table: returns its groups as output rows, or `None` if there are no groups.
    pub(super) fn drain(&mut self) -> Result<Option<GroupEmitter>> {
        // Some accumulators cannot return the values of zero groups.
        if self.num_groups() == 0 {
            return Ok(None);
        }
        self.settle()?;
        let config = &self.plan.config;
        let mut values = Vec::with_capacity(self.accumulators.len());
        for accumulator in &mut self.accumulators {
            match config.output {
                AggregateResult::Final => {
                    values.push(accumulator.evaluate(EmitTo::All).query_err()?)
                }
                AggregateResult::Partial => {
                    values.extend(accumulator.state(EmitTo::All).query_err()?)
                }
            }
        }
        let keys = self.take_table()?.into_keys();
        let mut memory = self.reservation.take();
        let bytes = keys.bytes() + values.iter().map(|v| v.get_array_memory_size()).sum::<usize>();
        let resized = memory.resize(bytes);
        // Otherwise the bytes are about those of the table, whose reservation is kept.
        if !self.can_spill && !self.without_spilling {
            resized?;
        }
        let plan = self.plan.clone();
        Ok(Some(GroupEmitter::new(plan, keys, values, memory)))
    }
}
