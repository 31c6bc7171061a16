//! The tasks of a worker. A task ends with the request that sent it. A draining worker takes no new
//! tasks; its active tasks continue and may send all their requests.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use gatework_sql::CancellationScope;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    metadata::MetadataMap,
    server::NamedService,
};

use super::auth::ClusterAuth;

/// Path of the request that sends a task to a worker. The request stays open until the task is no
/// longer needed.
const NEW_TASK_PATH: &str = "/CoordinatorChannel";

/// Cause of a cancelled task. A worker that reads the task's rows may receive this error before the
/// loss itself is detected.
pub(super) const CANCELLED_BY_COORDINATOR: &str = "cancelled by the coordinator";

/// The active tasks of a worker.
pub(super) struct ActiveTasks {
    draining: AtomicBool,
    count: AtomicUsize,
    task_ended: Notify,
    /// Called when the last task has ended.
    on_idle: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ActiveTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveTasks").field("count", &self.count).finish_non_exhaustive()
    }
}

impl ActiveTasks {
    pub(super) fn new(on_idle: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            draining: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            task_ended: Notify::new(),
            on_idle: Box::new(on_idle),
        })
    }

    /// Refuses new tasks, and waits until the active ones have ended.
    pub(super) async fn drain(&self) {
        // SeqCst, also in `try_start` and `drop`: either `drain` sees the task's count, or the
        // task sees `draining`.
        self.draining.store(true, Ordering::SeqCst);
        loop {
            let task_ended = self.task_ended.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            task_ended.await;
        }
    }
}

/// An active task, kept active by its request and by its response.
#[derive(Debug)]
struct ActiveTask {
    tasks: Arc<ActiveTasks>,
    queries: Arc<CancellationScope>,
}

tokio::task_local! {
    /// The queries of the task that the request brings.
    static QUERIES: Arc<CancellationScope>;
}

/// The queries of the task whose request is being served, if it came through
/// [`TaskTrackingService`].
pub(super) fn current_task_queries() -> Option<Arc<CancellationScope>> {
    QUERIES.try_with(Clone::clone).ok()
}

impl ActiveTask {
    fn try_start(tasks: &Arc<ActiveTasks>) -> Option<Self> {
        tasks.count.fetch_add(1, Ordering::SeqCst);
        let task = Self { tasks: tasks.clone(), queries: Arc::default() };
        (!tasks.draining.load(Ordering::SeqCst)).then_some(task)
    }
}

impl Drop for ActiveTask {
    fn drop(&mut self) {
        let last = self.tasks.count.fetch_sub(1, Ordering::SeqCst) == 1;
        self.tasks.task_ended.notify_waiters();
        if last {
            (self.tasks.on_idle)();
        }
    }
}

/// A worker's service. It refuses requests without valid credentials, counts the tasks of all
/// others, and cancels a task's queries when its request ends.
#[derive(Debug, Clone)]
pub(super) struct TaskTrackingService<S> {
    pub(super) service: S,
    pub(super) tasks: Arc<ActiveTasks>,
    pub(super) auth: ClusterAuth,
}

impl<S: NamedService> NamedService for TaskTrackingService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<Body>> for TaskTrackingService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Future: Send + 'static>,
    B: HttpBody<Data = bytes::Bytes, Error = Status> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Authentication comes before counting: an unauthenticated request must not delay a
        // worker's shutdown.
        let metadata = MetadataMap::from_headers(request.headers().clone());
        if let Err(refusal) = self.auth.authenticate(&metadata) {
            return Box::pin(async move { Ok(refusal.into_http()) });
        }
        if !request.uri().path().ends_with(NEW_TASK_PATH) {
            let answer = self.service.call(request);
            return Box::pin(async { Ok(answer.await?.map(Body::new)) });
        }
        let Some(task) = ActiveTask::try_start(&self.tasks).map(Arc::new) else {
            let refusal =
                Status::unavailable("the worker is draining and takes no new tasks").into_http();
            return Box::pin(async { Ok(refusal) });
        };
        let guard = RequestGuard(task.clone());
        let request =
            request.map(|body| Body::new(BodyWithGuard { body: Box::pin(body), _guard: guard }));
        let answer = QUERIES.scope(task.queries.clone(), self.service.call(request));
        Box::pin(async move {
            let with_guard =
                |body: B| Body::new(BodyWithGuard { body: Box::pin(body), _guard: task });
            Ok(answer.await?.map(with_guard))
        })
    }
}

/// The coordinator's request for a task. It ends when the coordinator has all rows it wants, or
/// when it breaks off. The task's queries are then cancelled, even if streams of them are still
/// open: some streams of a plan belong to readers that no longer exist.
#[derive(Debug)]
struct RequestGuard(Arc<ActiveTask>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.queries.cancel(CANCELLED_BY_COORDINATOR);
    }
}

/// A request or response body that keeps a task active while it lasts.
struct BodyWithGuard<B, P> {
    body: Pin<Box<B>>,
    _guard: P,
}

impl<B: HttpBody<Data = bytes::Bytes, Error = Status>, P: Unpin> HttpBody for BodyWithGuard<B, P> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.body.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
