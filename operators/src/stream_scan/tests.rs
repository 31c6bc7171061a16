//! Streams that are pending, that fail, and that wake their task from another thread.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use arrow::array::RecordBatch;
use datafusion_common::{DataFusionError, exec_datafusion_err};
use futures_core::Stream;

use super::{BatchStream, StreamScan};
use crate::test_support::{ints, result_of, run, sorted_rows, table};

type Item = Result<RecordBatch, DataFusionError>;

/// Stream that is pending once before each item; another thread wakes it.
struct Slow(VecDeque<Item>, bool);

impl Stream for Slow {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        self.1 = !self.1;
        if self.1 {
            let waker = context.waker().clone();
            thread::spawn(move || waker.wake());
            return Poll::Pending;
        }
        Poll::Ready(self.0.pop_front())
    }
}

fn batch(row: i32) -> RecordBatch {
    table([("row", ints([Some(row)]))])
}

fn stream(items: impl IntoIterator<Item = Item>) -> BatchStream {
    Box::pin(Slow(items.into_iter().collect(), false))
}

#[test]
fn all_streams_are_read_whole_by_any_number_of_tasks() {
    for (tasks, max_open) in (1..4).flat_map(|tasks| [1, 2, 5, 9].map(|max_open| (tasks, max_open)))
    {
        let streams = (0..5).map(|n| stream((10 * n..10 * n + n).map(|row| Ok(batch(row)))));
        let source = StreamScan::new("test", streams.collect(), max_open);
        let batches = run(|graph| result_of(graph, tasks, 1, Arc::new(source), vec![])).unwrap();
        let rows = ["10", "20", "21", "30", "31", "32", "40", "41", "42", "43"];
        assert_eq!(sorted_rows(&batches), rows);
    }
}

#[test]
fn a_failed_stream_fails_the_query() {
    let streams = vec![stream([Ok(batch(1)), Err(exec_datafusion_err!("broken pipe"))])];
    let source = StreamScan::new("test", streams, 1);
    let error = run(|graph| result_of(graph, 2, 1, Arc::new(source), vec![])).unwrap_err();
    assert!(error.to_string().contains("broken pipe"), "{error}");
}
