//! Order of inner joins.
//!
//! DataFusion joins in the order in which a query is written. This rule reorders each group of
//! inner hash joins that lie directly on each other, if another order costs clearly less by
//! [estimates](super::estimates). Up to [`MAX_EXHAUSTIVE`] inputs, all bushy orders without cross
//! products are compared by dynamic programming over connected subsets. Beyond, the cheapest pair
//! is joined again and again. (Moerkotte and Neumann, "Analysis of Two Existing and One New Dynamic
//! Programming Algorithm for the Generation of Optimal Bushy Join Trees without Cross Products",
//! VLDB 2006; Fegaras, "A New Heuristic for Optimizing Large Queries", 1998, for the greedy order.)
//!
//! Equal keys are classes: from `a.x = b.x AND b.x = c.x`, the rule joins a and c directly.
//!
//! Outer, semi and anti joins are inputs of a group and stay as they are.

mod graph;
mod search;

use std::sync::Arc;

use datafusion::{
    common::config::ConfigOptions,
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions},
};

use self::{
    graph::{JoinGraph, with_inputs},
    search::{JoinRows, best_tree},
};
use super::Settings;

/// Maximum number of inputs of which all orders are compared.
const MAX_EXHAUSTIVE: usize = 10;
/// Maximum number of inputs: sets of inputs are the bits of a `u64`.
const MAX_INPUTS: usize = 60;
/// Maximum cost of another order, as a fraction of the cost of the written order. Estimates err, so
/// a small gain is no reason to change what its author may have chosen.
const MAX_COST_RATIO: f64 = 0.7;

/// A rule that reorders inner joins; see the module.
#[derive(Debug)]
pub(crate) struct JoinOrder;

impl PhysicalOptimizerRule for JoinOrder {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let settings = config.extensions.get::<Settings>();
        if settings.is_some_and(|settings| !settings.reorder_joins) {
            return Ok(plan);
        }
        reorder(plan)
    }

    fn name(&self) -> &str {
        "gatework_join_order"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Reorders the joins of `plan`.
fn reorder(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(mut graph) = JoinGraph::of(&plan) else {
        let children = plan.children().into_iter().map(|child| reorder(child.clone()));
        return with_children(&plan, children.collect::<Result<Vec<_>>>()?);
    };
    for input in &mut graph.inputs {
        input.plan = reorder(input.plan.clone())?;
    }
    let rows = JoinRows::new(&graph);
    if let Some(tree) = best_tree(&graph, &rows) {
        let reordered = graph.build(&tree, &|inputs| rows.of(inputs), &plan.schema())?;
        if reordered.schema() == plan.schema() {
            return Ok(reordered);
        }
    }
    with_inputs(&plan, &mut graph.inputs.iter().map(|input| input.plan.clone()))
}

/// Returns `plan` with these children, or `plan` itself if they are its own.
fn with_children(
    plan: &Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if plan.children().into_iter().zip(&children).all(|(old, new)| Arc::ptr_eq(old, new)) {
        return Ok(plan.clone());
    }
    let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    plan.clone().replace_children(children, recompute)
}
