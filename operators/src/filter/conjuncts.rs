//! Conjuncts of a predicate, evaluated in order, each on the rows that the earlier ones kept.
//!
//! Infallible conjuncts go first, ordered by cost per dropped row: the cost is estimated from the
//! types of their columns, the ratio of dropped rows is measured by each task. The others follow in
//! the order in which they were written, so none fails on a row that an earlier conjunct dropped.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch, RecordBatchOptions},
    buffer::BooleanBuffer,
    compute::filter_record_batch,
};
use datafusion_common::{Result as DataFusionResult, tree_node::TreeNode};
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
use crate::{
    ResultExt,
    adaptive_filter::AdaptiveFilter,
    dictionary::{EntryPredicate, decode_columns, plain_schema},
    keys::is_text,
    remap_columns,
    selection::refine,
};

/// Conjuncts of a predicate.
#[derive(Debug)]
pub(super) struct Conjuncts {
    parts: Vec<Conjunct>,
    /// Columns that any conjunct reads.
    columns: Vec<usize>,
}

#[derive(Debug)]
struct Conjunct {
    /// Expression over `columns`.
    expr: Arc<dyn PhysicalExpr>,
    /// Columns of the filter's input.
    columns: Vec<usize>,
    /// True if the expression cannot fail on any row.
    infallible: bool,
}

impl Conjuncts {
    /// Splits `predicate` into its conjuncts; a volatile predicate stays whole.
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

    /// Returns the columns of which rows are needed, not only dictionary entries: those of a
    /// conjunct that reads several columns, or that can fail.
    pub(super) fn columns_of_rows(&self) -> Vec<usize> {
        let by_rows = self.parts.iter().filter(|part| !part.reads_entries());
        by_rows.flat_map(|part| part.columns.iter().copied()).collect()
    }

    /// Returns the columns that are compared with texts.
    pub(super) fn columns_of_texts(&self) -> Vec<usize> {
        let texts = self.parts.iter().filter(|part| part.has_text());
        texts.flat_map(|part| part.columns.iter().copied()).collect()
    }
}

impl Conjunct {
    fn new(expr: &Arc<dyn PhysicalExpr>) -> DataFusionResult<Self> {
        let mut columns: Vec<usize> =
            collect_columns(expr).into_iter().map(|column| column.index()).collect();
        columns.sort_unstable();
        let infallible = is_infallible(expr);
        Ok(Self { expr: remap_columns(expr.clone(), &columns)?, columns, infallible })
    }

    /// Estimates the cost per row; a primitive column counts 1, any other 8.
    fn cost(&self, batch: &RecordBatch) -> f64 {
        let primitive = |column: &usize| batch.column(*column).data_type().is_primitive();
        let cost = |column| if primitive(column) { 1.0 } else { 8.0 };
        0.5 + self.columns.iter().map(cost).sum::<f64>()
    }

    /// Returns whether the conjunct can be evaluated on the entries of a dictionary.
    fn reads_entries(&self) -> bool {
        self.infallible && self.columns.len() == 1 && !is_volatile(&self.expr)
    }

    /// Evaluates the conjunct; returns one bit per row of `batch`.
    fn evaluate(&self, batch: &RecordBatch, entries: &mut EntryPredicate) -> Result<BooleanBuffer> {
        let Some(plain) = plain_schema(batch) else {
            return evaluate_predicate(self.expr.as_ref(), batch);
        };
        match entries.evaluate(self.expr.as_ref(), &plain, batch) {
            Some(bits) => Ok(bits),
            None => {
                let plain = decode_columns(batch.clone(), &plain).query_err()?;
                evaluate_predicate(self.expr.as_ref(), &plain)
            }
        }
    }

    /// Returns whether the conjunct compares with a text.
    fn has_text(&self) -> bool {
        let has_text = |expr: &Arc<dyn PhysicalExpr>| {
            let literal = expr.downcast_ref::<Literal>();
            Ok(literal.is_some_and(|literal| is_text(&literal.value().data_type())))
        };
        self.expr.exists(has_text).unwrap_or(false)
    }
}

/// Returns true if `expr` has a value, or NULL, for every row.
fn is_infallible(expr: &Arc<dyn PhysicalExpr>) -> bool {
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
    known && expr.children().into_iter().all(is_infallible)
}

/// Conjuncts as one task evaluates them.
#[derive(Debug)]
pub(super) struct LocalConjuncts {
    conjuncts: Arc<Conjuncts>,
    /// Indices of the conjuncts in evaluation order, with their drop statistics.
    order: Vec<(usize, AdaptiveFilter)>,
    /// Results on dictionary entries, by index of the conjunct.
    entries: Vec<EntryPredicate>,
    /// Cost per row of each conjunct, by index; empty before the first batch.
    costs: Vec<f64>,
}

impl LocalConjuncts {
    pub(super) fn new(conjuncts: Arc<Conjuncts>) -> Self {
        let order =
            (0..conjuncts.parts.len()).map(|index| (index, AdaptiveFilter::default())).collect();
        let entries = conjuncts.parts.iter().map(|_| EntryPredicate::default()).collect();
        Self { conjuncts, order, entries, costs: Vec::new() }
    }

    /// Returns the columns that the conjuncts read.
    pub(super) fn columns(&self) -> &[usize] {
        &self.conjuncts.columns
    }

    /// Returns the rows of `batch` for which all conjuncts are true; `None` for all rows.
    pub(super) fn select(&mut self, batch: &Batch) -> Result<Option<BooleanBuffer>> {
        let data = batch.data();
        if self.costs.is_empty() {
            self.costs = self.conjuncts.parts.iter().map(|part| part.cost(data)).collect();
            self.reorder();
        }
        let mut selection = batch.selection().cloned();
        let mut remaining = batch.num_rows();
        for (index, adaptive) in &mut self.order {
            if remaining == 0 {
                break;
            }
            let (part, entries) = (&self.conjuncts.parts[*index], &mut self.entries[*index]);
            let input_rows = remaining;
            let keep = match &selection {
                None => part.evaluate(&data.project(&part.columns).query_err()?, entries)?,
                // Evaluating all rows of a column is cheaper than gathering many of them.
                Some(rows) if part.infallible && 4 * remaining > data.num_rows() => {
                    rows & &part.evaluate(&data.project(&part.columns).query_err()?, entries)?
                }
                Some(rows) => {
                    let some = gather(data, &part.columns, rows)?;
                    refine(rows, &part.evaluate(&some, entries)?)
                }
            };
            remaining = keep.count_set_bits();
            adaptive.record(input_rows, input_rows - remaining);
            selection = Some(keep);
        }
        self.reorder();
        Ok(selection)
    }

    fn reorder(&mut self) {
        let Self { conjuncts, order, costs, .. } = self;
        let rank = |(index, adaptive): &(usize, AdaptiveFilter)| {
            costs[*index] / adaptive.drop_ratio().max(0.001)
        };
        order.sort_by(|one, other| {
            let parts = [one.0, other.0].map(|index| &conjuncts.parts[index]);
            match parts.map(|part| part.infallible) {
                [true, true] => rank(one).partial_cmp(&rank(other)).unwrap_or(Ordering::Equal),
                [false, false] => one.0.cmp(&other.0),
                [one, other] => other.cmp(&one),
            }
        });
    }
}

/// Gathers the `selected` rows of `columns`.
fn gather(data: &RecordBatch, columns: &[usize], selected: &BooleanBuffer) -> Result<RecordBatch> {
    if columns.is_empty() {
        let options = RecordBatchOptions::new().with_row_count(Some(selected.count_set_bits()));
        let schema = Arc::new(arrow::datatypes::Schema::empty());
        return RecordBatch::try_new_with_options(schema, Vec::new(), &options).query_err();
    }
    let columns = data.project(columns).query_err()?;
    filter_record_batch(&columns, &BooleanArray::new(selected.clone(), None)).query_err()
}
