//! Configuration of a hash join, and what follows from its join type.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::{JoinSide, JoinType, NullEquality};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column, utils::collect_columns};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Result, pipeline::OperatorContext};

use crate::{
    JoinFilter, ResultExt,
    join::layout::JoinLayout,
    keys::{KeyEncoder, KeyNulls},
    spill::PartitionSet,
};

/// Configuration of a hash join.
#[derive(Debug, Clone)]
pub struct HashJoinConfig {
    /// Key expressions: over the left (build) side, over the right (probe) side.
    pub on: Vec<(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)>,
    /// The join type.
    pub join_type: JoinType,
    /// Residual predicate that pairs must pass in addition to equal keys.
    pub filter: Option<JoinFilter>,
    /// Whether NULL keys match each other.
    pub null_equality: NullEquality,
    /// `NOT IN` semantics: only for a left anti join on one key.
    pub null_aware: bool,
    /// Columns of the join's own output to return, in order; `None` for all.
    pub projection: Option<Arc<[usize]>>,
    /// Schema of the left (build) side.
    pub left_schema: SchemaRef,
    /// Schema of the right (probe) side.
    pub right_schema: SchemaRef,
    /// Schema of the output, after the projection.
    pub schema: SchemaRef,
    /// Approximate rows of an output batch.
    pub batch_rows: usize,
    /// Whether output follows the order of the probe side. Such a join does not spill.
    pub in_order: bool,
}

/// The prepared plan, shared by all tasks of a join.
#[derive(Debug)]
pub(super) struct HashJoinPlan {
    pub(super) config: HashJoinConfig,
    pub(super) encoder: KeyEncoder,
    pub(super) null_keys: KeyNulls,
    /// Columns of the build side that the table keeps: those of the output and of the filter.
    pub(super) payload_columns: Vec<usize>,
    /// The output, with build columns by their index in the table.
    pub(super) layout: JoinLayout,
    /// Output columns that are gathered: of the table, and of the probe side.
    pub(super) gathered: [Vec<usize>; 2],
    /// The filter, with build columns by their index in the table.
    pub(super) filter: Option<JoinFilter>,
    /// Whether build tasks record the bounds of their keys.
    pub(super) record_bounds: bool,
    pub(super) probe_tasks: usize,
    /// Schema of partitioned build rows: the columns that the table keeps, then the keys.
    pub(super) spill_schema: SchemaRef,
    /// Schema of spilled probe rows, which end with their keys; `None` unless a probe key is
    /// volatile.
    pub(super) keyed_schema: Option<SchemaRef>,
    /// Partitions whose rows are spilled.
    spilled_partitions: AtomicU32,
    /// For `NOT IN`: whether the probe side had a NULL key, and whether it had rows.
    pub(super) probe_saw_null: AtomicBool,
    pub(super) probe_saw_rows: AtomicBool,
}

impl HashJoinConfig {
    /// Returns the probe side's columns and its keys, if one of these is volatile.
    fn keyed_schema(&self) -> datafusion_common::Result<Option<SchemaRef>> {
        if !self.on.iter().any(|(_, right)| is_volatile(right)) {
            return Ok(None);
        }
        let key = |(_, right): &(_, Arc<dyn PhysicalExpr>)| {
            Ok(Field::new("key", right.data_type(&self.right_schema)?, true))
        };
        let keys = self.on.iter().map(key).collect::<datafusion_common::Result<Vec<_>>>()?;
        let columns = self.right_schema.fields().iter().map(|field| field.as_ref().clone());
        Ok(Some(Arc::new(Schema::new(columns.chain(keys).collect::<Vec<_>>()))))
    }

    pub(super) fn prepare(self, record_bounds: bool, probe_tasks: usize) -> Result<HashJoinPlan> {
        let null_keys = match self.null_equality {
            NullEquality::NullEqualsNull => KeyNulls::Equal,
            NullEquality::NullEqualsNothing => KeyNulls::NeverMatch,
        };
        let types = self
            .on
            .iter()
            .map(|(left, _)| Ok((left.data_type(&self.left_schema)?, true)))
            .collect::<Result<Vec<(DataType, bool)>, datafusion_common::DataFusionError>>()
            .query_err()?;
        let encoder = KeyEncoder::new(&types, null_keys).query_err()?;

        let sides = [self.left_schema.fields().len(), self.right_schema.fields().len()];
        let projection = self.projection.as_deref();
        let mut layout = JoinLayout::new(self.join_type, sides, projection, self.schema.clone());
        let mut payload_columns: Vec<usize> = Vec::new();
        let mut index_of =
            |column: usize| match payload_columns.iter().position(|&known| known == column) {
                Some(index) => index,
                None => {
                    payload_columns.push(column);
                    payload_columns.len() - 1
                }
            };
        layout.map_build_columns(&mut index_of);
        let mut filter = self.filter.clone();
        for (side, column) in filter.iter_mut().flat_map(|filter| &mut filter.columns) {
            if *side == JoinSide::Left {
                *column = index_of(*column);
            }
        }
        let payload_fields =
            payload_columns.iter().map(|column| self.left_schema.field(*column).clone());
        let key_fields = types.iter().map(|(kind, _)| Field::new("key", kind.clone(), true));
        let spill_schema =
            Arc::new(Schema::new(payload_fields.chain(key_fields).collect::<Vec<_>>()));
        let keyed_schema = self.keyed_schema().query_err()?;
        Ok(HashJoinPlan {
            gathered: layout.gathered(),
            keyed_schema,
            config: self,
            encoder,
            null_keys,
            payload_columns,
            layout,
            filter,
            record_bounds,
            probe_tasks,
            spill_schema,
            spilled_partitions: AtomicU32::new(0),
            probe_saw_null: AtomicBool::new(false),
            probe_saw_rows: AtomicBool::new(false),
        })
    }
}

impl HashJoinPlan {
    /// Returns the columns of the probe side that keys and filter read as plain values. A column
    /// that is the only key is read as a dictionary, too.
    pub(super) fn plain_probe_columns(&self) -> Vec<usize> {
        let keys = self.config.on.iter().flat_map(|(_, key)| collect_columns(key));
        let keys = keys.filter(|_| self.probe_key_column().is_none());
        let filter = self.filter.iter().flat_map(|filter| &filter.columns);
        let filter = filter.filter(|(side, _)| *side == JoinSide::Right).map(|(_, column)| *column);
        keys.map(|column| column.index()).chain(filter).collect()
    }

    /// Returns the probe column that is the join's only key; `None` if there are several keys, or
    /// the key is an expression.
    pub(super) fn probe_key_column(&self) -> Option<usize> {
        match self.config.on.as_slice() {
            [(_, key)] if self.keyed_schema.is_none() => {
                key.downcast_ref::<Column>().map(Column::index)
            }
            _ => None,
        }
    }

    /// Returns whether the join spills when memory is denied.
    pub(super) fn can_spill(&self, context: &OperatorContext) -> bool {
        context.can_spill() && !self.config.in_order
    }

    /// Returns the partitions whose rows are spilled.
    pub(super) fn spilled_partitions(&self) -> PartitionSet {
        PartitionSet(self.spilled_partitions.load(Ordering::Acquire))
    }

    /// Adds partitions to the spilled set, if it still equals `seen`.
    pub(super) fn spill_more_partitions(&self, seen: PartitionSet) {
        let more = seen.extended().0;
        let _lost_race = self.spilled_partitions.compare_exchange(
            seen.0,
            more,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// Returns whether one match of a probe row decides its output.
    pub(super) fn first_match_suffices(&self) -> bool {
        self.filter.is_none() && self.layout.tracks_probe_matches() && !self.layout.emits_pairs()
    }

    /// Returns whether pairs only mark rows of the table, and mark each for its key alone.
    pub(super) fn only_tracks_build_matches(&self) -> bool {
        self.filter.is_none() && self.layout.tracks_build_matches() && !self.layout.emits_pairs()
    }
}
