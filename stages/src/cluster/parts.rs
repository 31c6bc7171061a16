//! The parts of queries that a worker has: how each ends with the request that sent it, and how the worker ends, which takes
//! no new ones then, while those that it has get on with all that they ask for.

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
use gatework_sql::QueryScope;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    metadata::MetadataMap,
    server::NamedService,
};

use super::access::Access;

/// What sends a part of a query to a worker, and stays open as long as that is needed.
const NEW_PART: &str = "/CoordinatorChannel";

/// Why a part is cancelled. Another worker that reads its rows may be told so before anybody notices what has happened.
pub(super) const UNWANTED: &str = "what it is a part of has ended";

/// The parts that a worker has.
pub(super) struct Parts {
    draining: AtomicBool,
    count: AtomicUsize,
    fewer: Notify,
    /// Called when there are none any more.
    idle: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Parts {
    pub(super) fn new(idle: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            draining: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            fewer: Notify::new(),
            idle: Box::new(idle),
        })
    }

    /// Refuses new parts, and waits until those that are there are done.
    pub(super) async fn drain(&self) {
        // SeqCst here and below: either a part is counted before we look, or it sees that it comes too late.
        self.draining.store(true, Ordering::SeqCst);
        loop {
            let fewer = self.fewer.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            fewer.await;
        }
    }
}

/// A part that is there, as long as its request or its answer is.
#[derive(Debug)]
struct Part {
    parts: Arc<Parts>,
    queries: Arc<QueryScope>,
}

tokio::task_local! {
    /// The queries of the part that the request brings.
    static QUERIES: Arc<QueryScope>;
}

/// The queries of the part whose request is being served, if it came through [`PartsService`].
pub(super) fn queries_of_part() -> Option<Arc<QueryScope>> {
    QUERIES.try_with(Clone::clone).ok()
}

impl Part {
    fn begin(parts: &Arc<Parts>) -> Option<Self> {
        parts.count.fetch_add(1, Ordering::SeqCst);
        let part = Self { parts: parts.clone(), queries: Arc::default() };
        (!parts.draining.load(Ordering::SeqCst)).then_some(part)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let last = self.parts.count.fetch_sub(1, Ordering::SeqCst) == 1;
        self.parts.fewer.notify_waiters();
        if last {
            (self.parts.idle)();
        }
    }
}

/// A worker's service that refuses requests without the right credentials, counts the parts of the others,
/// and cancels what they run when the coordinator wants no more of it.
#[derive(Debug, Clone)]
pub(super) struct PartsService<S> {
    pub(super) service: S,
    pub(super) parts: Arc<Parts>,
    pub(super) access: Access,
}

impl<S: NamedService> NamedService for PartsService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<Body>> for PartsService<S>
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
        // Before anything is counted: a stranger must not keep a worker from its end.
        let shown = MetadataMap::from_headers(request.headers().clone());
        if let Err(refusal) = self.access.admit(&shown) {
            return Box::pin(async move { Ok(refusal.into_http()) });
        }
        if !request.uri().path().ends_with(NEW_PART) {
            let answer = self.service.call(request);
            return Box::pin(async { Ok(answer.await?.map(Body::new)) });
        }
        let Some(part) = Part::begin(&self.parts).map(Arc::new) else {
            let refusal = Status::unavailable("it is about to end").into_http();
            return Box::pin(async { Ok(refusal) });
        };
        let sent = Sent(part.clone());
        let request = request.map(|body| Body::new(Held { body: Box::pin(body), _by: sent }));
        let answer = QUERIES.scope(part.queries.clone(), self.service.call(request));
        Box::pin(async move {
            let held = |body: B| Body::new(Held { body: Box::pin(body), _by: part });
            Ok(answer.await?.map(held))
        })
    }
}

/// What the coordinator sends of a part. It ends when all rows have come that it wants; or it breaks off. Whatever the part
/// runs then is for nobody, whoever may still hold streams of it: some of a plan's streams are there for readers that are
/// gone.
#[derive(Debug)]
struct Sent(Arc<Part>);

impl Drop for Sent {
    fn drop(&mut self) {
        self.0.queries.cancel(UNWANTED);
    }
}

/// A request or an answer, by which a part is held as long as it lasts.
struct Held<B, P> {
    body: Pin<Box<B>>,
    _by: P,
}

impl<B: HttpBody<Data = bytes::Bytes, Error = Status>, P: Unpin> HttpBody for Held<B, P> {
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
