//! From a query to its stages.

use std::sync::Arc;

use datafusion::{
    error::Result,
    execution::session_state::{SessionState, SessionStateBuilder},
    logical_expr::LogicalPlan,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};

use gatework_sql::{
    BuildSideSelection, GateworkRule, UniqueNamePushdown, buckets::copy_into_buckets,
    clear_file_list_cache,
};

use crate::{
    ExecutionPolicy, SplitLimits, SubPlan, add_exchanges, filters::JoinFilters, fragment_plan,
};

/// How a query is cut.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// On how many nodes it is to run.
    pub nodes: usize,
    /// How many stages are allowed; 100.
    pub max_stages: usize,
    /// The side of a join that is sent to all nodes has, by DataFusion's estimate, at most so many bytes; 16 MiB.
    /// Each node has a table of its own of it.
    pub max_broadcast_bytes: usize,
    /// The same in rows, where bytes cannot be estimated; a million.
    pub max_broadcast_rows: usize,
    /// When stages start; all at once.
    pub policy: ExecutionPolicy,
    /// How many splits nodes are given at a time.
    pub splits: SplitLimits,
    /// Another writer of files is added when those there are have written so many bytes of rows each; 32 MiB, as in
    /// Presto.
    pub writer_min_bytes: u64,
    /// How many buckets a node reads at a time where a stage reads them one after the other; one, so that a query
    /// takes the memory of one bucket a node.
    pub concurrent_lifespans_per_task: usize,
    /// Bytes that wait in a task's output for the tasks that read it; 16 MiB.
    pub output_buffer_bytes: usize,
}

impl StageOptions {
    /// For so many nodes.
    pub fn with_nodes(nodes: usize) -> Self {
        Self {
            nodes,
            max_stages: 100,
            max_broadcast_bytes: 16 << 20,
            max_broadcast_rows: 1_000_000,
            policy: ExecutionPolicy::default(),
            splits: SplitLimits::default(),
            writer_min_bytes: 32 << 20,
            concurrent_lifespans_per_task: 1,
            output_buffer_bytes: 16 << 20,
        }
    }
}

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// `rule` of a session on one executor, for plans whose partitions run on several nodes.
fn distributed_rule(rule: &Rule) -> Rule {
    match rule.name() {
        BuildSideSelection::NAME => Arc::new(BuildSideSelection::distributed()),
        UniqueNamePushdown::NAME => Arc::new(UniqueNamePushdown::new(rule.clone())),
        _ => rule.clone(),
    }
}

/// The stages of `query`: planned by DataFusion as for so many partitions, with exchanges between nodes where
/// it has them between partitions.
///
/// Scalar subqueries are joins, since what one stage knows another does not. So a scalar subquery of several rows, which is an error elsewhere, is not noticed.
///
/// ```
/// use datafusion::prelude::SessionContext;
/// use gatework_stages::{PartitioningHandle, StageOptions, plan_stages};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> datafusion::error::Result<()> {
/// let session = SessionContext::new();
/// let query = session.sql("SELECT 6 * 7 AS answer").await?;
/// let (state, plan) = query.into_parts();
/// let stages = plan_stages(&state, &plan, &StageOptions::with_nodes(4)).await?;
/// assert_eq!(stages.fragment.partitioning, PartitioningHandle::Single);
/// println!("{}", stages.tree(4).text());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the query cannot be planned, or has too many stages.
pub async fn plan_stages(
    session: &SessionState,
    query: &LogicalPlan,
    options: &StageOptions,
) -> Result<SubPlan> {
    // Statements that write as stages are not noted by the session's planner.
    clear_file_list_cache(session.runtime_env());
    let mut config = session.config().clone().with_target_partitions(options.nodes.max(1));
    let optimizer = &mut config.options_mut().optimizer;
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    optimizer.hash_join_single_partition_threshold = options.max_broadcast_bytes;
    optimizer.hash_join_single_partition_threshold_rows = options.max_broadcast_rows;
    // The value would be known in one stage only.
    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    // The copy shares the session's catalog; a new one would take the place of its tables.
    config.options_mut().catalog.create_default_catalog_and_schema = false;
    // The parts of a plan are hosted later, each on its node.
    let rules =
        session.physical_optimizers().iter().filter(|rule| rule.name() != GateworkRule::NAME);
    let rules = rules.map(distributed_rule).collect();
    let state = SessionStateBuilder::new_from_existing(session.clone())
        .with_config(config)
        .with_physical_optimizer_rules(rules)
        .build();
    let (query, copy_into) = copy_into_buckets(query)?;
    let logical = state.optimize(&query)?;
    let planner = DefaultPhysicalPlanner::default();
    let plan: Arc<dyn ExecutionPlan> = planner.create_physical_plan(&logical, &state).await?;
    let mut planned = add_exchanges(plan, options.nodes, copy_into.map(Arc::new).as_ref())?;
    if let Some(filters) = JoinFilters::of(session) {
        planned = filters.push_down(planned)?;
    }
    fragment_plan(&planned, options.max_stages)
}
