//! Analytic (window), 1:1: the sink cuts its sorted input into whole window partitions, the source
//! of the same instance evaluates them one after the other.
//!
//! A bounded queue between the two lets partitions be evaluated while later ones still arrive. It is
//! a [`crate::union`] of one child, under the name the dump should show.

use crate::{
    Gate, Payload, PopResult, PushResult,
    union::{self, UnionConsumer, UnionProducer},
};

/// The right to hand over window partitions. Dropping it unfinished aborts the state.
#[derive(Debug)]
pub struct WindowProducer<T: Payload>(UnionProducer<T>);

/// The right to take window partitions. Dropping it closes the state.
#[derive(Debug)]
pub struct WindowConsumer<T: Payload>(UnionConsumer<T>);

/// A hand-over of window partitions that holds `limit_bytes`, plus the item that passes the limit.
pub fn new<T: Payload>(name: &str, limit_bytes: usize) -> (WindowProducer<T>, WindowConsumer<T>) {
    let (mut producers, consumer) = union::new(name, 1, limit_bytes);
    (WindowProducer(producers.remove(0)), WindowConsumer(consumer))
}

impl<T: Payload> WindowProducer<T> {
    /// Hands over one item: one or several whole window partitions.
    pub fn push(&mut self, partition: T) -> PushResult {
        self.0.push(partition)
    }

    /// Says that the input ended.
    pub fn finish(self) {
        self.0.finish();
    }

    /// Ready once the source has left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<T: Payload> WindowConsumer<T> {
    /// The next item.
    pub fn take(&mut self) -> PopResult<T> {
        self.0.take()
    }
}
