//! The order that a plan promises for its result, and the same plan without its limit.
//!
//! Only the top of a plan is examined: `Sort` below any projections, limits and subquery aliases. A
//! key is followed upwards through the projections to the output. If it arrives as a column or as
//! an expression over output columns, it can be compared. Otherwise (`SELECT a FROM t ORDER BY b`)
//! it is *hidden*. Only the keys before it are compared then, and rows that agree on those count as
//! ties. [`ResultOrder::hidden_keys`] returns the hidden keys. A limit *below* the sort is part of
//! the query's meaning, not of its presentation, and is ignored; `DISTINCT ON` counts as unordered.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Limit, LogicalPlan, Projection, SubqueryAlias};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::difference::Difference;
use super::table::cast_batch;

/// The order of a result, as far as it is visible in the result.
///
/// Directions and the position of NULLs are not part of it. The keys of a result are compared with
/// the keys of the reference, position by position, and the reference has the right direction.
#[derive(Debug, Clone, Default)]
pub struct ResultOrder {
    pub(super) keys: Vec<SortKey>,
    names: Vec<String>,
    hidden_keys: Vec<String>,
    pub(super) cut_start: bool,
    pub(super) cut_end: bool,
}

/// The source of an order key's value.
#[derive(Debug, Clone)]
pub enum SortKey {
    /// A column of the output, from 0.
    Column(usize),
    /// A value computed from columns of the output.
    Expression(KeyExpression),
}

/// An expression over the output columns of a plan.
#[derive(Debug, Clone)]
pub struct KeyExpression {
    expression: Arc<dyn PhysicalExpr>,
    /// The input types for which the expression was created.
    schema: SchemaRef,
}

impl ResultOrder {
    /// Returns the order that allows any sequence of rows.
    pub fn unordered() -> Self {
        Self::default()
    }

    /// Returns an order by these columns of the output, from 0, the most significant first.
    pub fn by_columns(columns: impl IntoIterator<Item = usize>) -> Self {
        let keys: Vec<_> = columns.into_iter().map(SortKey::Column).collect();
        let names = keys.iter().map(|key| format!("number {key}")).collect();
        Self { keys, names, ..Self::default() }
    }

    /// Records that rows may have been cut off after the last one, as by `LIMIT`.
    #[must_use]
    pub fn with_limit(mut self) -> Self {
        self.cut_end = true;
        self
    }

    /// Records that rows may have been cut off before the first one, as by `OFFSET`.
    #[must_use]
    pub fn with_offset(mut self) -> Self {
        self.cut_start = true;
        self
    }

    /// Returns the order that a plan promises; the plan may be optimised or not.
    pub fn of(plan: &LogicalPlan) -> Self {
        let mut order = Self::unordered();
        let mut above = Vec::new();
        let mut node = plan;
        loop {
            match node {
                LogicalPlan::Limit(limit) => {
                    order.cut_start |= limit.skip.is_some();
                    order.cut_end |= limit.fetch.is_some();
                    node = &limit.input;
                }
                LogicalPlan::Projection(projection) => {
                    above.push(Above::Projection(projection));
                    node = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    above.push(Above::Alias(alias));
                    node = &alias.input;
                }
                LogicalPlan::Sort(sort) => {
                    order.cut_end |= sort.fetch.is_some();
                    order.add_keys(sort.expr.iter().map(|key| &key.expr), &above, plan.schema());
                    return order;
                }
                _ => return order,
            }
        }
    }

    /// Returns the keys that are not visible in the result, and all keys after them, which
    /// therefore cannot be compared either.
    pub fn hidden_keys(&self) -> &[String] {
        &self.hidden_keys
    }

    /// Returns the keys that are compared.
    pub fn keys(&self) -> &[SortKey] {
        &self.keys
    }

    pub(super) fn key_name(&self, key: usize) -> String {
        self.names[key].clone()
    }

    /// Returns the types of the keys in a result with this canonical schema.
    pub(super) fn key_types(&self, schema: &Schema) -> Result<Vec<DataType>, Difference> {
        let data_type = |key: &SortKey| match key {
            SortKey::Column(column) => {
                let field = schema.fields().get(*column).ok_or_else(|| {
                    let columns = schema.fields().len();
                    Difference::Schema(format!(
                        "order key {column} is not one of the {columns} columns"
                    ))
                })?;
                Ok(field.data_type().clone())
            }
            SortKey::Expression(key) => key.expression.data_type(&key.schema).map_err(|error| {
                Difference::Incomparable(format!("an order key has no type: {error}"))
            }),
        };
        self.keys.iter().map(data_type).collect()
    }

    fn add_keys<'e>(
        &mut self,
        keys: impl Iterator<Item = &'e Expr>,
        above: &[Above],
        output: &DFSchema,
    ) {
        for key in keys {
            let name = key.to_string();
            // After a hidden key, the sequence of the later keys depends on invisible values.
            let found = self
                .hidden_keys
                .is_empty()
                .then(|| visible_key(key.clone(), above, output))
                .flatten();
            match found {
                Some(key) => {
                    self.keys.push(key);
                    self.names.push(name);
                }
                None => self.hidden_keys.push(name),
            }
        }
    }
}

impl fmt::Display for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column(column) => write!(f, "{}", column + 1),
            Self::Expression(key) => write!(f, "{}", key.expression),
        }
    }
}

impl KeyExpression {
    /// Returns the values of the key for the rows of an output batch, whatever the layout of its
    /// columns.
    pub(super) fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let batch = cast_batch(batch, &self.schema)?;
        self.expression.evaluate(&batch)?.into_array(batch.num_rows())
    }
}

/// Returns the plan without the limits and offsets at its top, whose result is what a `LIMIT` chose
/// its rows from.
///
/// `None` if the plan has no limit or offset there, so that its own result is already complete.
pub fn without_limit(plan: &LogicalPlan) -> Option<LogicalPlan> {
    match plan {
        LogicalPlan::Limit(Limit { input, .. }) => {
            Some(without_limit(input).unwrap_or_else(|| input.as_ref().clone()))
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_some() => {
            let mut sort = sort.clone();
            sort.fetch = None;
            Some(LogicalPlan::Sort(sort))
        }
        LogicalPlan::Projection(Projection { input, .. })
        | LogicalPlan::SubqueryAlias(SubqueryAlias { input, .. }) => {
            let input = without_limit(input)?;
            plan.with_new_exprs(plan.expressions(), vec![input]).ok()
        }
        _ => None,
    }
}

/// A node between the sort and the top of the plan.
enum Above<'a> {
    Projection(&'a Projection),
    Alias(&'a SubqueryAlias),
}

impl Above<'_> {
    /// Rewrites an expression over the input of this node to one over its output; `None` if the
    /// output lacks a column.
    fn lift(&self, key: Expr) -> Option<Expr> {
        let mut lost = false;
        let lifted = key.transform_down(|node| {
            if let Some(output) = self.output_of(&node) {
                return Ok(Transformed::new(Expr::Column(output), true, TreeNodeRecursion::Jump));
            }
            lost |= matches!(node, Expr::Column(_));
            Ok(Transformed::no(node))
        });
        lifted.ok().filter(|_| !lost).map(|lifted| lifted.data)
    }

    /// Returns the output column that has the value of this expression.
    fn output_of(&self, node: &Expr) -> Option<Column> {
        let (schema, position) = match self {
            Self::Projection(projection) => {
                let is_node = |output: &Expr| output.clone().unalias() == *node;
                (&projection.schema, projection.expr.iter().position(is_node)?)
            }
            Self::Alias(alias) => {
                let Expr::Column(column) = node else { return None };
                (&alias.schema, alias.input.schema().maybe_index_of_column(column)?)
            }
        };
        Some(Column::from(schema.qualified_field(position)))
    }
}

/// Follows a key from the sort up to the output.
fn visible_key(key: Expr, above: &[Above], output: &DFSchema) -> Option<SortKey> {
    let key = above.iter().rev().try_fold(key, |key, node| node.lift(key))?;
    if let Expr::Column(column) = &key {
        return output.maybe_index_of_column(column).map(SortKey::Column);
    }
    key_expression(key, output).ok().map(SortKey::Expression)
}

fn key_expression(key: Expr, output: &DFSchema) -> Result<KeyExpression> {
    let context = SimplifyContext::builder().with_schema(Arc::new(output.clone())).build();
    // A plan that was not analysed yet compares and adds different types; coercion makes them
    // equal.
    let key = ExprSimplifier::new(context).coerce(key, output)?;
    let planning = PhysicalPlanningContext::default();
    let expression = create_physical_expr(&key, output, &ExecutionProps::new(), &planning)?;
    Ok(KeyExpression { expression, schema: Arc::clone(output.inner()) })
}

#[cfg(test)]
mod tests;
