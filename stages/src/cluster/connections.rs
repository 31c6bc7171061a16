//! Connections to workers, which say who failed.

use std::{collections::HashMap, fmt, io, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::record_batch::RecordBatch,
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, ExecuteTaskRequest, GetWorkerInfoRequest,
    GetWorkerInfoResponse, SetPlanRequest, TaskKey, WorkerChannel, WorkerToCoordinatorMsg,
    grpc::{BoxCloneSyncChannel, create_worker_client},
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{io::DuplexStream, sync::OnceCell, time::timeout};
use tonic::{
    Code, Status,
    codegen::http::HeaderMap,
    transport::{Channel, Endpoint},
};
use tower::{ServiceExt, service_fn};
use url::Url;

use super::access::{Access, CONNECTED_WITHIN, cause, external, version};
use super::execution::Watch;

/// Connections of this process to workers: one to each, made when it is needed, and made again when it was lost.
///
/// What goes wrong names the worker, the stage and the task. A worker that does not answer is lost after less than two
/// seconds, whatever it was asked. Workers of other versions are refused.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

struct Inner {
    access: Access,
    dial: Option<Box<Dial>>,
    channels: Mutex<HashMap<Url, Arc<OnceCell<BoxCloneSyncChannel>>>>,
}

type Dial = dyn Fn(&Url) -> io::Result<DuplexStream> + Send + Sync;

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("access", &self.inner.access).finish_non_exhaustive()
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Access::default())
    }
}

impl Connections {
    /// Connections over the network, by members that show this.
    pub fn new(access: Access) -> Self {
        Self::with_dial(access, None)
    }

    /// Connections to workers of this process: `dial` gives the caller's end of one to the worker at this address.
    pub(super) fn in_process(
        dial: impl Fn(&Url) -> io::Result<DuplexStream> + Send + Sync + 'static,
    ) -> Self {
        Self::with_dial(Access::default(), Some(Box::new(dial)))
    }

    fn with_dial(access: Access, dial: Option<Box<Dial>>) -> Self {
        Self { inner: Arc::new(Inner { access, dial, channels: Mutex::default() }) }
    }

    /// What members show each other.
    pub fn access(&self) -> &Access {
        &self.inner.access
    }

    /// Whether there is a worker of this version at this address, and it answers.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub async fn check(&self, worker: &Url) -> Result<()> {
        let checked = async { identify(self.channel(worker).await?).await };
        checked.await.map_err(|error| match status(&error) {
            Some(status) => {
                DataFusionError::Execution(format!("worker {worker}: {}", cause(status)))
            }
            None => error,
        })
    }

    async fn channel(&self, url: &Url) -> Result<BoxCloneSyncChannel> {
        let cell = self.inner.channels.lock().entry(url.clone()).or_default().clone();
        cell.get_or_try_init(|| self.connect(url)).await.cloned()
    }

    async fn connect(&self, url: &Url) -> Result<BoxCloneSyncChannel> {
        let endpoint = self.inner.access.endpoint(url)?;
        let channel = match timeout(CONNECTED_WITHIN, self.dialled(url, &endpoint)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(&cause(&error))),
            Err(_elapsed) => return Err(unreachable("it does not answer")),
        };
        let access = self.inner.access.clone();
        let channel = channel.map_request(move |mut request: tonic::codegen::http::Request<_>| {
            access.sign(request.headers_mut());
            request
        });
        let channel = BoxCloneSyncChannel::new(channel);
        identify(channel.clone()).await?;
        Ok(channel)
    }

    async fn dialled(
        &self,
        url: &Url,
        endpoint: &Endpoint,
    ) -> std::result::Result<Channel, tonic::transport::Error> {
        let Some(dial) = &self.inner.dial else { return endpoint.connect().await };
        let end = dial(url);
        let mut end = Some(end);
        let once = service_fn(move |_| {
            let end = end.take().unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()));
            async { end.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(once).await
    }
}

/// Asks a worker who it is.
async fn identify(channel: BoxCloneSyncChannel) -> Result<()> {
    let mut client = create_worker_client(channel);
    let asked = client.get_worker_info(GetWorkerInfoRequest {});
    let answer = match timeout(CONNECTED_WITHIN, asked).await {
        Ok(Ok(answer)) => answer.version,
        Ok(Err(error)) if refusal(&error).is_some() => return Err(error),
        Ok(Err(error)) => return Err(unreachable(&cause(&error))),
        Err(_elapsed) => return Err(unreachable("it does not answer")),
    };
    if answer == version() {
        return Ok(());
    }
    let other = if answer.is_empty() { "something else" } else { &answer };
    let what = format!("it is {other}, and this is {}", version());
    Err(external(Status::failed_precondition(what)))
}

#[async_trait]
impl ChannelResolver for Connections {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(NamedChannel { connections: self.clone(), url: url.clone() }))
    }
}

/// A connection whose errors name the worker and what it was asked for. It is made with the first request, whose
/// error it is if it cannot be.
struct NamedChannel {
    connections: Connections,
    url: Url,
}

impl NamedChannel {
    async fn client(&self) -> Result<Box<dyn WorkerChannel>> {
        Ok(create_worker_client(self.connections.channel(&self.url).await?))
    }
}

#[async_trait]
impl WorkerChannel for NamedChannel {
    /// Sends a part of a plan, and stays open as long as the query runs. If it breaks, the query learns it here, even if
    /// nobody waits for rows of this worker.
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let (url, key) = (self.url.clone(), request.task_key);
        let watch = Watch::of(context);
        watch.iter().for_each(|watch| watch.placed(key, &url));
        let named = move |error: DataFusionError| {
            let error = Arc::new(named(&url, key, error));
            watch.iter().for_each(|watch| watch.lost(error.clone()));
            DataFusionError::Shared(error)
        };
        let mut client = self.client().await.map_err(&named)?;
        let answers = client.coordinator_channel(headers, request, messages, metrics, context);
        Ok(answers.await.map_err(&named)?.map_err(named).boxed())
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (url, key) = (&self.url, request.task_key);
        let mut client = self.client().await.map_err(|error| named(url, key, error))?;
        let rows = client.execute_task(headers, request, metrics, context).await;
        let rows = rows.map_err(|error| named(url, key, error))?;
        let with_names = |rows: BoxStream<'static, Result<RecordBatch>>| {
            let url = url.clone();
            rows.map_err(move |error| named(&url, key, error)).boxed()
        };
        Ok(rows.into_iter().map(with_names).collect())
    }

    async fn get_worker_info(
        &mut self,
        request: GetWorkerInfoRequest,
    ) -> Result<GetWorkerInfoResponse> {
        self.client().await?.get_worker_info(request).await
    }
}

/// What errors of workers say that are lost or do not take a part, and no others: all that a wire which carries text
/// leaves of their type.
const LOST: &str = "is lost (stage ";
const REFUSES: &str = "refuses (stage ";

/// Whether a query failed because of a worker, not because of what it is: another may do better.
pub(super) fn is_loss(error: &DataFusionError) -> bool {
    let text = error.to_string();
    text.contains(LOST) || text.contains(REFUSES)
}

/// The same error, with who it is from, unless it says so already: what a worker read from another is the other's.
fn named(url: &Url, key: TaskKey, error: DataFusionError) -> DataFusionError {
    let TaskKey { stage_id, task_number, .. } = key;
    if let Some(status) = status(&error) {
        let what = if refusal(&error).is_some() { REFUSES } else { LOST };
        let reason = cause(status);
        let what = format!("{WORKER}{url} {what}{stage_id}, task {task_number}): {reason}");
        return DataFusionError::Execution(what);
    }
    match worker_of(&error) {
        Some(_) => error,
        None => error.context(format!("{WORKER}{url}, stage {stage_id}, task {task_number}")),
    }
}

const WORKER: &str = "worker ";

/// Which worker, stage and task an error is from, if it is from one, as text.
pub fn worker_of(error: &DataFusionError) -> Option<&str> {
    match error {
        DataFusionError::Context(context, _) if context.starts_with(WORKER) => Some(context),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            worker_of(inner)
        }
        DataFusionError::Shared(inner) => worker_of(inner),
        DataFusionError::Execution(message) if message.starts_with(WORKER) => Some(message),
        _ => None,
    }
}

/// The status that gRPC ended a call with, if it is no error of a query.
fn status(error: &DataFusionError) -> Option<&Status> {
    match error {
        DataFusionError::External(error) => error.downcast_ref(),
        DataFusionError::Context(_, inner) => status(inner),
        DataFusionError::Shared(inner) => status(inner),
        _ => None,
    }
}

/// A status by which a worker that lives refuses a request.
fn refusal(error: &DataFusionError) -> Option<&Status> {
    status(error).filter(|status| {
        matches!(
            status.code(),
            Code::Unauthenticated
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::OutOfRange
                | Code::ResourceExhausted
                | Code::Unimplemented
        )
    })
}

fn unreachable(reason: &str) -> DataFusionError {
    external(Status::unavailable(format!("it cannot be reached: {reason}")))
}
