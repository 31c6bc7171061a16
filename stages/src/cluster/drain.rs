//! How a worker ends: it takes no new parts of queries, and those that it has get on, with all that they ask for.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

/// What sends a part of a query to a worker, and stays open as long as that is needed.
const NEW_PART: &str = "/CoordinatorChannel";

/// The parts that a worker has.
#[derive(Debug, Default)]
pub(super) struct Parts {
    draining: AtomicBool,
    count: AtomicUsize,
    fewer: Notify,
}

impl Parts {
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

/// A part that is there.
#[derive(Debug)]
struct Part(Arc<Parts>);

impl Part {
    fn begin(parts: &Arc<Parts>) -> Option<Self> {
        parts.count.fetch_add(1, Ordering::SeqCst);
        let part = Self(parts.clone());
        (!parts.draining.load(Ordering::SeqCst)).then_some(part)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.fewer.notify_waiters();
    }
}

/// A worker's service that counts its parts.
#[derive(Debug, Clone)]
pub(super) struct Drained<S> {
    pub(super) service: S,
    pub(super) parts: Arc<Parts>,
}

impl<S: NamedService> NamedService for Drained<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<Body>> for Drained<S>
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
        let mut part = None;
        if request.uri().path().ends_with(NEW_PART) {
            part = Part::begin(&self.parts);
            if part.is_none() {
                let refusal = Status::unavailable("it is about to end").into_http();
                return Box::pin(async { Ok(refusal) });
            }
        }
        let answer = self.service.call(request);
        Box::pin(async move {
            let held = |body: B| Body::new(Held { body: Box::pin(body), part });
            Ok(answer.await?.map(held))
        })
    }
}

/// An answer, which holds its part as long as it lasts.
struct Held<B> {
    body: Pin<Box<B>>,
    part: Option<Part>,
}

impl<B: HttpBody<Data = bytes::Bytes, Error = Status>> HttpBody for Held<B> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(self.body.as_mut().poll_frame(context));
        if frame.is_none() {
            self.part = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
