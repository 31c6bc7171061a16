//! The byte limit of a buffer, and what happens at the limit.

use std::sync::Arc;

use crate::sync::atomic::{AtomicBool, Ordering};

/// What a full buffer does to its producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Producers wait until consumers have made room (back-pressure).
    Block,
    /// Producers wait while every consumer has items to take. A consumer that reads its channels
    /// one after the other, or depends on another consumer's progress, is then never stalled by
    /// another full channel. The surplus is reserved in the query's memory pool.
    BlockUnlessStarved,
    /// Producers go on; the owner of the items reserves the surplus in the query's memory pool.
    ///
    /// The wait-for graph chooses this for an edge on which blocking would close a cycle.
    Overflow,
}

/// The byte limit of one buffer. Clones share the policy.
///
/// A buffer accepts the item that exceeds its limit and then asks the producer to wait. So an item
/// larger than the whole limit still passes.
///
/// ```
/// use gatework_shared_state::{BufferLimit, OnFull};
/// let limit = BufferLimit::new(1 << 20);
/// assert_eq!(limit.on_full(), OnFull::Block);
/// limit.allow_overflow();
/// assert_eq!(limit.on_full(), OnFull::Overflow);
/// ```
#[derive(Debug, Clone)]
pub struct BufferLimit {
    limit_bytes: usize,
    /// Whether producers go on while a consumer has no item to take.
    unless_starved: bool,
    /// Set once while a query is built, read under the owning state's lock afterwards.
    overflow_allowed: Arc<AtomicBool>,
}

impl BufferLimit {
    /// Creates a blocking limit of `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            unless_starved: false,
            overflow_allowed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Returns the limit with the policy that producers go on while a consumer has no item to take.
    #[must_use]
    pub fn unless_starved(self) -> Self {
        Self { unless_starved: true, ..self }
    }

    /// Returns whether both are clones of one limit, so that both overflow together.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.overflow_allowed, &other.overflow_allowed)
    }

    /// Returns the limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Lets producers exceed the limit from now on. Call it before the tasks start: it does not
    /// wake a producer that already waits for capacity.
    pub fn allow_overflow(&self) {
        // Release pairs with the Acquire in `on_full`; nothing else is published by it.
        self.overflow_allowed.store(true, Ordering::Release);
    }

    /// Returns what a full buffer does.
    pub fn on_full(&self) -> OnFull {
        // Acquire pairs with the Release in `allow_overflow`.
        match (self.overflow_allowed.load(Ordering::Acquire), self.unless_starved) {
            (true, _) => OnFull::Overflow,
            (false, true) => OnFull::BlockUnlessStarved,
            (false, false) => OnFull::Block,
        }
    }

    /// Returns whether a producer must wait at `used_bytes`, if all consumers read one channel.
    pub(crate) fn is_exceeded(&self, used_bytes: usize) -> bool {
        self.is_exceeded_unless_starved(used_bytes, false)
    }

    /// Returns whether a producer must wait at `used_bytes`; `starved`: a consumer has no item to
    /// take.
    pub(crate) fn is_exceeded_unless_starved(&self, used_bytes: usize, starved: bool) -> bool {
        used_bytes >= self.limit_bytes.max(1)
            && match self.on_full() {
                OnFull::Block => true,
                OnFull::BlockUnlessStarved => !starved,
                OnFull::Overflow => false,
            }
    }
}
