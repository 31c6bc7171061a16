//! Configuration of a hash join, and what follows from its join type.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::{JoinSide, JoinType, NullEquality};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Result, pipeline::OperatorContext};

use crate::{
    JoinFilter, ResultExt,
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

/// Source of an output column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputColumn {
    /// A payload column, by its index in the table.
    Build(usize),
    /// A column of the probe side.
    Probe(usize),
    /// Whether the row found a match.
    Mark,
}

/// The prepared plan, shared by all tasks of a join.
#[derive(Debug)]
pub(super) struct HashJoinPlan {
    pub(super) config: HashJoinConfig,
    pub(super) encoder: KeyEncoder,
    pub(super) null_keys: KeyNulls,
    /// Columns of the build side that the table keeps: those of the output and of the filter.
    pub(super) payload_columns: Vec<usize>,
    pub(super) output: Vec<OutputColumn>,
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

/// Returns the columns of a join's own output: left and right by index, then the mark.
pub(crate) fn output_columns(join_type: JoinType, left: usize, right: usize) -> Vec<OutputColumn> {
    use OutputColumn::{Build, Mark, Probe};
    let left_columns = (0..left).map(Build);
    let right_columns = (0..right).map(Probe);
    match join_type {
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
            left_columns.chain(right_columns).collect()
        }
        JoinType::LeftSemi | JoinType::LeftAnti => left_columns.collect(),
        JoinType::RightSemi | JoinType::RightAnti => right_columns.collect(),
        JoinType::LeftMark => left_columns.chain([Mark]).collect(),
        JoinType::RightMark => right_columns.chain([Mark]).collect(),
    }
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

        let all = output_columns(
            self.join_type,
            self.left_schema.fields().len(),
            self.right_schema.fields().len(),
        );
        let mut output: Vec<OutputColumn> = match &self.projection {
            Some(projection) => projection.iter().map(|&column| all[column]).collect(),
            None => all,
        };
        let mut payload_columns: Vec<usize> = Vec::new();
        let mut index_of =
            |column: usize| match payload_columns.iter().position(|&known| known == column) {
                Some(index) => index,
                None => {
                    payload_columns.push(column);
                    payload_columns.len() - 1
                }
            };
        for column in &mut output {
            if let OutputColumn::Build(index) = column {
                *index = index_of(*index);
            }
        }
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
            gathered: gathered(&output),
            keyed_schema,
            config: self,
            encoder,
            null_keys,
            payload_columns,
            output,
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

/// Returns the table columns and the probe columns of `output`.
fn gathered(output: &[OutputColumn]) -> [Vec<usize>; 2] {
    let build = output.iter().filter_map(|column| match column {
        OutputColumn::Build(column) => Some(*column),
        _ => None,
    });
    let probe = output.iter().filter_map(|column| match column {
        OutputColumn::Probe(column) => Some(*column),
        _ => None,
    });
    [build.collect(), probe.collect()]
}

impl HashJoinPlan {
    /// Returns whether the join spills when memory is denied.
    pub(super) fn can_spill(&self, setup: &OperatorContext) -> bool {
        setup.can_spill() && !self.config.in_order
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

    /// Returns whether pairs are output rows.
    pub(super) fn emits_pairs(&self) -> bool {
        matches!(
            self.config.join_type,
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
        )
    }

    /// Returns whether the table records which of its rows found a match.
    pub(super) fn tracks_build_matches(&self) -> bool {
        matches!(
            self.config.join_type,
            JoinType::Left
                | JoinType::Full
                | JoinType::LeftSemi
                | JoinType::LeftAnti
                | JoinType::LeftMark
        )
    }

    /// Returns whether a probe batch records which of its rows found a match.
    pub(super) fn tracks_probe_matches(&self) -> bool {
        matches!(
            self.config.join_type,
            JoinType::Right
                | JoinType::Full
                | JoinType::RightSemi
                | JoinType::RightAnti
                | JoinType::RightMark
        )
    }

    /// Returns whether probe rows without a match are output rows, so that no scan may drop them.
    pub(super) fn preserves_probe_rows(&self) -> bool {
        self.tracks_probe_matches() && self.config.join_type != JoinType::RightSemi
    }

    /// Returns whether one match of a probe row decides its output.
    pub(super) fn first_match_suffices(&self) -> bool {
        self.filter.is_none()
            && matches!(
                self.config.join_type,
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
            )
    }

    /// Returns whether pairs only mark rows of the table, and mark each for its key alone.
    pub(super) fn only_tracks_build_matches(&self) -> bool {
        self.filter.is_none() && self.tracks_build_matches() && !self.emits_pairs()
    }

    /// Returns whether an empty build side means an empty result.
    pub(super) fn empty_build_is_empty_result(&self) -> bool {
        !matches!(
            self.config.join_type,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        )
    }
}
