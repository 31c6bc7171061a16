//! Connections to workers, which say who failed.

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

/// Connections of this process to workers: one to each, made when it is needed, and made again when it was lost.
///
/// What goes wrong names the worker, the stage and the task. A worker that does not answer is lost after less than two
/// seconds, whatever it was asked. Workers of other versions are refused.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

struct Inner {
    auth: ClusterAuth,
    dial: Option<Box<Dial>>,
    /// Who comes while one is being made waits for that one.
    attempts: Mutex<Attempts>,
}

#[derive(Default)]
struct Attempts {
    /// Those that were made, or are being made, each with its number.
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
    /// Connections over the network, by members that show this.
    pub fn new(auth: ClusterAuth) -> Self {
        Self::with_dial(auth, None)
    }

    /// Connections to workers of this process: `dial` gives the caller's end of one to the worker at this address.
    pub(super) fn in_process(
        dial: impl Fn(&Url) -> io::Result<DuplexStream> + Send + Sync + 'static,
    ) -> Self {
        Self::with_dial(ClusterAuth::in_process(), Some(Box::new(dial)))
    }

    fn with_dial(auth: ClusterAuth, dial: Option<Box<Dial>>) -> Self {
        Self { inner: Arc::new(Inner { auth, dial, attempts: Mutex::default() }) }
    }

    /// What members show each other.
    pub fn auth(&self) -> &ClusterAuth {
        &self.inner.auth
    }

    /// Whether there is a worker of this version at this address, and it answers.
    ///
    /// # Errors
    /// With what is wrong with it.
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

    /// A connection, and the number of the attempt that made it.
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
            // One that was made on a runtime of tokio that has ended is of no use any more.
            if last || channel.ready().await.is_ok() {
                return Ok((channel, number));
            }
            self.drop_connection(url, number);
        }
        Err(unreachable("it was closed"))
    }

    /// The attempt that was made, or is being made, or a new one. It does not depend on who waits for it.
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

    /// The error of a request on the connection of this number, with who it is from. A worker that is lost is connected
    /// to anew.
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

    /// The next request connects anew, unless one has already.
    fn drop_connection(&self, url: &Url, number: u64) {
        let mut attempts = self.inner.attempts.lock();
        let old = match attempts.made.get(url) {
            Some((known, _)) if *known == number => attempts.made.remove(url),
            _ => None,
        };
        drop(attempts);
        drop(old);
    }

    /// Ends all connections that nobody uses at the moment.
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

    /// Each time it is asked it dials anew.
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

/// Asks a worker who it is.
async fn identify(channel: BoxCloneSyncChannel) -> Result<()> {
    let mut client = create_worker_client(channel);
    let answer = client.get_worker_info(GetWorkerInfoRequest {}).await?.version;
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
    async fn client(&self) -> Result<(Box<dyn WorkerChannel>, u64)> {
        let (channel, number) = self.connections.channel(&self.url).await?;
        Ok((create_worker_client(channel), number))
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

/// What errors of workers say that are lost or do not take a part: all that a wire which carries text leaves of their
/// type.
const WORKER: &str = "worker ";
const LOST: &str = " is lost (stage ";
const REFUSES: &str = " refuses (stage ";
/// What is said when no worker would take a part.
const CANNOT: &str = " cannot take its part (stage ";

/// Whether a query failed because of a worker, here or further down, not because of what it is: another may do better.
/// Of an error of a query that only quotes such words this is not so.
pub(super) fn is_worker_failure(error: &DataFusionError) -> bool {
    failed_worker_url(error).is_some()
}

/// The address of the worker because of which a query failed.
pub(super) fn failed_worker_url(error: &DataFusionError) -> Option<String> {
    let message = error.find_root().message().into_owned();
    let mut text = message.as_str();
    // What a worker passes on has become text, with the names of types before it.
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

/// The same error, with who it is from, unless it says so already: what a worker read from another is the other's.
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

/// Which worker, stage and task an error is from, if it is from one, as text.
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

/// The status that gRPC ended a call with, if it is no error of a query.
fn status(error: &DataFusionError) -> Option<&Status> {
    match error {
        DataFusionError::External(error) => error.downcast_ref(),
        DataFusionError::Context(_, inner) => status(inner),
        DataFusionError::Shared(inner) => status(inner),
        _ => None,
    }
}

/// What a status says of a worker.
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
