//! Bindings: the values that expressions of a plan refer to in one execution.
//!
//! A plan is a value that may be executed again, or several times at once. Two kinds of its
//! expressions change while it runs: the values of scalar subqueries, and runtime filters. Each
//! execution has its own. Lowering *binds* every expression that it takes from a node, and fallback
//! nodes pass the bindings down to the regions below them.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::datatypes::Schema;
use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode},
    datasource::physical_plan::{FileScanConfig, ParquetSource},
    error::Result,
    logical_expr::physical_planning_context::ScalarSubqueryResults,
    physical_expr::{
        PhysicalExpr,
        aggregate::AggregateFunctionExpr,
        expressions::{DynamicFilterPhysicalExpr, lit},
        projection::ProjectionExprs,
        scalar_subquery::ScalarSubqueryExpr,
        window::WindowExpr,
    },
    physical_plan::ExecutionPlan,
};

use super::targets::{ScanTarget, Targets};
use crate::nodes::NodeRegistry;

/// The values that belong to one execution of a plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bindings {
    /// Results of scalar subqueries: pairs of the plan's results and the execution's.
    subqueries: Vec<(ScalarSubqueryResults, ScalarSubqueryResults)>,
    /// Runtime filters by the id of the plan's filter.
    filters: HashMap<u64, BoundFilter>,
    /// The node types that are native beside DataFusion's.
    nodes: Arc<NodeRegistry>,
}

/// A runtime filter of one execution.
#[derive(Debug, Clone)]
struct BoundFilter {
    own: Arc<DynamicFilterPhysicalExpr>,
    /// The scans below the filter's join that it applies to.
    targets: Targets,
}

impl Bindings {
    /// Returns the bindings with the registered node types.
    pub(super) fn with_nodes(self, nodes: Arc<NodeRegistry>) -> Self {
        Self { nodes, ..self }
    }

    /// Creates results of this execution for the `count` subqueries whose results in the plan are
    /// `planned`.
    pub(super) fn add_subqueries(
        &mut self,
        planned: &ScalarSubqueryResults,
        count: usize,
    ) -> ScalarSubqueryResults {
        let own = ScalarSubqueryResults::new(count);
        self.subqueries.push((planned.clone(), own.clone()));
        own
    }

    /// Creates a filter of this execution in place of `planned`, whose keys are expressions over
    /// the output of `probe`.
    pub(super) fn add_filter(
        &mut self,
        planned: &DynamicFilterPhysicalExpr,
        probe: &Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<DynamicFilterPhysicalExpr>> {
        let keys = planned.children().into_iter().cloned().collect();
        let own = Arc::new(DynamicFilterPhysicalExpr::new(keys, lit(true)));
        if let Some(id) = planned.expression_id() {
            let nodes = self.nodes.clone();
            let targets = Targets::of(planned, probe, &move |plan| nodes.pass_through(plan))?;
            self.filters.insert(id, BoundFilter { own: own.clone(), targets });
        }
        Ok(own)
    }

    fn is_empty(&self) -> bool {
        self.subqueries.is_empty() && self.filters.is_empty()
    }

    /// Binds `expr` of a plan's node to this execution.
    pub(crate) fn bind(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        if self.is_empty() {
            return Ok(expr.clone());
        }
        expr.clone().transform_up(|node| self.bind_node(node, None)).data()
    }

    /// Binds the predicate of a scan to this execution. Removes filters on a column other than the
    /// one their join means. `output` are the scan's output columns over the columns of the
    /// predicate.
    fn bind_predicate(
        &self,
        predicate: &Arc<dyn PhysicalExpr>,
        scan: usize,
        output: Option<&ProjectionExprs>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let target = ScanTarget { scan, output };
        predicate.clone().transform_up(|node| self.bind_node(node, Some(&target))).data()
    }

    fn bind_node(
        &self,
        node: Arc<dyn PhysicalExpr>,
        target: Option<&ScanTarget>,
    ) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
        if let Some(subquery) = node.downcast_ref::<ScalarSubqueryExpr>() {
            return Ok(match self.bind_subquery(subquery)? {
                Some(bound) => Transformed::yes(bound),
                None => Transformed::no(node),
            });
        }
        let dynamic = node.is::<DynamicFilterPhysicalExpr>();
        let id = node.expression_id().filter(|_| dynamic);
        let Some(filter) = id.and_then(|id| self.filters.get(&id)) else {
            return Ok(Transformed::no(node));
        };
        let columns: Vec<_> = node.children().into_iter().cloned().collect();
        if let Some(target) = target
            && !filter.targets.matches(target, &columns)?
        {
            return Ok(Transformed::yes(lit(true)));
        }
        filter.own.clone().with_new_children(columns).map(Transformed::yes)
    }

    #[expect(deprecated, reason = "no other method returns the index")]
    fn bind_subquery(
        &self,
        subquery: &ScalarSubqueryExpr,
    ) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let results = subquery.results();
        let mut known = self.subqueries.iter().rev();
        let Some((_, own)) = known.find(|(planned, _)| planned == results) else { return Ok(None) };
        let field = subquery.return_field(&Schema::empty())?;
        let (data_type, nullable) = (field.data_type().clone(), field.is_nullable());
        let bound = ScalarSubqueryExpr::new(data_type, nullable, subquery.index(), own.clone());
        Ok(Some(Arc::new(bound)))
    }

    /// Binds each of `exprs` to this execution.
    pub(super) fn bind_all<'a>(
        &self,
        exprs: impl IntoIterator<Item = &'a Arc<dyn PhysicalExpr>>,
    ) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
        exprs.into_iter().map(|expr| self.bind(expr)).collect()
    }

    /// Binds the arguments and ordering of `function`.
    pub(super) fn bind_aggregate(
        &self,
        function: &Arc<AggregateFunctionExpr>,
    ) -> Result<Arc<AggregateFunctionExpr>> {
        if self.subqueries.is_empty() {
            return Ok(function.clone());
        }
        let all = function.all_expressions();
        let (arguments, order) = (self.bind_all(&all.args)?, self.bind_all(&all.order_by_exprs)?);
        if are_same(&all.args, &arguments) && are_same(&all.order_by_exprs, &order) {
            return Ok(function.clone());
        }
        let bound = function.with_new_expressions(arguments, order);
        Ok(bound.map_or_else(|| function.clone(), Arc::new))
    }

    /// Binds the arguments, partition keys and ordering of `window`. A function that does not
    /// accept new arguments reads the plan's results, which each execution sets as well.
    pub(super) fn bind_window(&self, window: &Arc<dyn WindowExpr>) -> Result<Arc<dyn WindowExpr>> {
        if self.subqueries.is_empty() {
            return Ok(window.clone());
        }
        let all = window.all_expressions();
        let arguments = self.bind_all(&all.args)?;
        let keys = self.bind_all(&all.partition_by_exprs)?;
        let order = self.bind_all(&all.order_by_exprs)?;
        Ok(window.with_new_expressions(arguments, keys, order).unwrap_or_else(|| window.clone()))
    }

    /// Binds the predicate of a table in memory, which is over the output of its scan.
    pub(super) fn bind_memory(
        &self,
        predicate: &Arc<dyn PhysicalExpr>,
        scan: usize,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        self.bind_predicate(predicate, scan, None)
    }

    /// Binds the predicate of a scan's `config`. (Projections with subqueries are not pushed into
    /// scans.)
    pub(super) fn bind_scan<'a>(
        &self,
        config: &'a FileScanConfig,
        scan: usize,
    ) -> Result<Cow<'a, FileScanConfig>> {
        let source = config.file_source.downcast_ref::<ParquetSource>();
        let (Some(source), Some(predicate), false) =
            (source, config.file_source.filter(), self.is_empty())
        else {
            return Ok(Cow::Borrowed(config));
        };
        let output = config.file_source.projection();
        let source = source.with_predicate(self.bind_predicate(&predicate, scan, output)?);
        let mut config = config.clone();
        config.file_source = Arc::new(source);
        Ok(Cow::Owned(config))
    }
}

/// Returns whether binding has changed none of `exprs`.
fn are_same(exprs: &[Arc<dyn PhysicalExpr>], bound: &[Arc<dyn PhysicalExpr>]) -> bool {
    exprs.iter().zip(bound).all(|(expr, bound)| Arc::ptr_eq(expr, bound))
}
