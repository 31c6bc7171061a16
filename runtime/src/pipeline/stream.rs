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

/// What dropping the last stream of a set does.
///
/// Once the tasks behind the result have ended there is nothing to cancel: those of inner regions
/// that still live have lost their reader and are about to end early, which is no error.
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
/// It ends after the last row *and* after the tasks behind it have ended, so that whoever has seen
/// the end, or an error, finds no task, no reserved byte and no file of the query. Dropping the last stream of a
/// query cancels the query; dropping one of several ends only that partition. (Tasks of inner regions
/// may end a moment later: [`QueryContext::idle`] tells when.)
#[derive(Debug)]
pub struct RowStream {
    /// Shared by the partitions of the query's final result; `None` for an inner region's. Before
    /// `reader`, so that a query whose result is dropped is always cancelled, never just ended early.
    _cancel: Option<Arc<CancelOnDrop>>,
    reader: Option<ResultReader<BufferedBatch>>,
    buffer_reader: BufferReader,
    query: Arc<QueryContext>,
    graph_finished: Gate,
    /// The last thing to be said before the end: the error, once the tasks are gone.
    final_error: Option<Error>,
    /// The last word has been said.
    finished: bool,
}

impl RowStream {
    /// The partitions of the final result of `graph`'s query.
    pub fn of_query(graph: &GraphHandle, readers: Vec<ResultReader<BufferedBatch>>) -> Vec<Self> {
        let cancel =
            CancelOnDrop { query: graph.query().clone(), graph_finished: graph.finished().clone() };
        Self::of(graph, readers, Some(Arc::new(cancel)))
    }

    /// The partitions of an inner region, whose reader is part of the same query: dropping them ends
    /// the region's producers, not the query.
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
            // A partition ends when all sinks have finished, so the tasks that are left do not wait
            // for the readers of other partitions.
            graph_finished: graph.finished().clone(),
            _cancel: cancel.clone(),
            final_error: None,
            finished: false,
        };
        readers.into_iter().map(stream).collect()
    }

    /// The query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.query
    }

    /// The same rows as a blocking iterator. Not for async tasks: it blocks its thread. Nor for
    /// code that runs on a worker of the query's executor, such as a user's function: there, all it
    /// gives is an error.
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
            // The first error may have come after the echo that ended this reader.
            Some(error) => Some(Err(first_error.unwrap_or(error))),
            // A task that failed after the last row was in has failed all the same. A cancel that
            // came too late to keep a row back is none.
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

const WAITED_FOR_ITSELF: &str = "a query of this executor was waited for on one of its own \
     workers, which it may need: wait for it on another thread, or start it with another executor";

/// One partition of a query's result, as a blocking iterator. Dropping it is dropping the stream.
#[derive(Debug)]
pub struct RowIterator {
    stream: RowStream,
    /// It was asked on a worker, and has said so.
    error_reported: bool,
}

impl RowIterator {
    /// The query.
    pub fn query(&self) -> &Arc<QueryContext> {
        &self.stream.query
    }
}

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Iterator for RowIterator {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        // Whether or not it would have to wait now: it will, some day.
        if self.stream.query.is_worker_thread() {
            let first = !std::mem::replace(&mut self.error_reported, true);
            return first.then(|| Err(Error::InvalidConfiguration(WAITED_FOR_ITSELF.into())));
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match self.stream.poll_batch(&waker) {
                Poll::Ready(item) => return item,
                // An unpark that came before this leaves a token, so it is not lost.
                Poll::Pending => thread::park(),
            }
        }
    }
}
