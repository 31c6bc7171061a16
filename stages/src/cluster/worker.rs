//! A worker: receives tasks, runs them on an executor, and sends their rows to the readers.

use std::{convert::Infallible, future::Future, sync::Arc};

use datafusion::{
    error::Result,
    execution::{runtime_env::RuntimeEnv, session_state::SessionState},
    physical_plan::{
        ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions, repartition::RepartitionExec,
    },
};
use datafusion_distributed::{
    BroadcastExec, DistributedExt, Worker, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse,
    WorkerQueryContext,
};
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use futures::TryStreamExt;
use gatework_runtime::Executor;
use gatework_sql::{Settings, set_io_runtime, wrap_until};
use tokio::{net::TcpListener, runtime::Handle};
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::server::TcpIncoming,
};

use super::{
    active_tasks::{ActiveTasks, TaskTrackingService, current_task_queries},
    auth::{ClusterAuth, FAILURE_DETECTION, external, version},
    codec::with_codecs,
    connections::Connections,
    liveness::LivenessStream,
    locations::AllowedLocations,
};

/// Maximum size of a request: a task's plan with the rows of in-memory tables.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Options of a worker.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Memory, disk and object stores.
    pub runtime: Arc<RuntimeEnv>,
    /// Settings of the queries of its tasks.
    pub settings: Settings,
    /// Connections to other workers.
    pub connections: Connections,
    /// Locations that it may read.
    pub locations: AllowedLocations,
    /// Runtime for reading files and waking streams; pass the server's runtime to avoid handing
    /// rows between threads. It must outlive the executor's queries. By default the executor has
    /// two threads of its own for this.
    pub io: Option<Handle>,
    /// Codecs of an application: those of the [sessions](super::ClusterOptions::codecs), in the
    /// same order.
    pub codecs: Vec<Arc<dyn PhysicalExtensionCodec>>,
}

/// Creates a worker whose tasks run on `executor`.
///
/// Use [`service`] to add it to a tonic server, [`serve`] for a server of its own. A server that
/// adds `worker.into_worker_server()` accepts requests of any client and any version.
///
/// # Errors
/// If `runtime` cannot be rebuilt with guarded object stores.
pub fn worker(executor: &Executor, options: WorkerOptions) -> Result<Worker> {
    let WorkerOptions { runtime, settings, connections, locations, io, codecs } = options;
    if let Some(io) = io {
        set_io_runtime(executor, io);
    }
    let runtime = locations.wrap_runtime(&runtime)?;
    let builder =
        TaskSessionBuilder { executor: executor.clone(), settings, connections, locations, codecs };
    let session = move |query: WorkerQueryContext| {
        let builder = builder.clone();
        async move { Ok(builder.session(query)) }
    };
    let worker = Worker::from_session_builder(session);
    Ok(worker.with_runtime_env(runtime).with_version(version()))
}

/// Builds the session of a task.
#[derive(Clone)]
struct TaskSessionBuilder {
    executor: Executor,
    settings: Settings,
    connections: Connections,
    locations: AllowedLocations,
    codecs: Vec<Arc<dyn PhysicalExtensionCodec>>,
}

impl TaskSessionBuilder {
    fn session(self, query: WorkerQueryContext) -> SessionState {
        let mut builder = query.builder;
        let config = builder.config().take().unwrap_or_default();
        let Self { executor, settings, connections, locations, codecs } = self;
        let stage_executor = executor.clone();
        let rewrite = move |event: WorkerPlanRewriteEvent<'_>| {
            locations.check(&event.plan)?;
            Ok(WorkerPlanRewriteEventResponse::new(wrap_stage(event.plan, &stage_executor)?))
        };
        let mut config = Settings { bypass_admission: true, ..settings }.into_config(config);
        if let Some(queries) = current_task_queries() {
            config = queries.into_config(config);
        }
        let builder = builder
            .with_config(config)
            .with_distributed_channel_resolver(connections)
            .with_distributed_worker_plan_rewrite_handler(rewrite);
        with_codecs(builder, &executor, &codecs).build()
    }
}

/// Wraps a stage's plan for `executor`. The worker detaches the plan's head and attaches it again,
/// so the head stays DataFusion's.
fn wrap_stage(plan: Arc<dyn ExecutionPlan>, executor: &Executor) -> Result<Arc<dyn ExecutionPlan>> {
    let divides = plan.is::<RepartitionExec>() || plan.is::<BroadcastExec>();
    if !divides {
        return wrap_until(plan, executor, &|_| false);
    }
    let children = plan.children().into_iter().cloned();
    let children = children.map(|child| wrap_until(child, executor, &|_| false));
    let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    let children = children.collect::<Result<_>>()?;
    plan.replace_children(children, keep)
}

/// `worker` as a service of a tonic server. Refuses requests with wrong credentials, of another
/// version, or above 64 MiB.
pub fn service(
    worker: Worker,
    auth: &ClusterAuth,
) -> impl Service<
    http::Request<Body>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Send + 'static,
>
+ NamedService
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    tracked_service(worker, auth, ActiveTasks::new(|| {}))
}

fn tracked_service(
    worker: Worker,
    auth: &ClusterAuth,
    tasks: Arc<ActiveTasks>,
) -> TaskTrackingService<
    impl Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    >
    + NamedService
    + Clone
    + Send
    + Sync
    + 'static
    + use<>,
> {
    let service = worker.into_worker_server().max_decoding_message_size(MAX_REQUEST_BYTES);
    TaskTrackingService { service, tasks, auth: auth.clone() }
}

/// Serves `worker` at `listener` until `end` resolves. It then takes no new tasks, and returns when
/// the active ones have ended. `on_idle` is called whenever the last active task has ended; it must
/// be short. The memory of that task's queries is free by then, or soon after.
///
/// # Errors
/// If the server fails.
pub async fn serve(
    worker: Worker,
    auth: &ClusterAuth,
    listener: TcpListener,
    end: impl Future<Output = ()>,
    on_idle: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    let tasks = ActiveTasks::new(on_idle);
    let calls = TcpIncoming::from(listener).with_nodelay(Some(true));
    let calls = calls.map_ok(|call| LivenessStream::new(call, FAILURE_DETECTION));
    let end = async {
        end.await;
        tasks.drain().await;
    };
    auth.server()?
        .add_service(tracked_service(worker, auth, tasks.clone()))
        .serve_with_incoming_shutdown(calls, end)
        .await
        .map_err(external)
}
