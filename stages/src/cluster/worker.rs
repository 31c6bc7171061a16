//! A worker: takes parts of plans, runs them on an executor, gives their rows to whoever asks.

use std::{future::Future, sync::Arc, time::Duration};

use datafusion::{
    error::{DataFusionError, Result},
    execution::{runtime_env::RuntimeEnv, session_state::SessionState},
    physical_plan::{
        ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions, repartition::RepartitionExec,
    },
};
use datafusion_distributed::{
    BroadcastExec, DistributedExt, Worker, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse,
    WorkerQueryContext,
};
use gatework_runtime::Executor;
use gatework_sql::{Settings, cover_above};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// How often a silent peer is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A worker whose queries run on `executor`, with the memory, the disk and the object stores of `runtime`. It is a
/// service for a tonic server: `server.add_service(worker(…).into_worker_server())`.
pub fn worker(executor: &Executor, runtime: Arc<RuntimeEnv>, settings: Settings) -> Worker {
    let executor = executor.clone();
    let session = move |query: WorkerQueryContext| {
        let (executor, settings) = (executor.clone(), settings.clone());
        async move { Ok(state(query, executor, settings)) }
    };
    Worker::from_session_builder(session)
        .with_runtime_env(runtime)
        .with_version(env!("CARGO_PKG_VERSION"))
}

fn state(query: WorkerQueryContext, executor: Executor, settings: Settings) -> SessionState {
    let mut builder = query.builder;
    let config = builder.config().take().unwrap_or_default();
    builder
        .with_config(settings.into_config(config))
        .with_distributed_worker_plan_rewrite_handler(move |event: WorkerPlanRewriteEvent<'_>| {
            Ok(WorkerPlanRewriteEventResponse::new(hosted(event.plan, &executor)?))
        })
        .build()
}

/// A stage's plan on `executor`. Its head is taken off and put on again by the worker, and so stays what it is.
fn hosted(plan: Arc<dyn ExecutionPlan>, executor: &Executor) -> Result<Arc<dyn ExecutionPlan>> {
    let divides = plan.is::<RepartitionExec>() || plan.is::<BroadcastExec>();
    if !divides {
        return cover_above(plan, executor, &|_| false);
    }
    let children = plan.children().into_iter().cloned();
    let children = children.map(|child| cover_above(child, executor, &|_| false));
    let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    let children = children.collect::<Result<_>>()?;
    plan.replace_children(children, keep)
}

/// Serves `worker` at `listener` until `end` comes; then it takes no more queries, and those that it has get on.
///
/// # Errors
/// If the server fails.
pub async fn serve(
    worker: Worker,
    listener: TcpListener,
    end: impl Future<Output = ()>,
) -> Result<()> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(worker.into_worker_server())
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end)
        .await
        .map_err(|error| DataFusionError::External(Box::new(error)))
}
