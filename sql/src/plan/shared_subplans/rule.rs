//! The analyzer rule that finds subplans with several readers.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    logical_expr::{Expr, LogicalPlan, SubqueryAlias},
    optimizer::analyzer::AnalyzerRule,
};

use super::SharedTable;
use crate::plan::Settings;

/// Replaces subplans with several readers by scans of a shared table. The last analyzer rule, so
/// that types are final, and no predicate of one reader is part of a copy.
///
/// A subplan is the definition of a common table expression, view or derived table, if it
/// aggregates, has windows or joins tables. Scans stay: reading a table again costs less than
/// keeping its rows. Joins of a table with itself stay: they may have many more rows than the
/// table, of which the runtime filters of each reader leave few. Copies that are volatile,
/// correlated or part of a recursion stay, too.
#[derive(Debug)]
pub(crate) struct SharedSubplans;

impl AnalyzerRule for SharedSubplans {
    fn analyze(&self, plan: LogicalPlan, options: &ConfigOptions) -> Result<LogicalPlan> {
        let settings = options.extensions.get::<Settings>();
        if settings.is_some_and(|settings| !settings.share_subplans) {
            return Ok(plan);
        }
        // The query, then the definitions: a smaller subplan may have readers in larger ones.
        let mut plans = vec![plan];
        let mut tables = Vec::new();
        while let Some((subplan, alias)) = largest_repeated(&plans)? {
            let table = SharedTable::new(&alias, &subplan.plan);
            for plan in &mut plans {
                *plan = with_scans(std::mem::take(plan), &subplan, &table)?;
            }
            plans.push(subplan.plan.as_ref().clone());
            tables.push(table);
        }
        for (table, definition) in tables.iter().zip(plans.drain(1..)) {
            table.define(definition);
        }
        Ok(plans.pop().unwrap_or_default())
    }

    fn name(&self) -> &str {
        "gatework_shared_subplans"
    }
}

/// A subplan, and its tables: DataFusion compares only their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subplan {
    plan: Arc<LogicalPlan>,
    /// Addresses of the tables' sources, in the order of the plan.
    sources: Vec<usize>,
}

impl Subplan {
    fn of(plan: &Arc<LogicalPlan>) -> Result<Self> {
        let mut sources = Vec::new();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                sources.push(Arc::as_ptr(&scan.source).cast::<()>() as usize);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(Self { plan: plan.clone(), sources })
    }

    fn is(&self, plan: &Arc<LogicalPlan>) -> Result<bool> {
        Ok(self.plan == *plan && *self == Self::of(plan)?)
    }
}

/// Returns the largest subplan that occurs several times in `plans`, with a name for it.
fn largest_repeated(plans: &[LogicalPlan]) -> Result<Option<(Subplan, String)>> {
    // The copies, their first place and their name.
    let mut copies: HashMap<Subplan, (usize, usize, String)> = HashMap::new();
    for plan in plans {
        plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::RecursiveQuery(_) => return Ok(TreeNodeRecursion::Jump),
                LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {
                    return Ok(TreeNodeRecursion::Stop);
                }
                LogicalPlan::SubqueryAlias(alias) if is_shareable(&alias.input)? => {
                    let place = copies.len();
                    let subplan = Subplan::of(&alias.input)?;
                    let name = alias.alias.table().to_owned();
                    copies.entry(subplan).or_insert((0, place, name)).0 += 1;
                }
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    let repeated = copies.into_iter().filter(|(_, (count, ..))| *count > 1);
    let mut repeated: Vec<_> = repeated
        .map(|(subplan, (_, place, name))| {
            (std::cmp::Reverse(size(&subplan.plan)), place, subplan, name)
        })
        .collect();
    repeated.sort_by_key(|(size, place, ..)| (*size, *place));
    Ok(repeated.into_iter().next().map(|(_, _, subplan, name)| (subplan, name)))
}

/// Returns the number of nodes of `plan`.
fn size(plan: &LogicalPlan) -> usize {
    1 + plan.inputs().into_iter().map(size).sum::<usize>()
}

/// Returns whether copies of `plan` have the same rows, and cost enough to be shared.
fn is_shareable(plan: &LogicalPlan) -> Result<bool> {
    if matches!(plan, LogicalPlan::SubqueryAlias(_)) {
        // The one below is shared.
        return Ok(false);
    }
    let mut names: Vec<_> = plan.schema().fields().iter().map(|field| field.name()).collect();
    names.sort_unstable();
    if names.is_empty() || names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(false);
    }
    let (mut works, mut joins, mut differs) = (false, false, plan.contains_outer_reference());
    plan.apply_with_subqueries(|node| {
        works |= matches!(
            node,
            LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_)
        );
        joins |= matches!(node, LogicalPlan::Join(_));
        node.apply_expressions(|expr| {
            differs |= expr.is_volatile();
            expr.apply(|expr| {
                differs |= matches!(expr, Expr::Placeholder(_) | Expr::OuterReferenceColumn(..));
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if differs { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if differs || works || !joins {
        return Ok(works && !differs);
    }
    let mut sources = Subplan::of(&Arc::new(plan.clone()))?.sources;
    sources.sort_unstable();
    Ok(sources.windows(2).all(|pair| pair[0] != pair[1]))
}

/// Replaces the copies of `subplan` in `plan` by scans of `table`.
fn with_scans(plan: LogicalPlan, subplan: &Subplan, table: &SharedTable) -> Result<LogicalPlan> {
    plan.transform_down_with_subqueries(|node| match node {
        LogicalPlan::RecursiveQuery(_) => {
            Ok(Transformed::new(node, false, TreeNodeRecursion::Jump))
        }
        LogicalPlan::SubqueryAlias(alias) if subplan.is(&alias.input)? => {
            let scan = SubqueryAlias::try_new(Arc::new(table.scan()?), alias.alias)?;
            let scan = LogicalPlan::SubqueryAlias(scan);
            Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump))
        }
        node => Ok(Transformed::no(node)),
    })
    .data()
}
