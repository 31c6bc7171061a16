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
use gatework_operators::{filter::evaluate_predicate, worth::Worth};
use gatework_runtime::pipeline::OperatorMetrics;

use super::{ColumnPlan, Inputs, Slots};
use crate::scan::filters::{ScanFilter, published};

/// One conjunct, as all tasks know it.
#[derive(Debug)]
pub(super) struct Conjunct {
    pub(super) inputs: Inputs,
    expr: Arc<dyn PhysicalExpr>,
    /// If it is a runtime filter: evaluated once that is published.
    filter: Option<Arc<ScanFilter>>,
    /// About what it takes per row.
    cost: f64,
}

impl Conjunct {
    /// `part` of a predicate; `None` if it is not for us to evaluate.
    pub(super) fn new(
        part: &Arc<dyn PhysicalExpr>,
        filters: &[Arc<ScanFilter>],
        slots: &mut Slots,
    ) -> Result<Option<Self>> {
        let dynamic = part.is::<DynamicFilterPhysicalExpr>();
        let filter = part
            .expression_id()
            .filter(|_| dynamic)
            .and_then(|id| filters.iter().find(|filter| filter.id == id).cloned());
        if dynamic && filter.is_none() || is_volatile(part) {
            return Ok(None);
        }
        let Some((inputs, exprs)) = slots.inputs(std::slice::from_ref(part))? else {
            return Ok(None);
        };
        let Some(expr) = exprs.into_iter().next() else { return Ok(None) };
        let of_type = |kind: &DataType| if kind.is_primitive() { 1.0 } else { 4.0 };
        let fields = inputs.schema.fields().iter();
        let cost = 0.5 + fields.map(|field| of_type(field.data_type())).sum::<f64>();
        Ok(Some(Self { inputs, expr, filter, cost }))
    }
}

/// One conjunct in one task.
struct Local {
    place: usize,
    /// What is evaluated; `None` until its runtime filter is published.
    expr: Option<Arc<dyn PhysicalExpr>>,
    worth: Worth,
}

/// The conjuncts of one task of a scan, in the order in which they are evaluated.
pub(in super::super) struct LocalConjuncts {
    plan: Arc<ColumnPlan>,
    order: Vec<Local>,
    metrics: Arc<OperatorMetrics>,
}

impl LocalConjuncts {
    pub(in super::super) fn new(plan: Arc<ColumnPlan>, metrics: Arc<OperatorMetrics>) -> Self {
        let local = |place| Local { place, expr: None, worth: Worth::default() };
        let order = (0..plan.conjuncts.len()).map(local).collect();
        Self { plan, order, metrics }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The columns that the conjunct at `turn` is over, if it is to be evaluated on a batch made of
    /// `rows` rows of the file.
    pub(super) fn prepare(&mut self, turn: usize, rows: usize) -> Option<&Inputs> {
        let local = &mut self.order[turn];
        if local.worth.pauses(rows) {
            return None;
        }
        let conjunct = &self.plan.conjuncts[local.place];
        if local.expr.is_none() {
            local.expr = match &conjunct.filter {
                Some(filter) if !filter.is_published() => return None,
                Some(_) => Some(published(&conjunct.expr)),
                None => Some(conjunct.expr.clone()),
            };
        }
        Some(&conjunct.inputs)
    }

    /// One bit per row: whether the conjunct at `turn` is true, or fails, which is for the filter
    /// above the scan to say. `None` if for all.
    pub(super) fn evaluate(
        &mut self,
        turn: usize,
        arrays: &[Option<ArrayRef>],
        rows: usize,
    ) -> Result<Option<BooleanBuffer>> {
        let local = &mut self.order[turn];
        let conjunct = &self.plan.conjuncts[local.place];
        let Some(expr) = &local.expr else { return Ok(None) };
        let batch: RecordBatch = conjunct.inputs.batch(arrays, rows)?;
        let Ok(keep) = evaluate_predicate(expr.as_ref(), &batch) else {
            local.worth.stop();
            return Ok(None);
        };
        let dropped = rows - keep.count_set_bits();
        local.worth.note(rows, dropped);
        if dropped == 0 {
            return Ok(None);
        }
        let counter = match conjunct.filter {
            Some(_) => "rows dropped by runtime filters",
            None => "rows dropped before decoding",
        };
        self.metrics.add(counter, dropped as u64);
        Ok(Some(keep))
    }

    /// Puts those first that drop much for little.
    pub(super) fn reorder(&mut self) {
        let conjuncts = &self.plan.conjuncts;
        let price = |local: &Local| conjuncts[local.place].cost / local.worth.drops().max(0.001);
        self.order
            .sort_by(|one, other| price(one).partial_cmp(&price(other)).unwrap_or(Ordering::Equal));
    }
}
