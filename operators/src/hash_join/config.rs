//! What is joined with what, and what follows from the join type.

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

/// A hash join.
#[derive(Debug, Clone)]
pub struct HashJoinConfig {
    /// Key expressions: over the left (build) side, over the right (probe) side.
    pub on: Vec<(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)>,
    /// The join type.
    pub join_type: JoinType,
    /// A predicate that pairs must fulfil beside equal keys.
    pub filter: Option<JoinFilter>,
    /// Whether NULL keys match each other.
    pub null_equality: NullEquality,
    /// `NOT IN` semantics: only for a left anti join on one key.
    pub null_aware: bool,
    /// The columns of the join's own output that are wanted, in order; `None` for all.
    pub projection: Option<Arc<[usize]>>,
    /// The left side's columns.
    pub left_schema: SchemaRef,
    /// The right side's columns.
    pub right_schema: SchemaRef,
    /// The output's columns, after the projection.
    pub schema: SchemaRef,
    /// Rows per output batch, about.
    pub batch_rows: usize,
    /// Whether output follows the order of the probe side. Such a join does not spill.
    pub in_order: bool,
}

/// Where an output column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputColumn {
    /// A column that the table keeps, by its place there.
    Build(usize),
    /// A column of the probe side.
    Probe(usize),
    /// Whether the row found a match.
    Mark,
}

/// What all tasks of a join share.
#[derive(Debug)]
pub(super) struct HashJoinPlan {
    pub(super) config: HashJoinConfig,
    pub(super) encoder: KeyEncoder,
    pub(super) null_keys: KeyNulls,
    /// Columns of the left side that the table keeps: those of the output and of the filter.
    pub(super) payload_columns: Vec<usize>,
    pub(super) output: Vec<OutputColumn>,
    /// Columns of the output that are gathered: of the table, and of the probe side.
    pub(super) gathered: [Vec<usize>; 2],
    /// The filter, with left columns by their place in the table.
    pub(super) filter: Option<JoinFilter>,
    /// Whether build tasks note the bounds of their keys.
    pub(super) record_bounds: bool,
    pub(super) probe_tasks: usize,
    /// Rows that are cut into units: the columns that the table keeps, then the keys.
    pub(super) spill_schema: SchemaRef,
    /// If a key of the probe side is volatile: probe rows that go to files, with their keys behind
    /// them.
    pub(super) keyed_schema: Option<SchemaRef>,
    /// The units whose rows do not fit into memory.
    spilled_partitions: AtomicU32,
    /// For `NOT IN`: what the probe side has had.
    pub(super) probe_saw_null: AtomicBool,
    pub(super) probe_saw_rows: AtomicBool,
}

/// The columns of a join's own output: left and right by place, then the mark.
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
    /// The probe side's columns and its keys, if one of them is volatile.
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

/// The table's columns of `output`, and the probe side's.
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
    /// Whether the join goes on if it gets no memory.
    pub(super) fn can_spill(&self, setup: &OperatorContext) -> bool {
        setup.can_spill() && !self.config.in_order
    }

    /// The units whose rows do not fit.
    pub(super) fn spilled_partitions(&self) -> PartitionSet {
        PartitionSet(self.spilled_partitions.load(Ordering::Acquire))
    }

    /// Adds to these units, if they are still those that were `seen`.
    pub(super) fn spill_more_partitions(&self, seen: PartitionSet) {
        let more = seen.extended().0;
        let _lost_race = self.spilled_partitions.compare_exchange(
            seen.0,
            more,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// Whether pairs are output rows.
    pub(super) fn emits_pairs(&self) -> bool {
        matches!(
            self.config.join_type,
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
        )
    }

    /// Whether the table notes which of its rows found a match.
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

    /// Whether a probe batch notes which of its rows found a match.
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

    /// Whether probe rows without a match are output rows, so that no scan may drop them.
    pub(super) fn preserves_probe_rows(&self) -> bool {
        self.tracks_probe_matches() && self.config.join_type != JoinType::RightSemi
    }

    /// Whether one match of a probe row tells all that is asked of it.
    pub(super) fn first_match_suffices(&self) -> bool {
        self.filter.is_none()
            && matches!(
                self.config.join_type,
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
            )
    }

    /// Whether pairs do nothing but mark the table's rows, each of which they mark for its key alone.
    pub(super) fn only_tracks_build_matches(&self) -> bool {
        self.filter.is_none() && self.tracks_build_matches() && !self.emits_pairs()
    }

    /// Whether an empty left side means an empty result.
    pub(super) fn empty_build_is_empty_result(&self) -> bool {
        !matches!(
            self.config.join_type,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        )
    }
}
