//! Result, N:N: the last sinks of a query hand rows to readers outside the executor, one reader a
//! partition.
//!
//! The protocol is that of a local exchange ([`crate::exchange`]); a reader awaits its gate from an
//! async task or a plain thread, since gates take standard wakers. Dropping one reader ends its
//! partition, dropping the last one closes the result, which ends the query's producers.

use crate::{
    BufferLimit, Gate, ManyToMany, Payload, PopResult, PushResult,
    exchange::{self, ExchangeConsumer, ExchangeProducer, ExchangeStats, LocalExchangeKind},
};

/// The right of one sink task to hand rows to the readers. Dropping it unfinished aborts the result.
#[derive(Debug)]
pub struct ResultProducer<T: Payload>(ExchangeProducer<T>);

/// The right to read one partition of the result. Dropping it gives the partition up.
#[derive(Debug)]
pub struct ResultReader<T: Payload>(ExchangeConsumer<T>);

/// A result of `partitions` partitions that `producers` tasks write.
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
    /// Hands `item` to the reader of `partition`.
    pub fn push(&mut self, partition: usize, item: T) -> PushResult {
        self.0.push(partition, item)
    }

    /// Hands `item` to the reader that has least to take.
    pub fn push_any(&mut self, item: T) -> PushResult {
        self.0.push_any(item)
    }

    /// Whether there is room, without pushing.
    pub fn poll_capacity(&mut self) -> PushResult {
        self.0.poll_capacity()
    }

    /// Says that this sink's input ended.
    pub fn finish(self) {
        self.0.finish();
    }

    /// Ready once no reader is left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }

    /// The number of partitions.
    pub fn partitions(&self) -> usize {
        self.0.channels()
    }
}

impl<T: Payload> ResultReader<T> {
    /// The next item of this partition.
    pub fn take(&mut self) -> PopResult<T> {
        self.0.take()
    }

    /// The gate to await when there is nothing to take.
    pub fn gate(&self) -> &Gate {
        self.0.gate()
    }

    /// Rows so far.
    pub fn stats(&self) -> ExchangeStats {
        self.0.stats()
    }
}
