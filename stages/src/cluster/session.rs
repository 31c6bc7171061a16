//! Sessions whose queries run on workers.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    error::{DataFusionError, Result},
    execution::{context::QueryPlanner, session_state::SessionStateBuilder},
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, repartition::RepartitionExec},
};
use datafusion_distributed::{
    BroadcastExec, DistributedConfig, DistributedExec, DistributedExt, DistributedLeafExec,
    NetworkBoundaryExt, SessionStateBuilderExt, WorkerResolver, display_plan_ascii,
};
use gatework_runtime::Executor;
use gatework_sql::{cover_above, is_covered};
use url::Url;

/// How queries are divided among workers.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// So many bytes of files are worth a partition of a task; otherwise, as datafusion-distributed has it.
    pub bytes_per_partition: Option<usize>,
}

/// Workers that do not change.
#[derive(Debug, Clone)]
pub struct FixedWorkers(Vec<Url>);

impl FixedWorkers {
    /// Workers at these addresses, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// If one of them is no URL of HTTP, or there is none.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let parse = |address: &str| {
            let url = Url::parse(address).ok().filter(|url| url.scheme() == "http");
            url.filter(Url::has_host).ok_or_else(|| {
                let what = format!("'{address}' is no worker's address: http://host:port");
                DataFusionError::Configuration(what)
            })
        };
        let urls = addresses.into_iter().map(parse).collect::<Result<Vec<_>>>()?;
        match urls.is_empty() {
            true => Err(DataFusionError::Configuration("a cluster without workers".into())),
            false => Ok(Self(urls)),
        }
    }
}

impl WorkerResolver for FixedWorkers {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.clone())
    }
}

/// One line for an application that builds its own session state.
pub trait ClusterSession: Sized {
    /// Lets this session's queries run on the workers that `resolver` knows, and what is above them on `executor`.
    /// What is not worth it, or cannot be divided, runs on `executor` alone.
    ///
    /// To be called last, in place of `with_gatework`: it wraps the query planner that is set.
    #[must_use]
    fn with_gatework_workers(
        self,
        executor: &Executor,
        resolver: impl WorkerResolver + 'static,
        options: &ClusterOptions,
    ) -> Self;
}

impl ClusterSession for SessionStateBuilder {
    fn with_gatework_workers(
        mut self,
        executor: &Executor,
        resolver: impl WorkerResolver + 'static,
        options: &ClusterOptions,
    ) -> Self {
        if let Some(bytes) = options.bytes_per_partition {
            let config = self.config().take().unwrap_or_default();
            let mut own = DistributedConfig::default();
            own.file_scan_config_bytes_per_partition = bytes;
            self = self.with_config(config).with_distributed_option_extension(own);
        }
        let mut builder =
            self.with_distributed_worker_resolver(resolver).with_distributed_planner();
        let inner = std::mem::take(builder.query_planner());
        let planner = HeadPlanner { inner, executor: executor.clone() };
        builder.with_query_planner(Arc::new(planner))
    }
}

/// Puts what a session runs itself on its executor.
struct HeadPlanner {
    /// datafusion-distributed's.
    inner: Option<Arc<dyn QueryPlanner + Send + Sync>>,
    executor: Executor,
}

impl fmt::Debug for HeadPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadPlanner").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl QueryPlanner for HeadPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(inner) = &self.inner else {
            return Err(DataFusionError::Internal("a cluster's session without a planner".into()));
        };
        let plan = inner.create_physical_plan(plan, session).await?;
        // The stages that workers run are left as they are.
        cover_above(plan, &self.executor, &|node| node.is_network_boundary())
    }
}

/// Whether parts of `plan` run on workers.
pub fn is_distributed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<DistributedExec>() || plan.children().into_iter().any(is_distributed)
}

/// The stages of a plan, those of workers and the one above them, as text.
pub fn plan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    display_plan_ascii(plan.as_ref(), false)
}

/// Names of the nodes that run as DataFusion's own, in this process or on workers, but for those between stages: what
/// divides a stage's rows among its readers, and what reads them.
pub fn fallbacks(plan: &Arc<dyn ExecutionPlan>) -> Vec<String> {
    let mut names = Vec::new();
    collect_fallbacks(plan, false, &mut names);
    names
}

fn collect_fallbacks(plan: &Arc<dyn ExecutionPlan>, is_head: bool, names: &mut Vec<String>) {
    let between = plan.is_network_boundary();
    let divides = plan.is::<BroadcastExec>() || is_head && plan.is::<RepartitionExec>();
    match plan.downcast_ref::<DistributedLeafExec>() {
        Some(leaf) => {
            leaf.variants().iter().take(1).for_each(|one| collect_fallbacks(one, false, names));
        }
        None if between || divides || plan.is::<DistributedExec>() || is_covered(plan.as_ref()) => {
        }
        None => names.push(plan.name().to_owned()),
    }
    for child in plan.children() {
        collect_fallbacks(child, between, names);
    }
}
