//! Filters of a query that DataFusion pushes down by the names of their columns.
//!
//! Its rule looks columns up by name in every node that it passes. Where a row has two columns of one name, it
//! takes the first, so `r1.c > r2.c` above an outer join may reach the scan of `r2` as `c > c`, and drops its rows.
//! Here each filter is followed by the positions of its columns as well; if the rule brought one to a scan
//! where it does not belong, the plan stays as it was before.

use std::sync::Arc;

use datafusion::{
    common::config::ConfigOptions,
    datasource::{physical_plan::FileScanConfig, source::DataSourceExec},
    error::Result,
    physical_expr::{PhysicalExpr, split_conjunction},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{ExecutionPlan, filter::FilterExec},
};

use super::{
    lineage::{KeysOfScans, scan_id, trace},
    targets::{ScanPlace, Targets},
};

/// DataFusion's rule that pushes filters down, with a check of where they go.
///
/// ```
/// use std::sync::Arc;
/// use datafusion::{
///     physical_optimizer::{PhysicalOptimizerRule, filter_pushdown::FilterPushdown},
///     prelude::*,
/// };
/// use gatework_sql::CheckedPushdown;
///
/// let rule = CheckedPushdown::new(Arc::new(FilterPushdown::new()));
/// assert_eq!(rule.name(), "FilterPushdown");
/// ```
#[derive(Debug)]
pub struct CheckedPushdown {
    rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>,
}

impl CheckedPushdown {
    /// The name of the rule to be checked among those of a session.
    pub const NAME: &str = "FilterPushdown";

    /// `rule`, with the check.
    pub fn new(rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>) -> Self {
        Self { rule }
    }
}

impl PhysicalOptimizerRule for CheckedPushdown {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let pushed = self.rule.optimize(plan.clone(), config)?;
        if has_equal_names(&plan) && has_strays(&plan, &pushed)? {
            tracing::debug!("filters are not pushed down: their columns' names are not unique");
            return Ok(plan);
        }
        Ok(pushed)
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

type Conjuncts = Vec<Arc<dyn PhysicalExpr>>;

/// Whether a scan of `pushed` has a filter that no node of `plan` has meant for it.
fn has_strays(plan: &Arc<dyn ExecutionPlan>, pushed: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let (mut before, mut after, mut meant) = (Vec::new(), Vec::new(), Vec::new());
    leaves(plan, &mut before);
    leaves(pushed, &mut after);
    filters(plan, &mut meant)?;
    if before.len() != after.len() {
        return Ok(true);
    }
    for (before, after) in before.into_iter().zip(after) {
        if !Arc::ptr_eq(before, after) && has_stray(before, after, &meant)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_stray(
    before: &Arc<dyn ExecutionPlan>,
    after: &Arc<dyn ExecutionPlan>,
    meant: &[Targets],
) -> Result<bool> {
    let (Some(known), Some(config)) = (files(before), files(after)) else { return Ok(true) };
    let known = conjuncts(known);
    let place = ScanPlace { scan: scan_id(before), output: config.file_source.projection() };
    for conjunct in conjuncts(config) {
        let is_meant = |targets: &Targets| targets.are_at(&place, &vec![conjunct.clone()]);
        if known.contains(&conjunct) {
            continue;
        }
        let mut found = false;
        for targets in meant {
            found = found || is_meant(targets)?;
        }
        if !found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn leaves<'a>(plan: &'a Arc<dyn ExecutionPlan>, found: &mut Vec<&'a Arc<dyn ExecutionPlan>>) {
    let children = plan.children();
    if children.is_empty() {
        found.push(plan);
    }
    children.into_iter().for_each(|child| leaves(child, found));
}

/// Where each conjunct of the filters in `plan` belongs.
fn filters(plan: &Arc<dyn ExecutionPlan>, found: &mut Vec<Targets>) -> Result<()> {
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        for conjunct in split_conjunction(filter.predicate()) {
            let mut scans = KeysOfScans::new();
            trace(filter.input(), &vec![conjunct.clone()], &|_| None, &mut scans)?;
            found.push(Targets::new(scans));
        }
    }
    plan.children().into_iter().try_for_each(|child| filters(child, found))
}

fn files(leaf: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    leaf.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<FileScanConfig>()
}

fn conjuncts(config: &FileScanConfig) -> Conjuncts {
    let predicate = config.file_source.filter();
    predicate.iter().flat_map(split_conjunction).cloned().collect()
}
