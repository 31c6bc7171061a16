//! Result, N:N: the last sinks of a query push rows to readers outside the executor, one reader per
//! partition.
//!
//! The protocol is that of a local exchange ([`crate::exchange`]). A reader awaits its gate from an
//! async task or a plain thread, since gates take standard wakers. Dropping a reader ends its
//! partition. Dropping the last one closes the result, which ends the query's producers.

use crate::{
    BufferLimit, Gate, ManyToMany, Payload, PopResult, PushResult,
    exchange::{self, ExchangeConsumer, ExchangeProducer, ExchangeStats, LocalExchangeKind},
};

/// The right of one sink task to push rows to the readers. Dropping it unfinished aborts the
/// result.
#[derive(Debug)]
pub struct ResultProducer<T: Payload>(ExchangeProducer<T>);

/// The right to read one partition of the result. Dropping it ends the partition.
#[derive(Debug)]
pub struct ResultReader<T: Payload>(ExchangeConsumer<T>);

/// Creates a result of `partitions` partitions that `producers` tasks write.
///
/// # Panics
/// If either is 0.
pub fn new<T: Payload>(
    name: &str,
    producers: usize,
    partitions: usize,
    limit: BufferLimit,
) -> (Vec<ResultProducer<T>>, Vec<ResultReader<T>>) {
    let gates = ManyToMany::with_external_readers(name, producers, partitions);
    let (producers, consumers) = exchange::with_gates(name, LocalExchangeKind::Hash, gates, limit);
    (
        producers.into_iter().map(ResultProducer).collect(),
        consumers.into_iter().map(ResultReader).collect(),
    )
}

impl<T: Payload> ResultProducer<T> {
    /// Pushes `item` to the reader of `partition`.
    pub fn push(&mut self, partition: usize, item: T) -> PushResult {
        self.0.push(partition, item)
    }

    /// Pushes `item` to the reader with the fewest buffered bytes.
    pub fn push_any(&mut self, item: T) -> PushResult {
        self.0.push_any(item)
    }

    /// Returns whether there is capacity, without pushing.
    pub fn poll_capacity(&mut self) -> PushResult {
        self.0.poll_capacity()
    }

    /// Ends this producer's input.
    pub fn finish(self) {
        self.0.finish();
    }

    /// Returns the gate that is ready once no reader is left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }

    /// Returns the number of partitions.
    pub fn partitions(&self) -> usize {
        self.0.channels()
    }
}

impl<T: Payload> ResultReader<T> {
    /// Takes the next item of this partition.
    pub fn take(&mut self) -> PopResult<T> {
        self.0.take()
    }

    /// Returns the gate to await when there is no item to take.
    pub fn gate(&self) -> &Gate {
        self.0.gate()
    }

    /// Returns the statistics so far.
    pub fn stats(&self) -> ExchangeStats {
        self.0.stats()
    }
}
