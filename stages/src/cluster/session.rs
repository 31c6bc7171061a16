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
    datasource::{DefaultTableSource, file_format::json::JsonFormat, listing::ListingTable},
    error::{DataFusionError, Result},
    execution::{
        context::QueryPlanner,
        session_state::{SessionState, SessionStateBuilder},
    },
    logical_expr::{Expr, LogicalPlan, TableSource, WindowFunctionDefinition, expr::NullTreatment},
    physical_plan::ExecutionPlan,
    prelude::SessionConfig,
};
use datafusion_distributed::{
    DistributedConfig, DistributedExt, NetworkBoundaryExt, SessionStateBuilderExt, WorkerResolver,
};
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use gatework_runtime::Executor;
use gatework_sql::{BuildSideSelection, Settings, add_planning_rules, wrap_until};
use parking_lot::RwLock;
use url::Url;

use super::{
    codec::with_codecs,
    connections::Connections,
    execution::{ClusterExec, RetryPlan},
    limits::IsolateBuildLimits,
};
use crate::StageOptions;

/// Compression of rows between workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// No compression: for networks of at least 10 Gbit/s, and for one machine.
    #[default]
    None,
    /// LZ4: about half the bytes of numbers and short texts, for a tenth of the workers' time.
    Lz4,
    /// Zstandard: for slow networks.
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

/// How queries are distributed to workers, and how the workers are reached.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Minimum bytes of files per partition of a task. Default: 16 MiB.
    pub bytes_per_partition: Option<usize>,
    /// Maximum bytes of rows from one worker that wait for their readers; the worker blocks at the
    /// limit. One batch may exceed it. Default: 64 MiB.
    pub bytes_per_connection: Option<usize>,
    /// Compression of rows between workers. Default: none.
    pub compression: Compression,
    /// Maximum number of retries of a query whose worker is lost, each on the reachable workers.
    /// Queries that write are not retried, nor those that have emitted more than 16 MiB. Default:
    /// 0.
    pub retries: usize,
    /// Connections to the workers.
    pub connections: Connections,
    /// Codecs of an application for what DataFusion cannot serialize, such as functions. Sessions
    /// and workers need the same ones, in the same order: a plan names a codec by its position. (So
    /// they must not be set on the session otherwise.) Nodes need none: see
    /// [`PortableNode`](gatework_sql::nodes::PortableNode).
    pub codecs: Vec<Arc<dyn PhysicalExtensionCodec>>,
}

/// Workers by their addresses. Copies of a list share it: `set` on one copy applies to the next
/// query of every session that has one.
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
    /// A list of workers at these addresses, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// If an address is no HTTP URL or is listed twice, or if there is none.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Ok(Self::from(parse(addresses)?))
    }

    /// Replaces the workers, for queries that start afterwards.
    ///
    /// # Errors
    /// As [`Self::new`]; the list is then unchanged.
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
            Some(url) if urls.contains(&url) => "is listed twice",
            Some(url) => {
                urls.push(url);
                continue;
            }
            None => "is not a worker's address: use http://host:port or https://host:port",
        };
        return Err(DataFusionError::Configuration(format!("'{address}' {wrong}")));
    }
    match urls.is_empty() {
        true => Err(DataFusionError::Configuration("a cluster needs at least one worker".into())),
        false => Ok(urls),
    }
}

impl WorkerResolver for WorkerList {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.read().clone())
    }
}

/// Extension for an application that builds its own session state.
pub trait ClusterSession: Sized {
    /// Runs this session's queries on the workers that `resolver` knows, and what is above them on
    /// `executor`. Queries that cannot be distributed, or are too small, run on `executor` alone.
    ///
    /// Called last, in place of `with_gatework`: it wraps the query planner that is set.
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
        Settings::add_defaults(&mut config);
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
        builder = with_codecs(builder, executor, &options.codecs);
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

/// Broadcasts build sides up to the size of `StageOptions`, unless the session has limits of its
/// own. A broadcast costs less than a repartition of both sides, and lets runtime filters reach the
/// probe side's scan.
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

/// Plans on workers, and wraps the session's own part of a plan for its executor.
#[derive(Clone)]
pub(super) struct HeadPlanner {
    /// The planner of datafusion-distributed.
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
    /// What a retry of `query` needs; none if it must not be retried.
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

    /// Plans a query for the workers in the session's configuration.
    pub(super) async fn plan(
        &self,
        query: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = match what_gets_lost(query)? {
            Some(lost) => IN_PLAN.scope((), self.plan_here(query, session, lost)).await?,
            None => IN_PLAN.scope((), self.inner()?.create_physical_plan(query, session)).await?,
        };
        // The workers' stages stay as they are.
        wrap_until(plan, &self.executor, &|node| node.is_network_boundary())
    }

    /// Plans a query for no workers, because of `reason`.
    async fn plan_here(
        &self,
        query: &LogicalPlan,
        session: &dyn Session,
        reason: &str,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(state) = session.as_any().downcast_ref::<SessionState>() else {
            return not_impl_err!("{reason}, and the session is no SessionState");
        };
        let mut here = state.clone();
        here.set_distributed_worker_resolver(WorkerList(Arc::default()));
        self.inner()?.create_physical_plan(query, &here).await
    }

    fn inner(&self) -> Result<&Arc<dyn QueryPlanner + Send + Sync>> {
        let missing = || DataFusionError::Internal("the cluster session has no planner".into());
        self.inner.as_ref().ok_or_else(missing)
    }
}

tokio::task_local! {
    /// Set while a query is planned. A table provider may then plan a query of its own, such as
    /// that of a view: a part of the plan, which is divided into stages only with the whole.
    static IN_PLAN: ();
}

/// Why the query of a table provider is planned without workers.
const PART_OF_A_PLAN: &str = "a table plans a query of its own";

/// Why a query with such a window stays in this process.
pub(super) const WINDOW_GETS_LOST: &str =
    "a window has a FILTER or IGNORE NULLS, which plans for workers cannot carry";

/// Why a query of such a table stays in this process.
pub(super) const FORMAT_GETS_LOST: &str =
    "a table is compressed text or JSON arrays, which plans for workers cannot carry";

/// Why a plan of `query` would mean something else on a worker: in DataFusion's serialized plans,
/// window expressions have no filter, and no NULL treatment unless they are aggregates; scans of
/// text have no compression, and take JSON to be one object per line.
fn what_gets_lost(query: &LogicalPlan) -> Result<Option<&'static str>> {
    let is_lost = |expression: &Expr| match expression {
        Expr::WindowFunction(window) => {
            let is_aggregate = matches!(window.fun, WindowFunctionDefinition::AggregateUDF(_));
            let ignores_nulls = window.params.null_treatment == Some(NullTreatment::IgnoreNulls);
            window.params.filter.is_some() || ignores_nulls && !is_aggregate
        }
        _ => false,
    };
    let mut found = None;
    query.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Window(window) => {
                for expression in &window.window_expr {
                    if expression.exists(|part| Ok(is_lost(part)))? {
                        found = Some(WINDOW_GETS_LOST);
                    }
                }
            }
            LogicalPlan::TableScan(scan) if format_gets_lost(scan.source.as_ref()) => {
                found = Some(FORMAT_GETS_LOST);
            }
            _ => {}
        }
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether a scan of this table would be another one on a worker.
fn format_gets_lost(table: &dyn TableSource) -> bool {
    let table = table.downcast_ref::<DefaultTableSource>();
    let listing = table.and_then(|table| table.table_provider.downcast_ref::<ListingTable>());
    let Some(format) = listing.map(|listing| &listing.options().format) else { return false };
    let compression = format.compression_type();
    let json = format.downcast_ref::<JsonFormat>();
    compression.is_some_and(|compression| compression.is_compressed())
        || json.is_some_and(|json| !json.is_newline_delimited())
}

#[async_trait]
impl QueryPlanner for HeadPlanner {
    async fn create_physical_plan(
        &self,
        query: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if IN_PLAN.try_with(|()| ()).is_ok() {
            return self.plan_here(query, session, PART_OF_A_PLAN).await;
        }
        let plan = self.plan(query, session).await?;
        ClusterExec::wrap(plan, &self.executor, || self.retry_plan(query, session))
    }
}
