//! What a shared state answers to those who give, take and claim.

use crate::Gate;

/// The answer to a producer that offered an item.
#[derive(Debug, Clone)]
pub enum PushResult {
    /// The item is in and there is room for more.
    Accepted,
    /// The item is in, and the budget is used up: wait for the gate before the next one.
    Backpressure(Gate),
    /// Nobody will read any more; the item was dropped and the producer may end early.
    Closed,
}

/// The answer to a consumer that asked for an item.
#[derive(Debug)]
pub enum PopResult<T> {
    /// An item.
    Item(T),
    /// Nothing yet: wait for the gate.
    Blocked(Gate),
    /// Every producer finished and everything was read.
    Finished,
    /// A producer left without finishing: what was read so far is not the whole.
    Aborted,
}

/// The answer to a consumer that asked for a unit of work.
#[derive(Debug)]
pub enum ClaimResult<T> {
    /// A unit that nobody else will get.
    Work(T),
    /// No unit yet: wait for the gate.
    Blocked(Gate),
    /// All units are taken.
    Finished,
    /// A producer left without publishing.
    Aborted,
}
