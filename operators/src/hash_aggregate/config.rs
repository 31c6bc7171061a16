//! Configuration of an aggregate: functions, group keys, input and output.

use std::sync::{Arc, atomic::AtomicBool};

use arrow::{
    array::{
        Array, ArrayRef, RecordBatch, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
        new_null_array,
    },
    datatypes::{DataType, SchemaRef},
};
use datafusion_common::{DataFusionError, internal_err};
use datafusion_physical_expr::{
    PhysicalExpr, aggregate::AggregateFunctionExpr, expressions::Column, utils::collect_columns,
};
use gatework_runtime::Result;

use super::{
    distinct_count::DistinctCount,
    distinct_values::{DistinctTotals, DistinctValues},
};
use crate::{
    ResultExt, dictionary,
    keys::{KeyEncoder, KeyNulls},
    slices::computed_from,
};

/// One aggregate function with its arguments.
#[derive(Debug, Clone)]
pub struct AggregateCall {
    /// The function.
    pub function: Arc<AggregateFunctionExpr>,
    /// The arguments over the input (ordering expressions last), or the columns of its states.
    pub arguments: Vec<Arc<dyn PhysicalExpr>>,
    /// Predicate of the rows to aggregate, from `FILTER (WHERE …)`; unused for partial states.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
    /// Whether the function is SQL's `count(DISTINCT argument)`, which has an accumulator of its
    /// own where there are no group keys.
    pub counts_distinct: bool,
}

/// Content of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateInput {
    /// Rows to aggregate.
    Raw,
    /// Partial states to merge.
    Partial,
}

/// Content of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateResult {
    /// Final values.
    Final,
    /// Partial states.
    Partial,
}

/// The group keys, possibly with grouping sets.
#[derive(Debug, Clone, Default)]
pub struct GroupBy {
    /// Key expressions.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// For each grouping set, which keys it leaves out: these are NULL in its groups. A single set
    /// that leaves out none is a plain `GROUP BY`.
    pub sets: Vec<Vec<bool>>,
    /// The grouping id of each set and its type, if the output has that column.
    pub set_ids: Option<(DataType, Vec<u64>)>,
}

/// Configuration of an aggregate.
#[derive(Debug, Clone)]
pub struct AggregateConfig {
    /// The group keys.
    pub group_by: GroupBy,
    /// The aggregate functions.
    pub aggregates: Vec<AggregateCall>,
    /// Content of the input: rows or partial states.
    pub input: AggregateInput,
    /// Content of the output: final values or partial states.
    pub output: AggregateResult,
    /// Schema of the input.
    pub input_schema: SchemaRef,
    /// Schema of the output: keys, grouping id if any, then values (or states) by function.
    pub schema: SchemaRef,
    /// Maximum rows of an output batch.
    pub batch_rows: usize,
    /// Whether memory is limited. If not, hash partitions share the buffers of long texts, which
    /// are free once all partitions are done.
    pub memory_is_limited: bool,
}

/// The prepared plan, shared by all tasks of an aggregate.
#[derive(Debug)]
pub(super) struct AggregatePlan {
    pub(super) config: AggregateConfig,
    pub(super) encoder: KeyEncoder,
    /// Encoder of the keys without the grouping id; `None` without grouping sets.
    pub(super) finest_encoder: Option<KeyEncoder>,
    /// Number of hash partitions, a power of two. Without keys, those of each of `distinct` behind
    /// one for the accumulators.
    pub(super) partitions: usize,
    pub(super) sinks: usize,
    /// Input columns that keys, arguments or filters read.
    pub(super) inputs: Vec<usize>,
    /// Input columns that may arrive as dictionaries.
    pub(super) dictionary_columns: Vec<usize>,
    /// Distinct values that are groups of plans of their own, by call.
    pub(super) distinct: Vec<DistinctValues>,
    /// What is known of the only row, if there are distinct values.
    pub(super) totals: DistinctTotals,
    /// Whether any input row arrived. Without input, empty grouping sets still output a row.
    pub(super) saw_rows: AtomicBool,
}

/// Hash partitions per sink task. Many partitions even out skew over source tasks, and let a
/// spilled partition fit into memory.
const PARTITIONS_PER_SINK: usize = 16;

impl AggregateConfig {
    /// Returns whether groups may be emitted early and more than once, as
    /// [`PartialAggregate`](super::PartialAggregate) does. The consumer must merge partial states,
    /// and no function may depend on the order of its input.
    pub fn can_flush_partial(&self) -> bool {
        let ordered = |call: &AggregateCall| !call.function.order_bys().is_empty();
        self.output == AggregateResult::Partial
            && !self.group_by.is_ungrouped()
            && self.group_by.set_ids.is_none()
            && !self.aggregates.iter().any(ordered)
    }

    /// Returns whether several source tasks share the merge: that of groups, or of distinct values
    /// that are counted.
    ///
    /// # Errors
    /// If a function does not know the type of its state.
    pub fn merges_in_parallel(&self) -> Result<bool> {
        let mut kinds = self.aggregates.iter().map(|call| DistinctValues::kind(call, self));
        Ok(!self.group_by.is_ungrouped()
            || kinds.try_fold(false, |any, kind| kind.map(|kind| any || kind.is_some()))?)
    }

    /// Returns all expressions that are evaluated over the input.
    fn expressions(&self) -> impl Iterator<Item = &Arc<dyn PhysicalExpr>> {
        let of_calls =
            self.aggregates.iter().flat_map(|call| call.arguments.iter().chain(&call.filter));
        self.group_by.keys.iter().chain(of_calls)
    }

    /// Returns the input columns that may arrive as dictionaries: keys, and values whose distinct
    /// ones are counted, unless anything else is computed from them. Keys of a few words of fixed
    /// width are looked up as fast as they are numbered.
    fn dictionary_columns(&self, encoder: &KeyEncoder) -> datafusion_common::Result<Vec<usize>> {
        let mut takers: Vec<&Arc<dyn PhysicalExpr>> = Vec::new();
        if self.group_by.is_ungrouped() {
            for call in self.aggregates.iter().filter(|call| call.filter.is_none()) {
                if DistinctCount::of(call, self)?.is_some() {
                    takers.extend(&call.arguments);
                }
            }
        } else if encoder.has_texts() {
            takers.extend(&self.group_by.keys);
        }
        takers.retain(|expr| expr.is::<Column>());
        let takes = |expr: &Arc<dyn PhysicalExpr>| takers.iter().any(|it| std::ptr::eq(*it, expr));
        let others = self.expressions().filter(|expr| !takes(expr));
        let others: Vec<usize> = others.flat_map(collect_columns).map(|it| it.index()).collect();
        let columns = takers.iter().flat_map(|it| collect_columns(it)).map(|it| it.index());
        Ok(columns.filter(|column| !others.contains(column)).collect())
    }

    pub(super) fn prepare(mut self, sinks: usize) -> Result<AggregatePlan> {
        if self.input == AggregateInput::Partial {
            // Filters were applied when the states were made, over columns that no longer exist.
            self.aggregates.iter_mut().for_each(|call| call.filter = None);
        }
        let key_count = self.group_by.keys.len() + usize::from(self.group_by.set_ids.is_some());
        let fields = self.schema.fields().iter().take(key_count);
        let types: Vec<_> =
            fields.map(|field| (field.data_type().clone(), field.is_nullable())).collect();
        let encoder = KeyEncoder::new(&types, KeyNulls::Equal).query_err()?;
        let finest_encoder = match self.group_by.set_ids {
            Some(_) if !self.group_by.keys.is_empty() => {
                let keys = &types[..self.group_by.keys.len()];
                Some(KeyEncoder::new(keys, KeyNulls::Equal).query_err()?)
            }
            _ => None,
        };
        let distinct =
            (0..self.aggregates.len()).map(|call| DistinctValues::of(call, &self, sinks));
        let distinct = distinct.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        let partitions = match sinks {
            _ if key_count == 0 => 1 + distinct.iter().map(|it| it.plan.partitions).sum::<usize>(),
            _ => (PARTITIONS_PER_SINK * sinks).next_power_of_two(),
        };
        let totals = DistinctTotals::new(partitions, distinct.len());
        let inputs = computed_from(self.expressions());
        let saw_rows = AtomicBool::new(false);
        let dictionary_columns = match self.input {
            AggregateInput::Raw => self.dictionary_columns(&encoder).query_err()?,
            AggregateInput::Partial => Vec::new(),
        };
        Ok(AggregatePlan {
            config: self,
            encoder,
            finest_encoder,
            partitions,
            sinks,
            inputs,
            dictionary_columns,
            distinct,
            totals,
            saw_rows,
        })
    }
}

impl AggregatePlan {
    /// Returns the plan of the groups in a partition, and the number of the distinct values that
    /// they are, if they are some. `None` for the partition of accumulators.
    pub(super) fn of_partition(
        self: &Arc<Self>,
        partition: usize,
    ) -> Option<(&Arc<Self>, Option<usize>)> {
        if !self.config.group_by.is_ungrouped() {
            return Some((self, None));
        }
        let mut first = 1;
        for (index, values) in self.distinct.iter().enumerate() {
            let partitions = first..first + values.plan.partitions;
            if partitions.contains(&partition) {
                return Some((&values.plan, Some(index)));
            }
            first = partitions.end;
        }
        None
    }

    /// Returns key columns with plain values.
    pub(super) fn decode_keys(
        &self,
        keys: Vec<ArrayRef>,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        let keys = keys.iter().zip(self.encoder.types());
        keys.map(|(key, kind)| dictionary::decode(key, kind)).collect()
    }
}

impl GroupBy {
    /// Returns whether there are no keys at all: one group.
    pub(super) fn is_ungrouped(&self) -> bool {
        self.keys.is_empty() && self.set_ids.is_none()
    }

    /// Returns the key columns of `batch`, without NULLs for grouping sets and without their id.
    /// Those of [`AggregatePlan::dictionary_columns`] may be dictionaries.
    pub(super) fn evaluate_keys(
        &self,
        batch: &RecordBatch,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        let rows = batch.num_rows();
        let array = |key: &Arc<dyn PhysicalExpr>| key.evaluate(batch)?.into_array_of_size(rows);
        self.keys.iter().map(array).collect()
    }

    /// Returns `keys`, columns of `rows` rows, once per grouping set.
    pub(super) fn columns_of_sets(
        &self,
        keys: Vec<ArrayRef>,
        rows: usize,
    ) -> Result<Vec<Vec<ArrayRef>>, DataFusionError> {
        if self.set_ids.is_none() {
            return Ok(vec![keys]);
        }
        let nulls: Vec<_> = keys.iter().map(|key| new_null_array(key.data_type(), rows)).collect();
        let columns = self.sets.iter().enumerate().map(|(set, left_out)| {
            let pick = |(index, left_out): (usize, &bool)| {
                if *left_out { nulls[index].clone() } else { keys[index].clone() }
            };
            self.with_set_id(left_out.iter().enumerate().map(pick).collect(), set, rows)
        });
        columns.collect()
    }

    /// Returns `keys`, columns of `rows` rows of a grouping set, with the set's id.
    pub(super) fn with_set_id(
        &self,
        mut keys: Vec<ArrayRef>,
        set: usize,
        rows: usize,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        if let Some((id_type, ids)) = &self.set_ids {
            keys.push(repeat_id(id_type, ids[set], rows)?);
        }
        Ok(keys)
    }

    /// Returns the indices of the sets that leave out every key.
    pub(super) fn empty_sets(&self) -> impl Iterator<Item = usize> {
        let sets = self.sets.iter().enumerate();
        sets.filter(|(_, set)| set.iter().all(|out| *out)).map(|(index, _)| index)
    }
}

fn repeat_id(kind: &DataType, id: u64, rows: usize) -> Result<ArrayRef, DataFusionError> {
    Ok(match kind {
        DataType::UInt8 => Arc::new(UInt8Array::from_value(id as u8, rows)),
        DataType::UInt16 => Arc::new(UInt16Array::from_value(id as u16, rows)),
        DataType::UInt32 => Arc::new(UInt32Array::from_value(id as u32, rows)),
        DataType::UInt64 => Arc::new(UInt64Array::from_value(id, rows)),
        kind => return internal_err!("unsupported type of a grouping id: {kind}"),
    })
}
