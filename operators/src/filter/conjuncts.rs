//! The conjuncts of a predicate, one after the other, each on the rows that the ones before it left.
//!
//! Those that cannot fail go first, the ones that drop much for little in front, as measured by each
//! task. The others follow in the order in which they were written, so none fails on a row that one
//! before it took out.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch, RecordBatchOptions},
    buffer::BooleanBuffer,
    compute::filter_record_batch,
};
use datafusion_common::Result as DataFusionResult;
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{
        BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
    },
    split_conjunction,
    utils::collect_columns,
};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Result, pipeline::Batch};

use super::evaluate_predicate;
use crate::{OrFail, over_columns, selection::narrow, worth::Worth};

/// The conjuncts of a predicate.
#[derive(Debug)]
pub(super) struct Conjuncts {
    parts: Vec<Conjunct>,
    /// The columns that any of them reads.
    columns: Vec<usize>,
}

#[derive(Debug)]
struct Conjunct {
    /// Over `columns`.
    expr: Arc<dyn PhysicalExpr>,
    /// Of the filter's input.
    columns: Vec<usize>,
    /// It has a value for every row.
    total: bool,
}

impl Conjuncts {
    /// Those of `predicate`; one that draws lots is not taken apart.
    pub(super) fn new(predicate: &Arc<dyn PhysicalExpr>) -> DataFusionResult<Self> {
        let parts =
            if is_volatile(predicate) { vec![predicate] } else { split_conjunction(predicate) };
        let parts: Vec<Conjunct> =
            parts.into_iter().map(Conjunct::new).collect::<DataFusionResult<_>>()?;
        let mut columns: Vec<usize> =
            parts.iter().flat_map(|part| part.columns.iter().copied()).collect();
        columns.sort_unstable();
        columns.dedup();
        Ok(Self { parts, columns })
    }
}

impl Conjunct {
    fn new(expr: &Arc<dyn PhysicalExpr>) -> DataFusionResult<Self> {
        let mut columns: Vec<usize> =
            collect_columns(expr).into_iter().map(|column| column.index()).collect();
        columns.sort_unstable();
        let total = is_total(expr);
        Ok(Self { expr: over_columns(expr.clone(), &columns)?, columns, total })
    }

    /// About what it takes per row.
    fn cost(&self, batch: &RecordBatch) -> f64 {
        let primitive = |column: &usize| batch.column(*column).data_type().is_primitive();
        let cost = |column| if primitive(column) { 1.0 } else { 8.0 };
        0.5 + self.columns.iter().map(cost).sum::<f64>()
    }

    /// One bit per row of `batch`.
    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        evaluate_predicate(self.expr.as_ref(), batch)
    }
}

/// Whether `expr` has a value, or NULL, for every row.
fn is_total(expr: &Arc<dyn PhysicalExpr>) -> bool {
    use Operator::{And, Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq, Or};
    let comparison = |binary: &BinaryExpr| {
        let compares = matches!(binary.op(), Eq | NotEq | Lt | LtEq | Gt | GtEq);
        compares || matches!(binary.op(), And | Or | IsDistinctFrom | IsNotDistinctFrom)
    };
    let known = expr.is::<Column>()
        || expr.is::<Literal>()
        || expr.is::<NotExpr>()
        || expr.is::<IsNullExpr>()
        || expr.is::<IsNotNullExpr>()
        || expr.is::<InListExpr>()
        || expr.is::<LikeExpr>()
        || expr.downcast_ref::<BinaryExpr>().is_some_and(comparison);
    known && expr.children().into_iter().all(is_total)
}

/// The conjuncts as one task evaluates them.
#[derive(Debug)]
pub(super) struct LocalConjuncts {
    shared: Arc<Conjuncts>,
    /// Places of the conjuncts, and what they have been worth.
    order: Vec<(usize, Worth)>,
    /// What each conjunct takes per row, by place; empty before the first batch.
    costs: Vec<f64>,
}

impl LocalConjuncts {
    pub(super) fn new(shared: Arc<Conjuncts>) -> Self {
        let order = (0..shared.parts.len()).map(|place| (place, Worth::default())).collect();
        Self { shared, order, costs: Vec::new() }
    }

    /// The columns that the conjuncts read.
    pub(super) fn columns(&self) -> &[usize] {
        &self.shared.columns
    }

    /// The rows of `batch` for which all conjuncts are true; `None` for all rows.
    pub(super) fn select(&mut self, batch: &Batch) -> Result<Option<BooleanBuffer>> {
        let data = batch.data();
        if self.costs.is_empty() {
            self.costs = self.shared.parts.iter().map(|part| part.cost(data)).collect();
            self.reorder();
        }
        let mut selection = batch.selection().cloned();
        let mut left = batch.rows();
        for (place, worth) in &mut self.order {
            if left == 0 {
                break;
            }
            let part = &self.shared.parts[*place];
            let asked = left;
            let keep = match &selection {
                None => part.evaluate(&data.project(&part.columns).or_fail()?)?,
                // Looking at all rows of a column is cheaper than gathering many of them.
                Some(rows) if part.total && 4 * left > data.num_rows() => {
                    rows & &part.evaluate(&data.project(&part.columns).or_fail()?)?
                }
                Some(rows) => narrow(rows, &part.evaluate(&gather(data, &part.columns, rows)?)?),
            };
            left = keep.count_set_bits();
            worth.note(asked, asked - left);
            selection = Some(keep);
        }
        self.reorder();
        Ok(selection)
    }

    fn reorder(&mut self) {
        let Self { shared, order, costs } = self;
        let price = |(place, worth): &(usize, Worth)| costs[*place] / worth.drops().max(0.001);
        order.sort_by(|one, other| {
            let parts = [one.0, other.0].map(|place| &shared.parts[place]);
            match parts.map(|part| part.total) {
                [true, true] => price(one).partial_cmp(&price(other)).unwrap_or(Ordering::Equal),
                [false, false] => one.0.cmp(&other.0),
                [one, other] => other.cmp(&one),
            }
        });
    }
}

/// The `selected` rows of `columns`.
fn gather(data: &RecordBatch, columns: &[usize], selected: &BooleanBuffer) -> Result<RecordBatch> {
    if columns.is_empty() {
        let options = RecordBatchOptions::new().with_row_count(Some(selected.count_set_bits()));
        let schema = Arc::new(arrow::datatypes::Schema::empty());
        return RecordBatch::try_new_with_options(schema, Vec::new(), &options).or_fail();
    }
    let columns = data.project(columns).or_fail()?;
    filter_record_batch(&columns, &BooleanArray::new(selected.clone(), None)).or_fail()
}
