//! How many bytes a buffer may hold, and what happens beyond.

use std::sync::Arc;

use crate::sync::atomic::{AtomicBool, Ordering};

/// What a full buffer does to its producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Producers wait until consumers have made room (back-pressure).
    Block,
    /// Producers wait as long as every consumer has something to take. Consumers that read their lanes
    /// one after the other, or wait for each other's progress, are never blocked by a full lane beside
    /// theirs; what that takes is charged to the query's memory.
    BlockUnlessStarved,
    /// Producers go on; the surplus is charged to the query's memory by whoever owns the items.
    ///
    /// The wait-for graph chooses this for an edge on which blocking would close a cycle.
    Overflow,
}

/// The byte budget of one buffer. Clones share the policy.
///
/// A buffer accepts the item with which it passes its budget, so an item larger than the whole
/// budget still passes, and then asks the producer to wait.
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
    /// Producers go on while a consumer has nothing to take.
    unless_starved: bool,
    /// Set once while a query is built, read under the owning state's lock afterwards.
    overflow_allowed: Arc<AtomicBool>,
}

impl BufferLimit {
    /// A blocking budget of `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            unless_starved: false,
            overflow_allowed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The budget, beyond which producers go on while a consumer has nothing to take.
    #[must_use]
    pub fn unless_starved(self) -> Self {
        Self { unless_starved: true, ..self }
    }

    /// Whether both are clones of one budget, so that one overflows when the other does.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.overflow_allowed, &other.overflow_allowed)
    }

    /// The limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Lets producers pass a full buffer from now on. To be called before the tasks start: a producer
    /// that waits for room already is not woken by it.
    pub fn allow_overflow(&self) {
        // Release pairs with the Acquire in `on_full`; nothing else is published by it.
        self.overflow_allowed.store(true, Ordering::Release);
    }

    /// What a full buffer does.
    pub fn on_full(&self) -> OnFull {
        // Acquire pairs with the Release in `allow_overflow`.
        match (self.overflow_allowed.load(Ordering::Acquire), self.unless_starved) {
            (true, _) => OnFull::Overflow,
            (false, true) => OnFull::BlockUnlessStarved,
            (false, false) => OnFull::Block,
        }
    }

    /// Whether a producer must wait at `used_bytes`, if all consumers read one lane.
    pub(crate) fn is_exceeded(&self, used_bytes: usize) -> bool {
        self.is_exceeded_unless_starved(used_bytes, false)
    }

    /// Whether a producer must wait at `used_bytes`, where a consumer is `starved` or none is.
    pub(crate) fn is_exceeded_unless_starved(&self, used_bytes: usize, starved: bool) -> bool {
        used_bytes >= self.limit_bytes.max(1)
            && match self.on_full() {
                OnFull::Block => true,
                OnFull::BlockUnlessStarved => !starved,
                OnFull::Overflow => false,
            }
    }
}
