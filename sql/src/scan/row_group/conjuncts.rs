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
    physical_expr::{PhysicalExpr, expressions::DynamicFilterPhysicalExpr},
};
use gatework_operators::{adaptive_filter::AdaptiveFilter, filter::evaluate_predicate};
use gatework_runtime::pipeline::OperatorMetrics;

use super::{ColumnSlots, ExprInputs, RowGroupPlan};
use crate::scan::filters::{ScanFilter, membership_only};

/// One conjunct, as all tasks know it.
#[derive(Debug)]
pub(super) struct Conjunct {
    pub(super) inputs: ExprInputs,
    expr: Arc<dyn PhysicalExpr>,
    /// If it is a runtime filter: evaluated once that is published.
    filter: Option<Arc<ScanFilter>>,
    /// About what it takes per row.
    cost: f64,
}

impl Conjunct {
    /// `conjunct` of a predicate; `None` if it is not for us to evaluate.
    pub(super) fn new(
        conjunct: &Arc<dyn PhysicalExpr>,
        filters: &[Arc<ScanFilter>],
        slots: &mut ColumnSlots,
    ) -> Result<Option<Self>> {
        let dynamic = conjunct.is::<DynamicFilterPhysicalExpr>();
        let filter = conjunct
            .expression_id()
            .filter(|_| dynamic)
            .and_then(|id| filters.iter().find(|filter| filter.id == id).cloned());
        if dynamic && filter.is_none() || is_volatile(conjunct) {
            return Ok(None);
        }
        let Some((inputs, exprs)) = slots.inputs(std::slice::from_ref(conjunct))? else {
            return Ok(None);
        };
        let Some(expr) = exprs.into_iter().next() else { return Ok(None) };
        let column_cost = |kind: &DataType| if kind.is_primitive() { 1.0 } else { 4.0 };
        let fields = inputs.schema.fields().iter();
        let cost = 0.5 + fields.map(|field| column_cost(field.data_type())).sum::<f64>();
        Ok(Some(Self { inputs, expr, filter, cost }))
    }
}

/// One conjunct in one task.
struct LocalConjunct {
    index: usize,
    /// What is evaluated; `None` until its runtime filter is published.
    expr: Option<Arc<dyn PhysicalExpr>>,
    adaptive: AdaptiveFilter,
}

/// The conjuncts of one task of a scan, in the order in which they are evaluated.
pub(in super::super) struct LocalConjuncts {
    plan: Arc<RowGroupPlan>,
    order: Vec<LocalConjunct>,
    metrics: Arc<OperatorMetrics>,
}

impl LocalConjuncts {
    pub(in super::super) fn new(plan: Arc<RowGroupPlan>, metrics: Arc<OperatorMetrics>) -> Self {
        let local =
            |index| LocalConjunct { index, expr: None, adaptive: AdaptiveFilter::default() };
        let order = (0..plan.conjuncts.len()).map(local).collect();
        Self { plan, order, metrics }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The columns that the conjunct at `position` is over, if it is to be evaluated on a batch made of
    /// `rows` rows of the file.
    pub(super) fn prepare(&mut self, position: usize, rows: usize) -> Option<&ExprInputs> {
        let local = &mut self.order[position];
        if local.adaptive.should_skip(rows) {
            return None;
        }
        let conjunct = &self.plan.conjuncts[local.index];
        if local.expr.is_none() {
            local.expr = match &conjunct.filter {
                Some(filter) if !filter.is_published() => return None,
                Some(_) => Some(membership_only(&conjunct.expr)),
                None => Some(conjunct.expr.clone()),
            };
        }
        Some(&conjunct.inputs)
    }

    /// One bit per row: whether the conjunct at `position` is true, or fails, which is for the filter
    /// above the scan to say. `None` if for all.
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
        let Ok(keep) = evaluate_predicate(expr.as_ref(), &batch) else {
            local.adaptive.disable();
            return Ok(None);
        };
        let dropped = rows - keep.count_set_bits();
        local.adaptive.record(rows, dropped);
        if dropped == 0 {
            return Ok(None);
        }
        let counter = match conjunct.filter {
            Some(_) => "runtime_filter_pruned_rows",
            None => "late_materialization_pruned_rows",
        };
        self.metrics.add(counter, dropped as u64);
        Ok(Some(keep))
    }

    /// Puts those first that drop much for little.
    pub(super) fn reorder(&mut self) {
        let conjuncts = &self.plan.conjuncts;
        let rank = |local: &LocalConjunct| {
            conjuncts[local.index].cost / local.adaptive.drop_ratio().max(0.001)
        };
        self.order
            .sort_by(|one, other| rank(one).partial_cmp(&rank(other)).unwrap_or(Ordering::Equal));
    }
}
