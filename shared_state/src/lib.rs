//! Gates and shared states: what tasks of different pipelines meet in.
//!
//! A pipeline breaker is the sink of one pipeline and the source of another. Between them lies a
//! *shared state*: data, a protocol, and the [`Dependency`] gates on which tasks of either side are
//! blocked and woken. This crate holds those three things and nothing else: it knows no thread, no
//! queue, no kernel and no query. Every state is generic over what it carries.
//!
//! # The argument that no wake-up is lost
//!
//! 1. [`Dependency::poll_ready`] tests the gate and registers the waker under one lock, the same
//!    lock under which the gate becomes ready. So a waker is either told "ready", or it is in the
//!    list that the next `set_ready` takes.
//! 2. A shared state changes its data *and* flips the gate that speaks of that data while it holds
//!    its own lock. So a gate never says "blocked" about data that is there, or "ready" for ever
//!    about data that is gone: whoever finds nothing blocks the gate under the lock under which the
//!    next item would be added.
//! 3. Wakers run after the lock is released ([`Wakeups`]), so a waker may do anything.
//! 4. The right to produce and the right to consume are values ([`Producer`](aggregate::AggregateProducer)-
//!    and consumer tokens). Dropping one without finishing it says "aborted" to the other side, so
//!    no way out of a task (error, cancel, panic) leaves a gate shut, and an aborted producer never
//!    looks like a finished one.
//!
//! # Which state for which breaker
//!
//! | module | cardinality | breaker |
//! |---|---|---|
//! | [`aggregate`] | N:N | pre-aggregated partitions, merged partition by partition |
//! | [`join_bridge`] | N:N | one shared build side, probed, then scanned for unmatched rows |
//! | [`sort`] | N:N | sorted runs, merged key range by key range |
//! | [`window`] | 1:1 | window partitions of one task |
//! | [`multicast`] | 1:N | one producer, several readers with own positions |
//! | [`union`] | N:1 | a queue per child, read in turn |
//! | [`set`] | N:1 | a build side handed down a chain of probe sides |
//! | [`exchange`] | N:N | local exchange: routed, shared or broadcast |
//! | [`stream_set`] | N:N | streams from outside, read by whoever comes when they have rows |
//! | [`result`] | N:N | result partitions, read from outside |
//! | [`output`] | N:N | what a task of a stage gives to tasks of other stages |
//! | [`splits`] | 1:N | parts of a table, given out as they are read |
//! | [`memory`] | N:N | what one is refused and others hold |

#![forbid(unsafe_code)]

pub mod aggregate;
mod breaker;
mod buffer_limit;
mod cardinality;
mod dependency;
pub mod exchange;
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
pub mod stream_set;
pub mod sync;
pub mod union;
pub mod window;

pub use buffer_limit::{BufferLimit, OnFull};
pub use cardinality::{ManyToMany, ManyToOne, OneToMany, OneToOne};
pub use dependency::{Dependency, DependencyKind, Gate, Wakeups};
pub use queue::Payload;
pub use results::{ClaimResult, PopResult, PushResult};
