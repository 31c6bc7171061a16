//! Gates and shared states, through which tasks of different pipelines exchange data.
//!
//! A pipeline breaker is the sink of one pipeline and the source of another. Between them lies a
//! *shared state* (Doris): data, a protocol, and the [`Dependency`] gates on which tasks of either
//! side block and are woken. This crate holds only these three things. It knows no thread, queue,
//! kernel or query. Every state is generic over its items.
//!
//! # Why no wake-up is lost
//!
//! 1. [`Dependency::poll_ready`] tests the gate and registers the waker under one lock. The gate
//!    becomes ready under the same lock. A waker is therefore either told "ready", or in the list
//!    that the next `set_ready` takes.
//! 2. A shared state changes its data *and* the gate that reports on this data under its own lock
//!    ([`StateLock`]). A consumer that finds no item blocks the gate under the lock under which the
//!    next item is added. A blocked gate therefore never hides an item, and a ready gate never
//!    stays ready over an empty state.
//! 3. Wakers run after the lock is released, so a waker may call anything. The lock's guard
//!    ([`StateGuard`]) collects them, and runs them when it is dropped and has released the lock.
//!    No other code can collect wakers, and [`sync::wakes_under_lock`] counts the wake-ups that
//!    bypass the guard.
//! 4. The rights to produce and to consume are values: producer and consumer tokens, such as
//!    [`Producer`] and [`Consumer`]. Dropping an unfinished token aborts the state for the other
//!    side. Therefore no exit of a task (error, cancel, panic) leaves a gate blocked, and an
//!    aborted producer never looks like a finished one.
//!
//! # Which state for which breaker
//!
//! | module | cardinality | breaker |
//! |---|---|---|
//! | [`breaker`] | N:N | any contents, published by all producers and then claimed by consumers |
//! | [`aggregate`] | N:N | pre-aggregated partitions, merged partition by partition |
//! | [`join_bridge`] | N:N | one shared build side, probed, then scanned for unmatched rows |
//! | [`sort`] | N:N | sorted runs, merged key range by key range |
//! | [`window`] | 1:1 | window partitions of one task |
//! | [`multicast`] | 1:N | one producer, several consumers with independent positions |
//! | [`set`] | N:1 | a table of the first child, passed along the other children |
//! | [`exchange`] | N:N | local exchange: routed, shared or broadcast |
//! | [`stream_set`] | N:N | streams of external producers, each leased to a task when it has rows |
//! | [`result`] | N:N | result partitions, read outside the executor |
//! | [`output`] | N:N | output pages of a stage's task, read by tasks of other stages |
//! | [`splits`] | 1:N | splits of a table, queued by a scheduler for the tasks of a scan |
//! | [`memory`] | N:N | memory arbitration: reclaim requests between tasks |
//!
//! [`hash_index`] has no gate: tasks fill it together without a lock, as the build side of a hash
//! join.
//!
//! # A state of your own
//!
//! [`breaker`] is the full breaker over any contents: producers publish, then consumers claim.
//! [`aggregate`] and [`sort`] are thin layers over it. For another protocol, put the data into a
//! [`StateLock`] and the gates of its cardinality beside it ([`OneToOne`], [`OneToMany`],
//! [`ManyToOne`], [`ManyToMany`]). Then implement [`SharedState`]: [`tokens()`] creates the
//! [`Producer`]s and [`Consumer`]s, counts them, and reports each end to the state.

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod breaker;
mod buffer_limit;
mod cardinality;
mod dependency;
pub mod exchange;
pub mod hash_index;
pub mod join_bridge;
pub mod memory;
pub mod multicast;
pub mod output;
mod queue;
pub mod result;
mod results;
pub mod set;
pub mod sort;
pub mod splits;
mod state_lock;
pub mod stream_set;
pub mod sync;
mod tokens;
pub mod window;

pub use buffer_limit::{BufferLimit, OnFull};
pub use cardinality::{ManyToMany, ManyToOne, OneToMany, OneToOne};
pub use dependency::{Dependency, DependencyKind, Gate, Wakeups};
pub use queue::Payload;
pub use results::{ClaimResult, PopResult, PushResult};
pub use state_lock::{StateGuard, StateLock};
pub use tokens::{Consumer, Producer, ProducerEnd, SharedState, tokens};
