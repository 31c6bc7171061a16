//! The query planner and the physical rule that wrap the nodes of DataFusion's plans.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProviderList, Session},
    common::{
        DFSchema,
        config::{ConfigOptions, TableOptions},
        not_impl_err,
    },
    error::Result,
    execution::{TaskContext, context::QueryPlanner, runtime_env::RuntimeEnv},
    logical_expr::{
        AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, WindowUDF,
        execution_props::ExecutionProps, registry::ExtensionTypeRegistryRef,
    },
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{ExecutionPlan, operator_statistics::StatisticsRegistry},
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
    prelude::SessionConfig,
};

use gatework_runtime::Executor;

use crate::{
    buckets::copies_into_buckets,
    nodes::NodeRegistry,
    plan::{
        exec,
        shared_subplans::{plan_subplans, show_definitions},
    },
    run::engine::Engine,
};

/// Plans for the session's number of partitions, but for at least two.
///
/// DataFusion's users hardly ever plan for one partition, and that path has faults. It treats
/// constants that hold within each partition as constants of all rows, so sorts and limits vanish.
/// With two or more partitions, every point where partitions meet is a node of the plan, which
/// lowering elides. Table providers and fallback nodes have the parallelism that they have without
/// gatework. Lowering decides how many tasks a pipeline has.
pub struct GateworkPlanner {
    inner: Option<Arc<dyn QueryPlanner + Send + Sync>>,
    nodes: Arc<NodeRegistry>,
    /// Whether unwrapped nodes have been reported.
    reported: AtomicBool,
    /// Whether a statement that writes has been planned.
    writes: AtomicBool,
}

impl GateworkPlanner {
    /// Creates a planner of sessions on `executor`, around `inner` or DataFusion's own planner.
    pub fn new(executor: &Executor, inner: Option<Arc<dyn QueryPlanner + Send + Sync>>) -> Self {
        let nodes = NodeRegistry::of(executor);
        Self { inner, nodes, reported: AtomicBool::new(false), writes: AtomicBool::new(false) }
    }
}

impl GateworkPlanner {
    /// Logs a warning, once per planner, if supported nodes of a plan are not wrapped.
    fn report_unwrapped(&self, plan: &Arc<dyn ExecutionPlan>) {
        let lost = exec::count_unwrapped(plan.as_ref(), &self.nodes);
        if lost > 0 && !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{lost} supported nodes of a plan run on DataFusion: a physical optimizer rule \
                 after gatework's replaced them; call with_gatework last"
            );
        }
    }
}

impl GateworkPlanner {
    /// Plans a query without shared subplans, or with planned ones.
    pub(crate) async fn plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match &self.inner {
            Some(inner) => inner.create_physical_plan(plan, session).await,
            None => DefaultPhysicalPlanner::default().create_physical_plan(plan, session).await,
        }
    }

    /// Clears the session's file list cache once a statement that writes has been planned: such a
    /// statement may add files.
    fn refresh_file_list_cache(&self, plan: &LogicalPlan, session: &dyn Session) {
        let statement = match plan {
            LogicalPlan::Analyze(analyze) => &analyze.input,
            plan => plan,
        };
        if matches!(statement, LogicalPlan::Copy(_) | LogicalPlan::Dml(_)) {
            // Relaxed: the flag is read by later statements only, which are ordered after this one
            // by other means.
            self.writes.store(true, Ordering::Relaxed);
        }
        if self.writes.load(Ordering::Relaxed) {
            clear_file_list_cache(session.runtime_env());
        }
    }
}

/// Clears the file list cache of all sessions with `runtime`. The next query lists the files again.
pub fn clear_file_list_cache(runtime: &RuntimeEnv) {
    if let Some(lists) = runtime.cache_manager.get_list_files_cache() {
        lists.clear();
    }
}

impl fmt::Debug for GateworkPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateworkPlanner").field("inner", &self.inner).finish()
    }
}

#[async_trait]
impl QueryPlanner for GateworkPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if copies_into_buckets(plan)? {
            return not_impl_err!(
                "COPY into buckets runs as stages only: use gatework::stages::execute or --nodes"
            );
        }
        self.refresh_file_list_cache(plan, session);
        let parallel;
        let session = if session.config().target_partitions() > 1 {
            session
        } else {
            parallel = ParallelPlanning::new(session);
            &parallel as &dyn Session
        };
        let with_subplans = plan_subplans(plan, session, self).await?;
        let plan = self.plan(with_subplans.as_ref().unwrap_or(plan), session).await?;
        self.report_unwrapped(&plan);
        Ok(exec::coalesce_partitions(plan))
    }
}

/// A session that plans for [`MIN_PARTITIONS`] and otherwise delegates to the wrapped one. A copy
/// of a session's state would copy all its functions, which takes as long as planning a small
/// query.
struct ParallelPlanning<'a> {
    session: &'a dyn Session,
    config: SessionConfig,
    /// The changed table options; `None` until they are changed.
    table_options: Option<TableOptions>,
}

/// Minimum number of partitions that plans are made for.
const MIN_PARTITIONS: usize = 2;

impl<'a> ParallelPlanning<'a> {
    fn new(session: &'a dyn Session) -> Self {
        let mut config = session.config().clone();
        config.options_mut().execution.target_partitions = MIN_PARTITIONS;
        Self { session, config, table_options: None }
    }
}

#[async_trait]
impl Session for ParallelPlanning<'_> {
    fn session_id(&self) -> &str {
        self.session.session_id()
    }

    fn config(&self) -> &SessionConfig {
        &self.config
    }

    fn catalog_list(&self) -> Arc<dyn CatalogProviderList> {
        self.session.catalog_list()
    }

    fn query_planner(&self) -> Arc<dyn QueryPlanner + Send + Sync> {
        self.session.query_planner()
    }

    fn optimize(&self, plan: &LogicalPlan) -> Result<LogicalPlan> {
        self.session.optimize(plan)
    }

    fn physical_optimizers(&self) -> &[Arc<dyn PhysicalOptimizerRule + Send + Sync>] {
        self.session.physical_optimizers()
    }

    fn statistics_registry(&self) -> Option<&StatisticsRegistry> {
        self.session.statistics_registry()
    }

    async fn create_physical_plan(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        self.session.create_physical_plan(plan).await
    }

    fn create_physical_expr(&self, expr: Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        self.session.create_physical_expr(expr, schema)
    }

    fn scalar_functions(&self) -> &HashMap<String, Arc<ScalarUDF>> {
        self.session.scalar_functions()
    }

    fn higher_order_functions(&self) -> &HashMap<String, Arc<HigherOrderUDF>> {
        self.session.higher_order_functions()
    }

    fn aggregate_functions(&self) -> &HashMap<String, Arc<AggregateUDF>> {
        self.session.aggregate_functions()
    }

    fn window_functions(&self) -> &HashMap<String, Arc<WindowUDF>> {
        self.session.window_functions()
    }

    fn extension_type_registry(&self) -> &ExtensionTypeRegistryRef {
        self.session.extension_type_registry()
    }

    fn runtime_env(&self) -> &Arc<RuntimeEnv> {
        self.session.runtime_env()
    }

    fn execution_props(&self) -> &ExecutionProps {
        self.session.execution_props()
    }

    /// Returns the wrapped session: callers may downcast to its type.
    fn as_any(&self) -> &dyn Any {
        self.session.as_any()
    }

    fn table_options(&self) -> &TableOptions {
        self.table_options.as_ref().unwrap_or_else(|| self.session.table_options())
    }

    fn default_table_options(&self) -> TableOptions {
        self.session.default_table_options()
    }

    fn table_options_mut(&mut self) -> &mut TableOptions {
        let session = self.session;
        self.table_options.get_or_insert_with(|| session.table_options().clone())
    }

    fn task_ctx(&self) -> Arc<TaskContext> {
        self.session.task_ctx()
    }
}

/// The last physical rule: wraps every supported node. It is a rule, not a step after planning, so
/// that EXPLAIN shows the wrappers.
#[derive(Debug)]
pub struct GateworkRule {
    engine: Engine,
}

impl GateworkRule {
    /// Name of the rule among those of a session.
    pub const NAME: &str = "gatework_exec";

    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl PhysicalOptimizerRule for GateworkRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        exec::wrap(show_definitions(plan)?, &self.engine)
    }

    fn name(&self) -> &str {
        Self::NAME
    }

    fn schema_check(&self) -> bool {
        true
    }
}
