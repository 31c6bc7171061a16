//! Filters of a query that DataFusion pushes down by the names of their columns.
//!
//! Its rule looks columns up by name in the nodes that it passes. Where a row has two columns of one name, it
//! takes one of them, so `r1.c > r2.c` above an outer join may reach `r2` as `c > c`, and drops its rows. So a
//! filter stays where it is if rows below it have columns of one name. The logical plan's filters were pushed down
//! before, by names with their tables, so that little is left to the rule there.

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

/// DataFusion's rule that pushes filters down, for those that it cannot mistake.
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
    /// The name of the rule among those of a session.
    pub const NAME: &str = "FilterPushdown";

    /// Around `rule`.
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

/// Whether the rows of any node have two columns of one name.
fn has_equal_names(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let schema = plan.schema();
    let mut names: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
        || plan.children().into_iter().any(has_equal_names)
}

/// Stands for a filter through which no filter is pushed, its own neither.
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
        internal_err!("it stands for a filter while a rule runs")
    }
}
