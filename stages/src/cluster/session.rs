//! Sessions whose queries run on workers.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        config::OptimizerOptions,
        not_impl_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    execution::{
        context::QueryPlanner,
        session_state::{SessionState, SessionStateBuilder},
    },
    logical_expr::{Expr, LogicalPlan, WindowFunctionDefinition, expr::NullTreatment},
    physical_plan::ExecutionPlan,
    prelude::SessionConfig,
};
use datafusion_distributed::{
    DistributedConfig, DistributedExt, NetworkBoundaryExt, SessionStateBuilderExt, WorkerResolver,
};
use gatework_runtime::Executor;
use gatework_sql::{BuildSideSelection, add_planning_rules, wrap_until};
use parking_lot::RwLock;
use url::Url;

use super::{
    connections::Connections,
    execution::{ClusterExec, RetryPlan},
    limits::IsolateBuildLimits,
};
use crate::StageOptions;

/// How rows are compressed on their way between workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all. For networks of 10 Gbit/s and more, and for one machine.
    #[default]
    None,
    /// By LZ4: about half the bytes of numbers and short texts, for a tenth of the workers' time.
    Lz4,
    /// By Zstandard: for slow networks.
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How queries are divided among workers, and how these are reached.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// So many bytes of files are worth a partition of a task; by default 16 MiB.
    pub bytes_per_partition: Option<usize>,
    /// So many bytes of rows of one worker wait for whoever reads them, before the worker waits; by default 64 MiB. One
    /// batch may be above it.
    pub bytes_per_connection: Option<usize>,
    /// How rows are compressed on their way; by default not at all.
    pub compression: Compression,
    /// How often a query whose workers are lost runs again, on those that answer; by default it does not. Queries that
    /// write do not, nor those of whose result more than 16 MiB have gone out.
    pub retries: usize,
    /// How workers are reached.
    pub connections: Connections,
}

/// Workers by their addresses. All copies of a list are one: what one of them is set to, the next query of every
/// session that has one runs on.
///
/// ```
/// use datafusion_distributed::WorkerResolver;
/// use gatework_stages::cluster::WorkerList;
///
/// let workers = WorkerList::new(["http://10.0.0.1:8080"])?;
/// workers.set(["http://10.0.0.1:8080", "http://10.0.0.2:8080"])?;
/// assert_eq!(workers.get_urls()?.len(), 2);
/// assert!(WorkerList::new(["10.0.0.1"]).is_err());
/// # Ok::<_, datafusion::error::DataFusionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct WorkerList(Arc<RwLock<Vec<Url>>>);

impl WorkerList {
    /// Workers at these addresses, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// If one of them is no URL of HTTP, or is there twice, or there is none.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Ok(Self::from(parse(addresses)?))
    }

    /// Other workers, for queries that begin from now on.
    ///
    /// # Errors
    /// As [`Self::new`]; the list stays as it is.
    pub fn set<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) -> Result<()> {
        *self.0.write() = parse(addresses)?;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }
}

impl From<Vec<Url>> for WorkerList {
    fn from(urls: Vec<Url>) -> Self {
        Self(Arc::new(RwLock::new(urls)))
    }
}

fn parse<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Vec<Url>> {
    let mut urls = Vec::new();
    for address in addresses {
        let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let wrong = match url.filter(Url::has_host) {
            Some(url) if urls.contains(&url) => "is there twice",
            Some(url) => {
                urls.push(url);
                continue;
            }
            None => "is no worker's address: http://host:port, or https://host:port",
        };
        return Err(DataFusionError::Configuration(format!("'{address}' {wrong}")));
    }
    match urls.is_empty() {
        true => Err(DataFusionError::Configuration("a cluster without workers".into())),
        false => Ok(urls),
    }
}

impl WorkerResolver for WorkerList {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.read().clone())
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
        let mut config = self.config().take().unwrap_or_default();
        let mut own = DistributedConfig::from_session_config(&config).cloned().unwrap_or_default();
        if let Some(bytes) = options.bytes_per_partition {
            own.file_scan_config_bytes_per_partition = bytes;
        }
        if let Some(bytes) = options.bytes_per_connection {
            own.worker_connection_buffer_budget_bytes = bytes;
        }
        own.compression = options.compression.name().into();
        add_planning_rules(&mut self, BuildSideSelection::distributed());
        set_broadcast_limits(&mut config);
        let mut builder = self
            .with_config(config)
            .with_distributed_option_extension(own)
            .with_distributed_worker_resolver(resolver)
            .with_distributed_channel_resolver(options.connections.clone())
            .with_physical_optimizer_rule(Arc::new(IsolateBuildLimits))
            .with_distributed_planner();
        let inner = std::mem::take(builder.query_planner());
        let planner = HeadPlanner {
            inner,
            executor: executor.clone(),
            retries: options.retries,
            connections: options.connections.clone(),
        };
        builder.with_query_planner(Arc::new(planner))
    }
}

/// Sides of joins are sent to all workers up to the size at which stages of one process do it, unless the session has
/// limits of its own: it costs less than to send both sides somewhere, and lets the other side be filtered where it is
/// read.
fn set_broadcast_limits(config: &mut SessionConfig) {
    let (usual, stages) = (OptimizerOptions::default(), StageOptions::with_nodes(1));
    let own = &mut config.options_mut().optimizer;
    let bytes = &mut own.hash_join_single_partition_threshold;
    if *bytes == usual.hash_join_single_partition_threshold {
        *bytes = stages.max_broadcast_bytes;
    }
    let rows = &mut own.hash_join_single_partition_threshold_rows;
    if *rows == usual.hash_join_single_partition_threshold_rows {
        *rows = stages.max_broadcast_rows;
    }
}

/// Puts what a session runs itself on its executor.
#[derive(Clone)]
pub(super) struct HeadPlanner {
    /// datafusion-distributed's.
    inner: Option<Arc<dyn QueryPlanner + Send + Sync>>,
    executor: Executor,
    pub(super) retries: usize,
    pub(super) connections: Connections,
}

impl fmt::Debug for HeadPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadPlanner").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl HeadPlanner {
    /// How a query is run again, if it may be.
    fn retry_plan(&self, query: &LogicalPlan, session: &dyn Session) -> Result<Option<RetryPlan>> {
        let session = session.as_any().downcast_ref::<SessionState>();
        let Some(session) = session.filter(|_| self.retries > 0) else { return Ok(None) };
        let writes = query.exists(|node| {
            let writes =
                matches!(node, LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Ddl(_));
            Ok(writes)
        })?;
        Ok((!writes).then(|| RetryPlan {
            query: query.clone(),
            session: Arc::new(session.clone()),
            planner: self.clone(),
        }))
    }

    /// Plans a query for the workers that the session's configuration knows.
    pub(super) async fn plan(
        &self,
        query: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(inner) = &self.inner else {
            return Err(DataFusionError::Internal("a cluster's session without a planner".into()));
        };
        let plan = if gets_lost(query)? {
            let Some(state) = session.as_any().downcast_ref::<SessionState>() else {
                return not_impl_err!("{GETS_LOST}, and a session of an unknown kind");
            };
            let mut local = state.clone();
            local.set_distributed_worker_resolver(WorkerList(Arc::default()));
            inner.create_physical_plan(query, &local).await?
        } else {
            inner.create_physical_plan(query, session).await?
        };
        // The stages that workers run are left as they are.
        wrap_until(plan, &self.executor, &|node| node.is_network_boundary())
    }
}

/// Why a query with such a window stays in this process.
pub(super) const GETS_LOST: &str =
    "a window has a FILTER or IGNORE NULLS, which get lost in plans that are sent to workers";

/// Whether a plan of `query` would mean something else to a worker: DataFusion's serialised window expressions have no
/// filter, and those that are no aggregates do not say what is to become of NULLs.
fn gets_lost(query: &LogicalPlan) -> Result<bool> {
    let is_lost = |expression: &Expr| match expression {
        Expr::WindowFunction(window) => {
            let is_aggregate = matches!(window.fun, WindowFunctionDefinition::AggregateUDF(_));
            let ignores_nulls = window.params.null_treatment == Some(NullTreatment::IgnoreNulls);
            window.params.filter.is_some() || ignores_nulls && !is_aggregate
        }
        _ => false,
    };
    let mut found = false;
    query.apply_with_subqueries(|node| {
        if let LogicalPlan::Window(window) = node {
            for expression in &window.window_expr {
                found |= expression.exists(|part| Ok(is_lost(part)))?;
            }
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

#[async_trait]
impl QueryPlanner for HeadPlanner {
    async fn create_physical_plan(
        &self,
        query: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = self.plan(query, session).await?;
        ClusterExec::wrap(plan, || self.retry_plan(query, session))
    }
}
