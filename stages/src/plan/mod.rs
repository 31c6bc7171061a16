//! Plans a query as stages.

mod add_exchanges;
mod buckets;
pub(crate) mod exchange;
pub(crate) mod explain;
pub(crate) mod fragment;
pub(crate) mod scan;

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
    BuildSideSelection, GateworkRule, Settings, UniqueNamePushdown, buckets::copy_into_buckets,
    clear_file_list_cache,
};

use crate::{ExecutionPolicy, SplitLimits, run::filters::JoinFilters};

pub use add_exchanges::add_exchanges;
pub use exchange::{ExchangeExec, ExchangeKind, PartitioningHandle, PartitioningScheme, Scope};
pub use explain::{StageLocation, StageTree, StageView};
pub use fragment::{FragmentId, PlanFragment, RemoteSourceExec, SubPlan, fragment_plan};
pub use scan::SplitScanExec;

/// Options of planning and running stages.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Number of nodes.
    pub nodes: usize,
    /// Maximum number of stages; a query with more fails. Default: 100.
    pub max_stages: usize,
    /// Upper bound, in bytes, for a broadcast build side (DataFusion's estimate). Every node builds
    /// its own table of it. Default: 16 MiB.
    pub max_broadcast_bytes: usize,
    /// Upper bound, in rows, for a broadcast build side without an estimate in bytes. Default: 1
    /// million.
    pub max_broadcast_rows: usize,
    /// When stages start. Default: all at once.
    pub policy: ExecutionPolicy,
    /// Limits of splits per node and task.
    pub splits: SplitLimits,
    /// Minimum bytes of rows per writer of files; another writer is added beyond it. Default: 32
    /// MiB, as in Presto.
    pub writer_min_bytes: u64,
    /// Maximum number of buckets that a node reads at a time in grouped execution. Default: 1, so
    /// that a query needs the memory of one bucket per node.
    pub concurrent_lifespans_per_task: usize,
    /// Maximum bytes in a task's output that wait for readers; the task blocks at the limit.
    /// Default: 16 MiB.
    pub output_buffer_bytes: usize,
}

impl StageOptions {
    /// Default options for `nodes` nodes.
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

/// Returns the variant of a session's rule for plans whose partitions run on several nodes.
fn distributed_rule(rule: &Rule) -> Rule {
    match rule.name() {
        BuildSideSelection::NAME => Arc::new(BuildSideSelection::distributed()),
        UniqueNamePushdown::NAME => Arc::new(UniqueNamePushdown::new(rule.clone())),
        _ => rule.clone(),
    }
}

/// Plans `query` as stages. DataFusion plans it for one partition per node; exchanges between
/// partitions become exchanges between nodes.
///
/// Scalar subqueries become joins, since a stage cannot see a value of another stage. A scalar
/// subquery with several rows is therefore not an error, unlike without stages.
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
    // The session's planner does not record statements that write as stages.
    clear_file_list_cache(session.runtime_env());
    let mut config = session.config().clone().with_target_partitions(options.nodes.max(1));
    let optimizer = &mut config.options_mut().optimizer;
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    optimizer.hash_join_single_partition_threshold = options.max_broadcast_bytes;
    optimizer.hash_join_single_partition_threshold_rows = options.max_broadcast_rows;
    // Only one stage would know the value.
    config.options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    // The copy shares the session's catalog; a new catalog would replace its tables.
    config.options_mut().catalog.create_default_catalog_and_schema = false;
    // A stage would compute a shared subplan for itself.
    let settings = Settings { share_subplans: false, ..Settings::of(&config) };
    let config = settings.into_config(config);
    // Plans of stages are wrapped later, each on its node.
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
