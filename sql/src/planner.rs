//! The query planner and the physical rule that put shells over DataFusion's plans.

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

use crate::{buckets::copies_into_buckets, engine::Engine, exec};

/// Plans as DataFusion's users do, for the session's number of partitions, and for two where that is one.
///
/// Planning for one partition is a path of DataFusion's that its users do not walk. Constants that
/// hold within each partition only are taken there for constants of the whole, so sorts and limits
/// vanish. With two or more, every place where partitions meet is a node of the plan, which lowering
/// folds; and table providers and nodes that DataFusion executes have the parallelism that they have
/// without gatework. How many tasks a pipeline has is decided when it is lowered.
pub struct GateworkPlanner {
    inner: Option<Arc<dyn QueryPlanner + Send + Sync>>,
    /// Lost nodes were reported.
    reported: AtomicBool,
    /// There was a statement that writes.
    writes: AtomicBool,
}

impl GateworkPlanner {
    /// A planner around `inner`, or around DataFusion's own.
    pub fn new(inner: Option<Arc<dyn QueryPlanner + Send + Sync>>) -> Self {
        Self { inner, reported: AtomicBool::new(false), writes: AtomicBool::new(false) }
    }
}

impl GateworkPlanner {
    /// Reports once that nodes are DataFusion's although they could run here.
    fn report_unwrapped(&self, plan: &Arc<dyn ExecutionPlan>) {
        let lost = exec::count_unwrapped(plan.as_ref());
        if lost > 0 && !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{lost} nodes of a plan are not gatework's: a physical optimizer rule behind its own \
                 has replaced them; call with_gatework last"
            );
        }
    }
}

impl GateworkPlanner {
    /// Drops the lists of files that the session keeps if its statements write: whenever such a
    /// statement has ended, there may be other files.
    fn refresh_file_list_cache(&self, plan: &LogicalPlan, session: &dyn Session) {
        let statement = match plan {
            LogicalPlan::Analyze(analyze) => &analyze.input,
            plan => plan,
        };
        if matches!(statement, LogicalPlan::Copy(_) | LogicalPlan::Dml(_)) {
            // Relaxed: a hint to later statements, which come after this one by other means.
            self.writes.store(true, Ordering::Relaxed);
        }
        if self.writes.load(Ordering::Relaxed) {
            clear_file_list_cache(session.runtime_env());
        }
    }
}

/// Drops the lists of files that sessions with `runtime` keep, so that the next query finds which
/// files there are.
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
                "COPY into buckets is run as stages: by gatework::stages::execute, or with --nodes"
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
        let plan = match &self.inner {
            Some(inner) => inner.create_physical_plan(plan, session).await,
            None => DefaultPhysicalPlanner::default().create_physical_plan(plan, session).await,
        };
        let plan = plan?;
        self.report_unwrapped(&plan);
        Ok(exec::coalesce_partitions(plan))
    }
}

/// A session that plans for [`MIN_PARTITIONS`], and is the wrapped one in all else. (A copy of a session's
/// state copies all its functions, which takes as long as planning a small query.)
struct ParallelPlanning<'a> {
    session: &'a dyn Session,
    config: SessionConfig,
    /// If they were changed.
    table_options: Option<TableOptions>,
}

/// The least number of partitions that plans are made for.
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

    /// The wrapped session, whose type callers may look for.
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

/// The last physical rule: wraps every node that we cover in a shell. Being a rule, and not a step
/// after planning, it is seen by EXPLAIN as well.
#[derive(Debug)]
pub struct GateworkRule {
    engine: Engine,
}

impl GateworkRule {
    /// Its name among the rules of a session.
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
        exec::wrap(plan, &self.engine)
    }

    fn name(&self) -> &str {
        Self::NAME
    }

    fn schema_check(&self) -> bool {
        true
    }
}
