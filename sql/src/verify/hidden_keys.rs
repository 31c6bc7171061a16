//! Order keys that are not in a result, made visible for the comparison.

use datafusion::{
    common::{Column, Result},
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder},
};

use super::ResultOrder;

/// Returns `plan` with its order keys as additional columns after those of its result, and their
/// number. `None` if the result shows all keys, or no node of the plan orders it.
///
/// The rows of a result whose keys are hidden can be told apart only by these keys. Run this plan
/// on the reference, and pass its rows to
/// [`Comparison::hidden_keys`](super::Comparison::hidden_keys).
pub fn with_hidden_keys(plan: &LogicalPlan) -> Option<(LogicalPlan, usize)> {
    if ResultOrder::of(plan).hidden_keys().is_empty() {
        return None;
    }
    let (plan, keys) = keyed(plan).ok()??;
    Some((plan, keys.len()))
}

/// Returns `plan` with additional key columns, and these columns.
fn keyed(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Vec<Column>)>> {
    match plan {
        LogicalPlan::Sort(sort) => {
            let mut exprs: Vec<_> = plan.schema().columns().into_iter().map(Expr::Column).collect();
            let (mut names, keys) = (Vec::new(), sort.expr.iter().enumerate());
            for (index, key) in keys {
                let name = format!("order key {index}");
                exprs.push(key.expr.clone().alias(&name));
                names.push(Column::from_name(name));
            }
            let plan = LogicalPlanBuilder::from(plan.clone()).project(exprs)?.build()?;
            Ok(Some((plan, names)))
        }
        LogicalPlan::Projection(projection) => {
            let Some((input, keys)) = keyed(&projection.input)? else { return Ok(None) };
            let columns = keys.iter().cloned().map(Expr::Column);
            let exprs: Vec<_> = projection.expr.iter().cloned().chain(columns).collect();
            let plan = LogicalPlanBuilder::from(input).project(exprs)?.build()?;
            Ok(Some((plan, keys)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some((input, keys)) = keyed(&alias.input)? else { return Ok(None) };
            let plan = LogicalPlanBuilder::from(input).alias(alias.alias.clone())?.build()?;
            let within = |key: Column| Column::new(Some(alias.alias.clone()), key.name);
            Ok(Some((plan, keys.into_iter().map(within).collect())))
        }
        LogicalPlan::Limit(limit) => {
            let Some((input, keys)) = keyed(&limit.input)? else { return Ok(None) };
            let plan = plan.with_new_exprs(plan.expressions(), vec![input])?;
            Ok(Some((plan, keys)))
        }
        _ => Ok(None),
    }
}
