//! What is aggregated by what.

use std::sync::{Arc, atomic::AtomicBool};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt8Array, UInt16Array, UInt32Array, UInt64Array},
    datatypes::{DataType, SchemaRef},
};
use datafusion_common::{DataFusionError, internal_err};
use datafusion_physical_expr::{PhysicalExpr, aggregate::AggregateFunctionExpr};
use gatework_runtime::Result;

use crate::{
    ResultExt,
    keys::{KeyEncoder, KeyNulls},
    slices::computed_from,
};

/// One aggregate function with its arguments.
#[derive(Debug, Clone)]
pub struct AggregateCall {
    /// The function.
    pub function: Arc<AggregateFunctionExpr>,
    /// Its arguments over the input (ordering expressions last), or its states' columns.
    pub arguments: Vec<Arc<dyn PhysicalExpr>>,
    /// Rows that count, for `FILTER (WHERE …)`; not used for partial states.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
}

/// What the input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateInput {
    /// Rows to aggregate.
    Raw,
    /// Partial states to merge.
    Partial,
}

/// What the output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateResult {
    /// Final values.
    Final,
    /// Partial states.
    Partial,
}

/// The group keys, possibly several sets of them.
#[derive(Debug, Clone, Default)]
pub struct GroupBy {
    /// Key expressions.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// For grouping sets: what stands for a key that a set leaves out, one per key.
    pub nulls: Vec<Arc<dyn PhysicalExpr>>,
    /// Grouping sets: for each, which keys it leaves out. One set that leaves out none is a plain
    /// `GROUP BY`.
    pub sets: Vec<Vec<bool>>,
    /// The grouping id of each set and its type, if the output has that column.
    pub set_ids: Option<(DataType, Vec<u64>)>,
}

/// An aggregate.
#[derive(Debug, Clone)]
pub struct AggregateConfig {
    /// The group keys.
    pub group_by: GroupBy,
    /// The functions.
    pub aggregates: Vec<AggregateCall>,
    /// What comes in.
    pub input: AggregateInput,
    /// What goes out.
    pub output: AggregateResult,
    /// The input's columns.
    pub input_schema: SchemaRef,
    /// The output: keys, grouping id if any, then values (or states) by function.
    pub schema: SchemaRef,
    /// Rows per output batch.
    pub batch_rows: usize,
}

/// What all tasks of an aggregate share.
#[derive(Debug)]
pub(super) struct AggregatePlan {
    pub(super) config: AggregateConfig,
    pub(super) encoder: KeyEncoder,
    /// Hash partitions.
    pub(super) partitions: usize,
    pub(super) sinks: usize,
    /// Columns that keys, arguments or filters are computed from.
    pub(super) inputs: Vec<usize>,
    /// Whether any row came in: without any, empty grouping sets still have a row.
    pub(super) saw_rows: AtomicBool,
}

/// Partitions per sink task, so that skewed ones even out over source tasks, and that one of what has
/// been spilled fits into memory.
const PARTITIONS_PER_SINK: usize = 16;

impl AggregateConfig {
    /// Whether its groups may go on in part, and again, as a [`PartialAggregate`](super::PartialAggregate) has them: whoever
    /// reads states merges them, and no function depends on the order of its input.
    pub fn can_flush_partial(&self) -> bool {
        let ordered = |call: &AggregateCall| !call.function.order_bys().is_empty();
        self.output == AggregateResult::Partial
            && !self.group_by.is_ungrouped()
            && self.group_by.set_ids.is_none()
            && !self.aggregates.iter().any(ordered)
    }

    /// All that is evaluated over the input.
    fn expressions(&self) -> impl Iterator<Item = &Arc<dyn PhysicalExpr>> {
        let of_calls =
            self.aggregates.iter().flat_map(|call| call.arguments.iter().chain(&call.filter));
        self.group_by.keys.iter().chain(of_calls)
    }

    pub(super) fn prepare(mut self, sinks: usize) -> Result<AggregatePlan> {
        if self.input == AggregateInput::Partial {
            // They were applied when the states were made, over columns that are gone.
            self.aggregates.iter_mut().for_each(|call| call.filter = None);
        }
        let key_count = self.group_by.keys.len() + usize::from(self.group_by.set_ids.is_some());
        let fields = self.schema.fields().iter().take(key_count);
        let types: Vec<_> =
            fields.map(|field| (field.data_type().clone(), field.is_nullable())).collect();
        let encoder = KeyEncoder::new(&types, KeyNulls::Equal).query_err()?;
        let partitions = match sinks {
            _ if key_count == 0 => 1,
            _ => (PARTITIONS_PER_SINK * sinks).next_power_of_two(),
        };
        let inputs = computed_from(self.expressions());
        let saw_rows = AtomicBool::new(false);
        Ok(AggregatePlan { config: self, encoder, partitions, sinks, inputs, saw_rows })
    }
}

impl GroupBy {
    /// Whether there are no keys at all: one group.
    pub(super) fn is_ungrouped(&self) -> bool {
        self.keys.is_empty() && self.set_ids.is_none()
    }

    /// The key columns of `batch`, once per grouping set.
    pub(super) fn evaluate(
        &self,
        batch: &RecordBatch,
    ) -> Result<Vec<Vec<ArrayRef>>, DataFusionError> {
        let rows = batch.num_rows();
        let evaluate = |expressions: &[Arc<dyn PhysicalExpr>]| {
            let array = |key: &Arc<dyn PhysicalExpr>| key.evaluate(batch)?.into_array_of_size(rows);
            expressions.iter().map(array).collect::<Result<Vec<ArrayRef>, _>>()
        };
        let keys = evaluate(&self.keys)?;
        let Some((id_type, ids)) = &self.set_ids else { return Ok(vec![keys]) };
        let nulls = evaluate(&self.nulls)?;
        self.sets
            .iter()
            .zip(ids)
            .map(|(set, id)| {
                let pick = |(index, left_out): (usize, &bool)| {
                    if *left_out { nulls[index].clone() } else { keys[index].clone() }
                };
                let mut columns: Vec<_> = set.iter().enumerate().map(pick).collect();
                columns.push(repeat_id(id_type, *id, rows)?);
                Ok(columns)
            })
            .collect()
    }

    /// The sets that leave out every key.
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
        kind => return internal_err!("a grouping id of type {kind}"),
    })
}
