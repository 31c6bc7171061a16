//! Results of push, pop and claim on a shared state.

use crate::Gate;

/// The result of a push by a producer.
#[derive(Debug, Clone)]
pub enum PushResult {
    /// The item was added and there is capacity for more.
    Accepted,
    /// The item was added and the limit is reached: wait for the gate before the next push.
    Backpressure(Gate),
    /// No consumer is left; the item was dropped and the producer may end early.
    Closed,
}

/// The result of a pop by a consumer.
#[derive(Debug)]
pub enum PopResult<T> {
    /// An item.
    Item(T),
    /// No item yet: wait for the gate.
    Blocked(Gate),
    /// Every producer finished and all items were read.
    Finished,
    /// A producer was dropped unfinished: the items read so far are incomplete.
    Aborted,
}

/// The result of a claim by a consumer.
#[derive(Debug)]
pub enum ClaimResult<T> {
    /// Work that no other consumer gets.
    Work(T),
    /// No work yet: wait for the gate.
    Blocked(Gate),
    /// All work was claimed.
    Finished,
    /// A producer was dropped without publishing.
    Aborted,
}
