//! DataFusion's pushdown of filters, restricted to plans with unique column names.
//!
//! DataFusion's rule looks columns up by name in the nodes that it passes. Where a row has two
//! columns of one name, it takes one of them. So `r1.c > r2.c` above an outer join may reach `r2`
//! as `c > c`, and drop its rows. A filter therefore stays in place if rows below it have two
//! columns of one name. The optimizer of logical plans has already pushed filters down by qualified
//! names, so the rule loses little.

use std::{fmt, sync::Arc};

use datafusion::{
    common::{
        config::ConfigOptions,
        internal_err,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::replace_children_if_necessary, filter::FilterExec,
    },
};

/// Wraps DataFusion's filter pushdown and exempts filters over ambiguous column names.
///
/// ```
/// use std::sync::Arc;
/// use datafusion::physical_optimizer::{
///     PhysicalOptimizerRule, filter_pushdown::FilterPushdown,
/// };
/// use gatework_sql::UniqueNamePushdown;
///
/// let rule = UniqueNamePushdown::new(Arc::new(FilterPushdown::new()));
/// assert_eq!(rule.name(), "FilterPushdown");
/// ```
#[derive(Debug)]
pub struct UniqueNamePushdown {
    rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>,
}

impl UniqueNamePushdown {
    /// Name of the rule among those of a session.
    pub const NAME: &str = "FilterPushdown";

    /// Wraps `rule`.
    pub fn new(rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>) -> Self {
        Self { rule }
    }
}

impl PhysicalOptimizerRule for UniqueNamePushdown {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !has_equal_names(&plan) {
            return self.rule.optimize(plan, config);
        }
        let pinned = plan.transform_up(|node| {
            let filter = node.downcast_ref::<FilterExec>();
            Ok(match filter.is_some_and(|filter| has_equal_names(filter.input())) {
                true => Transformed::yes(Arc::new(PushdownBarrier(node)) as _),
                false => Transformed::no(node),
            })
        });
        let pushed = self.rule.optimize(pinned.data()?, config)?;
        pushed
            .transform_up(|node| {
                let filter =
                    node.downcast_ref::<PushdownBarrier>().map(|barrier| barrier.0.clone());
                Ok(filter.map_or_else(|| Transformed::no(node), Transformed::yes))
            })
            .data()
    }

    fn name(&self) -> &str {
        self.rule.name()
    }

    fn schema_check(&self) -> bool {
        self.rule.schema_check()
    }
}

/// Returns whether the rows of any node have two columns of one name.
fn has_equal_names(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let schema = plan.schema();
    let mut names: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
        || plan.children().into_iter().any(has_equal_names)
}

/// Stands for a filter during pushdown: the filter is not pushed down, and no other is pushed
/// through it.
#[derive(Debug)]
struct PushdownBarrier(Arc<dyn ExecutionPlan>);

impl DisplayAs for PushdownBarrier {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as(kind, f)
    }
}

impl ExecutionPlan for PushdownBarrier {
    fn name(&self) -> &str {
        "PushdownBarrier"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.0.children()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.0.apply_expressions(f)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self(replace_children_if_necessary(self.0.clone(), children)?)))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("a PushdownBarrier cannot be executed")
    }
}
