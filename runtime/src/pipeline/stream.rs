//! The result of a query for its reader: an async stream or a blocking iterator.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use futures_core::Stream;
use gatework_shared_state::{Gate, result::ResultReader};

use super::{Batch, BufferRead, BufferReader, BufferedBatch, GraphHandle, QueryContext};
use crate::{Error, Result};

/// Cancels the query when the last stream of its result is dropped.
///
/// Once the tasks that produce the result have ended, nothing is left to cancel. Tasks of inner
/// regions that are still alive have lost their reader and finish early, which is no error.
#[derive(Debug)]
struct CancelOnDrop {
    query: Arc<QueryContext>,
    graph_finished: Gate,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.graph_finished.is_ready() {
            self.query.cancel_with_reason("its result was dropped");
        }
    }
}

/// One partition of a query's result, as an async stream of batches.
///
/// The stream ends after the last row *and* after the tasks that produce it have ended. So after
/// the end, or after an error, the query has no task, reservation or file. Dropping the last stream
/// of a query cancels the query; dropping one of several ends only that partition. (Tasks of inner
/// regions may end a moment later; [`QueryContext::idle`] tells when.)
#[derive(Debug)]
pub struct RowStream {
    /// Shared by the partitions of the query's final result; `None` in an inner region. Declared
    /// before `reader`, so that dropping the result cancels the query before it can finish early.
    _cancel: Option<Arc<CancelOnDrop>>,
    reader: Option<ResultReader<BufferedBatch>>,
    buffer_reader: BufferReader,
    query: Arc<QueryContext>,
    graph_finished: Gate,
    /// The error to yield before the end, once the tasks have ended.
    final_error: Option<Error>,
    /// Whether the final error, or the absence of one, has been reported.
    finished: bool,
}

impl RowStream {
    /// Creates the streams of the final result of `graph`'s query.
    pub fn of_query(graph: &GraphHandle, readers: Vec<ResultReader<BufferedBatch>>) -> Vec<Self> {
        let cancel =
            CancelOnDrop { query: graph.query().clone(), graph_finished: graph.finished().clone() };
        Self::of(graph, readers, Some(Arc::new(cancel)))
    }

    /// Creates the streams of an inner region, read by the same query. Dropping them ends the
    /// region's producers, not the query.
    pub fn of_region(graph: &GraphHandle, readers: Vec<ResultReader<BufferedBatch>>) -> Vec<Self> {
        Self::of(graph, readers, None)
    }

    fn of(
        graph: &GraphHandle,
        readers: Vec<ResultReader<BufferedBatch>>,
        cancel: Option<Arc<CancelOnDrop>>,
    ) -> Vec<Self> {
        let stream = |reader| Self {
            reader: Some(reader),
            buffer_reader: BufferReader::external(graph.query()),
            query: graph.query().clone(),
            // A partition ends when all sinks have finished, so no remaining task waits for the
            // readers of other partitions.
            graph_finished: graph.finished().clone(),
            _cancel: cancel.clone(),
            final_error: None,
            finished: false,
        };
        readers.into_iter().map(stream).collect()
    }

    /// Returns the query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// Converts the stream into a blocking iterator over the same rows. It must not be used in
    /// async tasks: it blocks its thread. On a worker of the query's executor, such as in a
    /// user-defined function, it yields an error only.
    pub fn into_blocking_iter(self) -> RowIterator {
        RowIterator { stream: self, error_reported: false }
    }

    fn poll_batch(&mut self, waker: &Waker) -> Poll<Option<Result<Batch>>> {
        while let Some(reader) = &mut self.reader {
            match self.buffer_reader.next(|| reader.take()) {
                Ok(BufferRead::Batch(batch)) => return Poll::Ready(Some(Ok(batch))),
                Ok(BufferRead::Blocked(gate)) => {
                    if !gate.poll_ready(waker) {
                        return Poll::Pending;
                    }
                }
                Ok(BufferRead::Finished) => self.reader = None,
                Ok(BufferRead::Aborted) => {
                    self.final_error = Some(self.query.error().unwrap_or(Error::ProducerAborted));
                    self.reader = None;
                }
                Err(error) => {
                    self.query.fail(error.clone());
                    self.final_error = Some(error);
                    self.reader = None;
                }
            }
        }
        if !self.graph_finished.poll_ready(waker) {
            return Poll::Pending;
        }
        if std::mem::replace(&mut self.finished, true) {
            return Poll::Ready(None);
        }
        let first_error = self.query.error();
        Poll::Ready(match self.final_error.take() {
            // The first error may have arrived after the secondary error that ended this reader.
            Some(error) => Some(Err(first_error.unwrap_or(error))),
            // A task that failed after the last row still fails the query. A cancel after the last
            // row has lost no row and is no error.
            None => first_error.filter(|error| !error.is_secondary()).map(Err),
        })
    }
}

impl Stream for RowStream {
    type Item = Result<Batch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_batch(cx.waker())
    }
}

pub(super) const WAITED_FOR_ITSELF: &str = "a query was awaited on one of its own workers, which \
     can deadlock: wait for it on another thread, or run it on another executor";

/// One partition of a query's result, as a blocking iterator. Dropping it drops the stream.
#[derive(Debug)]
pub struct RowIterator {
    stream: RowStream,
    /// Whether the iterator has yielded its error for use on a worker.
    error_reported: bool,
}

impl RowIterator {
    /// Returns the query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.stream.query
    }
}

/// Unparks the waiting thread.
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Iterator for RowIterator {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        // Checked on every call, even if this one would not block: a later call will.
        if self.stream.query.is_worker_thread() {
            let first = !std::mem::replace(&mut self.error_reported, true);
            return first.then(|| Err(Error::InvalidConfiguration(WAITED_FOR_ITSELF.into())));
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match self.stream.poll_batch(&waker) {
                Poll::Ready(item) => return item,
                // An unpark before this call leaves a token, so no wake-up is lost.
                Poll::Pending => thread::park(),
            }
        }
    }
}
