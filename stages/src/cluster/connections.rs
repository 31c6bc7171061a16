//! Connections to workers, with errors that name the failed worker.

use std::{collections::HashMap, fmt, io, sync::Arc, time::Duration};

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
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared},
    stream::BoxStream,
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use parking_lot::Mutex;
use tokio::{io::DuplexStream, net::TcpStream, time::timeout};
use tonic::{
    Code, Status,
    codegen::{
        Service,
        http::{self, HeaderMap},
    },
};
use tower::{ServiceExt, service_fn};
use url::Url;

use super::auth::{CONNECT_TIMEOUT, ClusterAuth, FAILURE_DETECTION, cause, external, version};
use super::execution::FailureListener;
use super::liveness::LivenessStream;

/// Connections of this process to workers: one per worker, opened on demand and reopened after a
/// loss.
///
/// Errors name the worker, the stage and the task. A worker that does not answer is lost after less
/// than two seconds, whatever the request. Workers of other versions are refused.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

struct Inner {
    auth: ClusterAuth,
    dial: Option<Box<Dial>>,
    /// Requests that arrive during an attempt wait for its result.
    attempts: Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    /// Attempts that are finished or in progress, each with its number.
    made: HashMap<Url, (u64, Attempt)>,
    count: u64,
}

type Attempt = Shared<BoxFuture<'static, std::result::Result<BoxCloneSyncChannel, Status>>>;

type Dial = dyn Fn(&Url) -> io::Result<DuplexStream> + Send + Sync;

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("auth", &self.inner.auth).finish_non_exhaustive()
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(ClusterAuth::default())
    }
}

impl Connections {
    /// Connections over the network with these credentials.
    pub fn new(auth: ClusterAuth) -> Self {
        Self::with_dial(auth, None)
    }

    /// Connections to workers of this process. `dial` returns the client end of a pipe to the
    /// worker with this address.
    pub(super) fn in_process(
        dial: impl Fn(&Url) -> io::Result<DuplexStream> + Send + Sync + 'static,
    ) -> Self {
        Self::with_dial(ClusterAuth::in_process(), Some(Box::new(dial)))
    }

    fn with_dial(auth: ClusterAuth, dial: Option<Box<Dial>>) -> Self {
        Self { inner: Arc::new(Inner { auth, dial, attempts: Mutex::default() }) }
    }

    /// The credentials of these connections.
    pub fn auth(&self) -> &ClusterAuth {
        &self.inner.auth
    }

    /// Checks that a worker of this version answers at this address.
    ///
    /// # Errors
    /// If it does not: with the reason.
    pub async fn check(&self, worker: &Url) -> Result<()> {
        let checked = async { identify(self.channel(worker).await?.0).await };
        let checked = timeout(CONNECT_TIMEOUT, checked).await;
        checked.unwrap_or_else(|_elapsed| Err(unreachable("connect timeout"))).map_err(|error| {
            match status(&error) {
                Some(status) => {
                    DataFusionError::Execution(format!("worker {worker}: {}", cause(status)))
                }
                None => error,
            }
        })
    }

    /// A connection, and the number of the attempt that opened it.
    async fn channel(&self, url: &Url) -> Result<(BoxCloneSyncChannel, u64)> {
        for last in [false, true] {
            let (number, attempt) = self.attempt(url);
            let mut channel = match attempt.await {
                Ok(channel) => channel,
                Err(status) => {
                    self.drop_connection(url, number);
                    return Err(external(status));
                }
            };
            // A connection that was opened on a tokio runtime that has ended is unusable.
            if last || channel.ready().await.is_ok() {
                return Ok((channel, number));
            }
            self.drop_connection(url, number);
        }
        Err(unreachable("the connection was closed"))
    }

    /// The attempt that is known for `url`, or a new one. It runs in a task of its own, so that it
    /// does not depend on the future that waits for it.
    fn attempt(&self, url: &Url) -> (u64, Attempt) {
        let mut attempts = self.inner.attempts.lock();
        if let Some((number, attempt)) = attempts.made.get(url) {
            return (*number, attempt.clone());
        }
        let (this, to) = (self.clone(), url.clone());
        let made = tokio::spawn(async move {
            let connect_timeout =
                if this.inner.dial.is_some() { Duration::MAX } else { CONNECT_TIMEOUT };
            let connected = timeout(connect_timeout, this.connect(&to)).await;
            connected.unwrap_or_else(|_elapsed| {
                Err(Status::unavailable("it cannot be reached: connect timeout"))
            })
        });
        let made = made.map(|made| {
            made.unwrap_or_else(|error| {
                Err(Status::unavailable(format!("it cannot be reached: {error}")))
            })
        });
        attempts.count += 1;
        let made = (attempts.count, made.boxed().shared());
        attempts.made.insert(url.clone(), made.clone());
        made
    }

    /// Adds the task's name to an error of a request on the connection of this number. Drops the
    /// connection if the worker is lost.
    fn with_task_name(
        &self,
        (url, number): (&Url, u64),
        key: TaskKey,
        error: DataFusionError,
    ) -> DataFusionError {
        if status(&error).is_some_and(|status| failure_phrase(status) == LOST) {
            self.drop_connection(url, number);
        }
        with_task_name(url, key, error)
    }

    /// Drops the connection of this number, so that the next request reconnects; does nothing if a
    /// newer one exists.
    fn drop_connection(&self, url: &Url, number: u64) {
        let mut attempts = self.inner.attempts.lock();
        let old = match attempts.made.get(url) {
            Some((known, _)) if *known == number => attempts.made.remove(url),
            _ => None,
        };
        drop(attempts);
        drop(old);
    }

    /// Drops all idle connections.
    pub(super) fn clear(&self) {
        let made = std::mem::take(&mut self.inner.attempts.lock().made);
        drop(made);
    }

    async fn connect(self, url: &Url) -> std::result::Result<BoxCloneSyncChannel, Status> {
        let unreachable = |error: &(dyn std::error::Error + 'static)| {
            Status::unavailable(format!("it cannot be reached: {}", cause(error)))
        };
        let endpoint = self.inner.auth.endpoint(url);
        let endpoint = endpoint.map_err(|error| Status::failed_precondition(error.message()))?;
        let channel = match self.inner.dial {
            None => endpoint.connect_with_connector(connector()).await,
            Some(_) => endpoint.connect_with_connector(self.in_process_connector(url)).await,
        };
        let channel = channel.map_err(|error| unreachable(&error))?;
        let auth = self.inner.auth.clone();
        let channel = channel.map_request(move |mut request: http::Request<_>| {
            auth.add_credentials(request.headers_mut());
            request
        });
        let channel = BoxCloneSyncChannel::new(channel);
        match identify(channel.clone()).await {
            Ok(()) => Ok(channel),
            Err(error) => Err(match status(&error) {
                Some(refusal) if failure_phrase(refusal) != LOST => refusal.clone(),
                _ => unreachable(&error),
            }),
        }
    }

    /// Connects to workers of this process; dials anew for each connection.
    fn in_process_connector(
        &self,
        url: &Url,
    ) -> impl Service<http::Uri, Response = TokioIo<DuplexStream>, Error = io::Error, Future: Send>
    + Send
    + 'static {
        let (inner, url) = (Arc::downgrade(&self.inner), url.clone());
        service_fn(move |_| {
            let inner = inner.upgrade();
            let end = match inner.as_ref().and_then(|inner| inner.dial.as_ref()) {
                Some(dial) => dial(&url),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            async { end.map(TokioIo::new) }
        })
    }
}

/// Connects to workers on the network.
fn connector() -> impl Service<
    http::Uri,
    Response = TokioIo<LivenessStream<TcpStream>>,
    Error = impl std::error::Error + Send + Sync + 'static,
    Future: Send,
> + Send
+ 'static {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.map_response(|stream| {
        TokioIo::new(LivenessStream::new(stream.into_inner(), FAILURE_DETECTION))
    })
}

/// Checks a worker's version.
async fn identify(channel: BoxCloneSyncChannel) -> Result<()> {
    let mut client = create_worker_client(channel);
    let answer = client.get_worker_info(GetWorkerInfoRequest {}).await?.version;
    if answer == version() {
        return Ok(());
    }
    let other = if answer.is_empty() { "an unknown version" } else { &answer };
    let what = format!("its version is {other}, and this process is {}", version());
    Err(external(Status::failed_precondition(what)))
}

#[async_trait]
impl ChannelResolver for Connections {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(NamedChannel { connections: self.clone(), url: url.clone() }))
    }
}

/// A connection whose errors name the worker and the task. It is opened with the first request,
/// which returns the error if that fails.
struct NamedChannel {
    connections: Connections,
    url: Url,
}

impl NamedChannel {
    async fn client(&self) -> Result<(Box<dyn WorkerChannel>, u64)> {
        let (channel, number) = self.connections.channel(&self.url).await?;
        Ok((create_worker_client(channel), number))
    }
}

#[async_trait]
impl WorkerChannel for NamedChannel {
    /// Sends a task, and stays open while the query runs. A break of this stream reports the loss
    /// of a worker even if no reader waits for its rows.
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let (url, key) = (self.url.clone(), request.task_key);
        let (listener, connections) = (FailureListener::of(context), self.connections.clone());
        listener.iter().for_each(|listener| listener.task_assigned(key, &url));
        let lost = move |error: DataFusionError| {
            let error = Arc::new(error);
            listener.iter().for_each(|listener| listener.worker_lost(error.clone()));
            DataFusionError::Shared(error)
        };
        let client = self.client().await.map_err(|error| with_task_name(&url, key, error));
        let (mut client, number) = client.map_err(&lost)?;
        let with_name = move |error| lost(connections.with_task_name((&url, number), key, error));
        let answers = client.coordinator_channel(headers, request, messages, metrics, context);
        Ok(answers.await.map_err(&with_name)?.map_err(with_name).boxed())
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (connections, url, key) = (&self.connections, &self.url, request.task_key);
        let client = self.client().await.map_err(|error| with_task_name(url, key, error));
        let (mut client, number) = client?;
        let rows = client.execute_task(headers, request, metrics, context).await;
        let rows = rows.map_err(|error| connections.with_task_name((url, number), key, error))?;
        let with_names = |rows: BoxStream<'static, Result<RecordBatch>>| {
            let (connections, url) = (connections.clone(), url.clone());
            rows.map_err(move |error| connections.with_task_name((&url, number), key, error))
                .boxed()
        };
        Ok(rows.into_iter().map(with_names).collect())
    }

    async fn get_worker_info(
        &mut self,
        request: GetWorkerInfoRequest,
    ) -> Result<GetWorkerInfoResponse> {
        self.client().await?.0.get_worker_info(request).await
    }
}

/// Texts of errors of workers that are lost or refuse a task. On a connection that carries text,
/// they are all that is left of an error's type.
const WORKER: &str = "worker ";
const LOST: &str = " is lost (stage ";
const REFUSES: &str = " refuses (stage ";
/// Text of an error that every worker would return for this task.
const CANNOT: &str = " cannot run its task (stage ";

/// Whether a query failed because of a worker, directly or further down, so that another worker may
/// succeed. An error of a query that only quotes these texts does not count.
pub(super) fn is_worker_failure(error: &DataFusionError) -> bool {
    failed_worker_url(error).is_some()
}

/// The address of the worker that made a query fail.
pub(super) fn failed_worker_url(error: &DataFusionError) -> Option<String> {
    let message = error.find_root().message().into_owned();
    let mut text = message.as_str();
    // An error that a worker passes on is text, with the names of error types before it.
    while let Some(rest) = ["External error: ", "Execution error: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
    {
        text = rest;
    }
    let text = text.strip_prefix(WORKER)?;
    let end = [LOST, REFUSES].iter().filter_map(|what| text.find(what)).min()?;
    let url = &text[..end];
    (!url.contains(char::is_whitespace)).then(|| url.to_owned())
}

/// Adds the worker and the task to an error that names none. An error that a worker read from
/// another worker already names the latter.
fn with_task_name(url: &Url, key: TaskKey, error: DataFusionError) -> DataFusionError {
    let TaskKey { stage_id, task_number, .. } = key;
    if let Some(status) = status(&error) {
        let (what, reason) = (failure_phrase(status), cause(status));
        let what = format!("{WORKER}{url}{what}{stage_id}, task {task_number}): {reason}");
        return DataFusionError::Execution(what);
    }
    match failed_worker(&error) {
        Some(_) => error,
        None => error.context(format!("{WORKER}{url}, stage {stage_id}, task {task_number}")),
    }
}

/// The worker, stage and task that an error comes from, as text; none for other errors.
pub fn failed_worker(error: &DataFusionError) -> Option<&str> {
    match error {
        DataFusionError::Context(context, _) if context.starts_with(WORKER) => Some(context),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            failed_worker(inner)
        }
        DataFusionError::Shared(inner) => failed_worker(inner),
        DataFusionError::Execution(message) if message.starts_with(WORKER) => Some(message),
        _ => None,
    }
}

/// The gRPC status that ended a call; none for an error of the query.
fn status(error: &DataFusionError) -> Option<&Status> {
    match error {
        DataFusionError::External(error) => error.downcast_ref(),
        DataFusionError::Context(_, inner) => status(inner),
        DataFusionError::Shared(inner) => status(inner),
        _ => None,
    }
}

/// The phrase about a worker for a status.
fn failure_phrase(status: &Status) -> &'static str {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => REFUSES,
        Code::OutOfRange | Code::InvalidArgument | Code::Unimplemented => CANNOT,
        _ => LOST,
    }
}

fn unreachable(reason: &str) -> DataFusionError {
    external(Status::unavailable(format!("it cannot be reached: {reason}")))
}
