//! Window, 1:1: the producer cuts its sorted input into whole window partitions, and the consumer
//! of the same task index evaluates them one after the other. (Doris: "analytic".)
//!
//! A bounded queue between the two lets partitions be evaluated while later ones are produced. It
//! is a [local exchange](crate::exchange) of one channel, under the name that a dump shows.

use crate::{
    BufferLimit, Gate, Payload, PopResult, PushResult,
    exchange::{self, ExchangeConsumer, ExchangeProducer, LocalExchangeKind},
};

/// The right to hand over window partitions. Dropping it unfinished aborts the state.
#[derive(Debug)]
pub struct WindowProducer<T: Payload>(ExchangeProducer<T>);

/// The right to take window partitions. Dropping it closes the state.
#[derive(Debug)]
pub struct WindowConsumer<T: Payload>(ExchangeConsumer<T>);

/// Creates a queue of window partitions with a limit of `limit_bytes`, plus the item that exceeds
/// it.
pub fn new<T: Payload>(name: &str, limit_bytes: usize) -> (WindowProducer<T>, WindowConsumer<T>) {
    let limit = BufferLimit::new(limit_bytes);
    let (mut producers, mut consumers) =
        exchange::new(name, LocalExchangeKind::PassToOne, 1, 1, limit);
    (WindowProducer(producers.remove(0)), WindowConsumer(consumers.remove(0)))
}

impl<T: Payload> WindowProducer<T> {
    /// Pushes one item: one or several whole window partitions.
    pub fn push(&mut self, partition: T) -> PushResult {
        self.0.push(0, partition)
    }

    /// Ends the input.
    pub fn finish(self) {
        self.0.finish();
    }

    /// Returns the gate that is ready once the consumer was dropped.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<T: Payload> WindowConsumer<T> {
    /// Takes the next item.
    pub fn take(&mut self) -> PopResult<T> {
        self.0.take()
    }
}
