//! The conjuncts of a scan's predicate: which are evaluated, and in which order.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    buffer::BooleanBuffer,
    datatypes::DataType,
};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::{
    error::Result,
    physical_expr::{
        PhysicalExpr,
        expressions::{DynamicFilterPhysicalExpr, lit},
    },
};
use gatework_operators::{
    ResultExt,
    adaptive_filter::AdaptiveFilter,
    dictionary::{EntryPredicate, decode_columns},
    filter::evaluate_predicate,
};
use gatework_runtime::pipeline::OperatorMetrics;

use super::{ColumnSlots, ExprInputs, RowGroupPlan};
use crate::scan::filters::{ScanFilter, ScanThreshold, membership_only};

#[derive(Debug)]
enum ConjunctKind {
    /// A part of the query's predicate.
    Predicate,
    /// The runtime filter of a join; evaluated once it is published.
    Filter(Arc<ScanFilter>),
    /// The threshold of a top-n, which gets better and better.
    Threshold,
}

/// One conjunct, as shared by all tasks.
#[derive(Debug)]
pub(super) struct Conjunct {
    pub(super) inputs: ExprInputs,
    expr: Arc<dyn PhysicalExpr>,
    kind: ConjunctKind,
    /// Estimated cost of an evaluation per row, relative to other conjuncts.
    cost: f64,
}

impl Conjunct {
    /// Returns a `conjunct` of a predicate; `None` if the native reader cannot evaluate it.
    pub(super) fn new(
        conjunct: &Arc<dyn PhysicalExpr>,
        (filters, thresholds): (&[Arc<ScanFilter>], &[ScanThreshold]),
        slots: &mut ColumnSlots,
    ) -> Result<Option<Self>> {
        let id = conjunct.expression_id();
        let kind = if !conjunct.is::<DynamicFilterPhysicalExpr>() {
            ConjunctKind::Predicate
        } else if let Some(filter) = filters.iter().find(|filter| Some(filter.id) == id) {
            ConjunctKind::Filter(filter.clone())
        } else if thresholds.iter().any(|threshold| Some(threshold.id) == id) {
            ConjunctKind::Threshold
        } else {
            return Ok(None);
        };
        if is_volatile(conjunct) {
            return Ok(None);
        }
        let Some((inputs, exprs)) = slots.inputs(std::slice::from_ref(conjunct))? else {
            return Ok(None);
        };
        let Some(expr) = exprs.into_iter().next() else { return Ok(None) };
        let column_cost = |kind: &DataType| if kind.is_primitive() { 1.0 } else { 4.0 };
        let fields = inputs.schema.fields().iter();
        let cost = 0.5 + fields.map(|field| column_cost(field.data_type())).sum::<f64>();
        Ok(Some(Self { inputs, expr, kind, cost }))
    }
}

/// Returns whether a top-n has published its first threshold to `filter`.
fn has_threshold(filter: &Arc<dyn PhysicalExpr>) -> bool {
    let filter = filter.downcast_ref::<DynamicFilterPhysicalExpr>();
    filter.is_some_and(|filter| filter.current().is_ok_and(|current| current != lit(true)))
}

/// One task's state of one conjunct.
struct LocalConjunct {
    index: usize,
    /// The evaluated expression; `None` until its runtime filter is published.
    expr: Option<Arc<dyn PhysicalExpr>>,
    adaptive: AdaptiveFilter,
    entries: EntryPredicate,
}

/// One task's conjuncts, in their order of evaluation.
pub(in super::super) struct LocalConjuncts {
    plan: Arc<RowGroupPlan>,
    order: Vec<LocalConjunct>,
    metrics: Arc<OperatorMetrics>,
}

impl LocalConjuncts {
    pub(in super::super) fn new(plan: Arc<RowGroupPlan>, metrics: Arc<OperatorMetrics>) -> Self {
        let local = |index| LocalConjunct {
            index,
            expr: None,
            adaptive: AdaptiveFilter::default(),
            entries: EntryPredicate::default(),
        };
        let order = (0..plan.conjuncts.len()).map(local).collect();
        Self { plan, order, metrics }
    }

    /// Returns the number of conjuncts.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the columns of the conjunct at `position`, if it is to be evaluated on a window of
    /// `rows` rows of the file.
    pub(super) fn prepare(&mut self, position: usize, rows: usize) -> Option<&ExprInputs> {
        let local = &mut self.order[position];
        if local.adaptive.should_skip(rows) {
            return None;
        }
        let conjunct = &self.plan.conjuncts[local.index];
        if local.expr.is_none() {
            local.expr = match &conjunct.kind {
                ConjunctKind::Filter(filter) if !filter.is_published() => return None,
                ConjunctKind::Filter(_) => Some(membership_only(&conjunct.expr)),
                ConjunctKind::Threshold if !has_threshold(&conjunct.expr) => return None,
                ConjunctKind::Threshold | ConjunctKind::Predicate => Some(conjunct.expr.clone()),
            };
        }
        Some(&conjunct.inputs)
    }

    /// Evaluates the conjunct at `position`; returns one bit per row, set if it is true. `None` if
    /// it is true for all rows, or fails: the filter above the scan then reports the error.
    pub(super) fn evaluate(
        &mut self,
        position: usize,
        arrays: &[Option<ArrayRef>],
        rows: usize,
    ) -> Result<Option<BooleanBuffer>> {
        let local = &mut self.order[position];
        let conjunct = &self.plan.conjuncts[local.index];
        let Some(expr) = &local.expr else { return Ok(None) };
        let batch: RecordBatch = conjunct.inputs.batch(arrays, rows)?;
        let entries = &mut local.entries;
        // The threshold changes.
        let keep = match conjunct.kind {
            ConjunctKind::Threshold => None,
            _ => entries.evaluate(expr.as_ref(), &conjunct.inputs.schema, &batch),
        };
        let keep = keep.map_or_else(
            || {
                let batch = decode_columns(batch.clone(), &conjunct.inputs.schema).query_err()?;
                evaluate_predicate(expr.as_ref(), &batch)
            },
            Ok,
        );
        let Ok(keep) = keep else {
            local.adaptive.disable();
            return Ok(None);
        };
        let dropped = rows - keep.count_set_bits();
        local.adaptive.record(rows, dropped);
        if dropped == 0 {
            return Ok(None);
        }
        let counter = match conjunct.kind {
            ConjunctKind::Filter(_) => "runtime_filter_pruned_rows",
            ConjunctKind::Threshold => "top_n_pruned_rows",
            ConjunctKind::Predicate => "late_materialization_pruned_rows",
        };
        self.metrics.add(counter, dropped as u64);
        Ok(Some(keep))
    }

    /// Moves the conjuncts that drop the most rows per cost to the front.
    pub(super) fn reorder(&mut self) {
        let conjuncts = &self.plan.conjuncts;
        let rank = |local: &LocalConjunct| {
            conjuncts[local.index].cost / local.adaptive.drop_ratio().max(0.001)
        };
        self.order
            .sort_by(|one, other| rank(one).partial_cmp(&rank(other)).unwrap_or(Ordering::Equal));
    }
}
