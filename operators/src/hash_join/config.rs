//! What is joined with what, and what follows from the join type.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_common::{JoinSide, JoinType, NullEquality};
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Result, pipeline::Setup};

use crate::{
    JoinFilter, OrFail,
    keys::{KeyEncoder, NullKeys},
    spilling::UnitSet,
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
    Left(usize),
    /// A column of the probe side.
    Right(usize),
    /// Whether the row found a match.
    Mark,
}

/// What all tasks of a join share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: HashJoinConfig,
    pub(super) encoder: KeyEncoder,
    pub(super) null_keys: NullKeys,
    /// Columns of the left side that the table keeps: those of the output and of the filter.
    pub(super) kept: Vec<usize>,
    pub(super) output: Vec<OutputColumn>,
    /// Columns of the output that are gathered: of the table, and of the probe side.
    pub(super) gathered: [Vec<usize>; 2],
    /// The filter, with left columns by their place in the table.
    pub(super) filter: Option<JoinFilter>,
    /// Whether build tasks note the bounds of their keys.
    pub(super) note_bounds: bool,
    pub(super) probe_tasks: usize,
    /// Rows that are cut into units: the columns that the table keeps, then the keys.
    pub(super) divided_schema: SchemaRef,
    /// If a key of the probe side is volatile: probe rows that go to files, with their keys behind
    /// them.
    pub(super) keyed_schema: Option<SchemaRef>,
    /// The units whose rows do not fit into memory.
    away: AtomicU32,
    /// For `NOT IN`: what the probe side has had.
    pub(super) probe_saw_null: AtomicBool,
    pub(super) probe_saw_rows: AtomicBool,
}

/// The columns of a join's own output: left and right by place, then the mark.
pub(crate) fn output_columns(join_type: JoinType, left: usize, right: usize) -> Vec<OutputColumn> {
    use OutputColumn::{Left, Mark, Right};
    let lefts = (0..left).map(Left);
    let rights = (0..right).map(Right);
    match join_type {
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
            lefts.chain(rights).collect()
        }
        JoinType::LeftSemi | JoinType::LeftAnti => lefts.collect(),
        JoinType::RightSemi | JoinType::RightAnti => rights.collect(),
        JoinType::LeftMark => lefts.chain([Mark]).collect(),
        JoinType::RightMark => rights.chain([Mark]).collect(),
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

    pub(super) fn prepare(self, note_bounds: bool, probe_tasks: usize) -> Result<Shared> {
        let null_keys = match self.null_equality {
            NullEquality::NullEqualsNull => NullKeys::AreValues,
            NullEquality::NullEqualsNothing => NullKeys::AreSkipped,
        };
        let types = self
            .on
            .iter()
            .map(|(left, _)| Ok((left.data_type(&self.left_schema)?, true)))
            .collect::<Result<Vec<(DataType, bool)>, datafusion_common::DataFusionError>>()
            .or_fail()?;
        let encoder = KeyEncoder::new(&types, null_keys).or_fail()?;

        let all = output_columns(
            self.join_type,
            self.left_schema.fields().len(),
            self.right_schema.fields().len(),
        );
        let mut output: Vec<OutputColumn> = match &self.projection {
            Some(projection) => projection.iter().map(|&column| all[column]).collect(),
            None => all,
        };
        let mut kept: Vec<usize> = Vec::new();
        let mut place_of = |column: usize| match kept.iter().position(|&known| known == column) {
            Some(place) => place,
            None => {
                kept.push(column);
                kept.len() - 1
            }
        };
        for column in &mut output {
            if let OutputColumn::Left(left) = column {
                *left = place_of(*left);
            }
        }
        let mut filter = self.filter.clone();
        for (side, column) in filter.iter_mut().flat_map(|filter| &mut filter.columns) {
            if *side == JoinSide::Left {
                *column = place_of(*column);
            }
        }
        let kept_fields = kept.iter().map(|column| self.left_schema.field(*column).clone());
        let key_fields = types.iter().map(|(kind, _)| Field::new("key", kind.clone(), true));
        let divided_schema =
            Arc::new(Schema::new(kept_fields.chain(key_fields).collect::<Vec<_>>()));
        let keyed_schema = self.keyed_schema().or_fail()?;
        Ok(Shared {
            gathered: gathered(&output),
            keyed_schema,
            config: self,
            encoder,
            null_keys,
            kept,
            output,
            filter,
            note_bounds,
            probe_tasks,
            divided_schema,
            away: AtomicU32::new(0),
            probe_saw_null: AtomicBool::new(false),
            probe_saw_rows: AtomicBool::new(false),
        })
    }
}

/// The table's columns of `output`, and the probe side's.
fn gathered(output: &[OutputColumn]) -> [Vec<usize>; 2] {
    let left = output.iter().filter_map(|column| match column {
        OutputColumn::Left(column) => Some(*column),
        _ => None,
    });
    let right = output.iter().filter_map(|column| match column {
        OutputColumn::Right(column) => Some(*column),
        _ => None,
    });
    [left.collect(), right.collect()]
}

impl Shared {
    /// Whether the join goes on if it gets no memory.
    pub(super) fn can_spill(&self, setup: &Setup) -> bool {
        setup.can_spill() && !self.config.in_order
    }

    /// The units whose rows do not fit.
    pub(super) fn away(&self) -> UnitSet {
        UnitSet(self.away.load(Ordering::Acquire))
    }

    /// Adds to these units, if they are still those that were `seen`.
    pub(super) fn send_more_away(&self, seen: UnitSet) {
        let more = seen.extended().0;
        let _others_did =
            self.away.compare_exchange(seen.0, more, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether pairs are output rows.
    pub(super) fn emits_pairs(&self) -> bool {
        matches!(
            self.config.join_type,
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
        )
    }

    /// Whether the table notes which of its rows found a match.
    pub(super) fn marks_left(&self) -> bool {
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
    pub(super) fn marks_right(&self) -> bool {
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
    pub(super) fn preserves_right(&self) -> bool {
        self.marks_right() && self.config.join_type != JoinType::RightSemi
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
    pub(super) fn only_marks(&self) -> bool {
        self.filter.is_none() && self.marks_left() && !self.emits_pairs()
    }

    /// Whether an empty left side means an empty result.
    pub(super) fn empty_build_is_empty_result(&self) -> bool {
        !matches!(
            self.config.join_type,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        )
    }
}
