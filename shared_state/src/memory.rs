//! Memory arbitration, N:N: a task whose reservation is denied requests reclaim from the task with
//! the most reclaimable memory. (Velox calls this memory arbitration.)
//!
//! A *participant* announces the number of bytes that it can release
//! ([`ArbitrationParticipant::set_reclaimable_bytes`]). A participant whose reservation is denied
//! (the *requester*) calls [`ArbitrationParticipant::request_reclaim`], which selects a *target*
//! with much more reclaimable memory. The requester then waits at its own gate. The target's gate
//! becomes ready, even while the target waits at other gates. The target takes the request
//! ([`ArbitrationParticipant::take_reclaim_request`]) and starts to spill, or declines it
//! ([`ArbitrationParticipant::decline_reclaim`]). A task that has released memory calls
//! [`MemoryArbitrator::notify_released`], which wakes all requesters; each retries its reservation.
//! (Presto revokes the memory of operators that can spill in this way, but by a timer.)
//!
//! No requester waits forever. It makes its request under the lock, so the request stays visible
//! until the target takes it. After that the target releases memory, declines, or is dropped. Each
//! of these wakes all requesters. A second requester in between makes a new request, because the
//! target takes the request *before* it releases memory. A target that declined gets no request
//! until it announces reclaimable bytes again. Memory of a [`PendingRelease`] counts for no
//! participant. Requesters may wait for it, and its drop wakes all of them.
//!
//! Lock: `inner`. Gates change under it; wakers run after it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    Dependency, DependencyKind, Gate, StateLock, Wakeups,
    sync::atomic::{AtomicUsize, Ordering},
};

#[derive(Debug)]
struct State {
    /// Id among all participants.
    id: u64,
    /// Participants of one pool compete for the same bytes.
    pool: usize,
    owner: u64,
    reclaimable_bytes: AtomicUsize,
    /// Ready while a reclaim request is pending for this participant.
    reclaim_requested: Gate,
    /// Blocked while this participant waits for memory of others.
    memory_available: Gate,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    /// By id, so that registering and dropping a participant needs no scan of the others.
    participants: BTreeMap<u64, Arc<State>>,
    waiting: BTreeMap<u64, Arc<State>>,
    /// Number of pending releases by pool. No participant counts their bytes.
    pending_releases: HashMap<usize, usize>,
}

/// The participants that have reclaimable memory, and the requesters that wait for memory.
#[derive(Debug, Default)]
pub struct MemoryArbitrator {
    inner: StateLock<Inner>,
    /// Length of `inner.waiting`, so that a release without waiting requesters takes no lock.
    waiting: AtomicUsize,
}

/// A release of memory to a pool that has started. Its owner drops it when the memory is released.
#[derive(Debug)]
pub struct PendingRelease {
    arbitrator: Arc<MemoryArbitrator>,
    pool: usize,
}

/// A registration at a [`MemoryArbitrator`]. Dropping it removes the registration.
#[derive(Debug)]
pub struct ArbitrationParticipant {
    arbitrator: Arc<MemoryArbitrator>,
    state: Arc<State>,
}

impl MemoryArbitrator {
    /// Creates an arbitrator without participants.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Registers a participant that reserves memory of `pool` on behalf of `owner`.
    pub fn register(self: &Arc<Self>, pool: usize, owner: u64) -> ArbitrationParticipant {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let state = Arc::new(State {
            id,
            pool,
            owner,
            reclaimable_bytes: AtomicUsize::new(0),
            reclaim_requested: Dependency::blocked("reclaim requested", DependencyKind::Memory),
            memory_available: Dependency::ready("memory", DependencyKind::Memory),
        });
        inner.participants.insert(id, state.clone());
        drop(inner);
        ArbitrationParticipant { arbitrator: self.clone(), state }
    }

    /// Announces a release of memory of `pool`. A requester that finds no target waits for it.
    pub fn announce_release(self: &Arc<Self>, pool: usize) -> PendingRelease {
        *self.inner.lock().pending_releases.entry(pool).or_default() += 1;
        PendingRelease { arbitrator: self.clone(), pool }
    }

    /// Wakes all requesters to retry. Called after memory was released.
    pub fn notify_released(&self) {
        // SeqCst, as in `request_reclaim`: a release that sees no waiting requester came before the
        // requester's request, whose answer is still to come.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.wake_waiters(inner, wakeups);
    }

    fn wake_waiters(&self, inner: &mut Inner, wakeups: &mut Wakeups) {
        for state in std::mem::take(&mut inner.waiting).into_values() {
            state.memory_available.set_ready_deferred(wakeups);
        }
        self.waiting.store(0, Ordering::SeqCst);
    }
}

impl ArbitrationParticipant {
    /// Announces the number of bytes that this participant can release.
    pub fn set_reclaimable_bytes(&self, bytes: usize) {
        // Under the lock, for 0: a participant without reclaimable bytes gets no request.
        // Afterwards its gate is either ready already, or stays blocked.
        let _inner =
            (bytes == 0 && self.reclaimable_bytes() > 0).then(|| self.arbitrator.inner.lock());
        // Relaxed: otherwise this is only a hint; the target checks what it can release.
        self.state.reclaimable_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes that this participant can release.
    pub fn reclaimable_bytes(&self) -> usize {
        self.state.reclaimable_bytes.load(Ordering::Relaxed)
    }

    /// Requests reclaim from another participant of the same pool, preferably of the same owner.
    /// The target must have at least `min_bytes` reclaimable bytes, and twice this participant's.
    ///
    /// Returns the gate at which to wait before retrying the reservation. Returns `None` if there
    /// is no such target and either no release is pending or this participant can release
    /// `min_bytes` itself.
    pub fn request_reclaim(&self, min_bytes: usize) -> Option<Gate> {
        let mut guard = self.arbitrator.inner.lock();
        let (inner, wakeups) = guard.parts();
        let own_bytes = self.reclaimable_bytes();
        let release_pending =
            own_bytes < min_bytes.max(1) && inner.pending_releases.contains_key(&self.state.pool);
        let min_bytes = min_bytes.max(2 * own_bytes).max(1);
        let others = inner
            .participants
            .values()
            .filter(|other| other.pool == self.state.pool && !Arc::ptr_eq(other, &self.state));
        let candidates = others
            .map(|other| {
                (
                    other.owner == self.state.owner,
                    other.reclaimable_bytes.load(Ordering::Relaxed),
                    other,
                )
            })
            .filter(|(_, bytes, _)| *bytes >= min_bytes);
        match candidates.max_by_key(|(same, bytes, _)| (*same, *bytes)) {
            Some((_, _, target)) => target.reclaim_requested.set_ready_deferred(wakeups),
            None if release_pending => {}
            None => return None,
        }
        self.state.memory_available.block();
        inner.waiting.insert(self.state.id, self.state.clone());
        self.arbitrator.waiting.store(inner.waiting.len(), Ordering::SeqCst);
        Some(self.state.memory_available.clone())
    }

    /// Returns the gate that is ready while a reclaim request is pending for this participant.
    pub fn reclaim_requested(&self) -> &Gate {
        &self.state.reclaim_requested
    }

    /// Takes a pending reclaim request; `false` if there is none. After `true`, the caller must
    /// start to release memory, or call [`decline_reclaim`](Self::decline_reclaim).
    #[must_use = "the requester waits for the answer"]
    pub fn take_reclaim_request(&self) -> bool {
        if !self.state.reclaim_requested.is_ready() {
            return false;
        }
        // Under the lock, so that a later request makes the gate ready again.
        let _inner = self.arbitrator.inner.lock();
        self.state.reclaim_requested.block();
        true
    }

    /// Declines a reclaim request. This participant gets no other until
    /// [`set_reclaimable_bytes`](Self::set_reclaimable_bytes) announces bytes again.
    pub fn decline_reclaim(&self) {
        let mut guard = self.arbitrator.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.state.reclaimable_bytes.store(0, Ordering::Relaxed);
        self.state.reclaim_requested.block();
        self.arbitrator.wake_waiters(inner, wakeups);
    }
}

impl Drop for PendingRelease {
    fn drop(&mut self) {
        let mut guard = self.arbitrator.inner.lock();
        let (inner, wakeups) = guard.parts();
        if let Entry::Occupied(mut pending) = inner.pending_releases.entry(self.pool) {
            *pending.get_mut() -= 1;
            if *pending.get() == 0 {
                pending.remove();
            }
        }
        self.arbitrator.wake_waiters(inner, wakeups);
    }
}

impl Drop for ArbitrationParticipant {
    fn drop(&mut self) {
        let mut guard = self.arbitrator.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.participants.remove(&self.state.id);
        inner.waiting.remove(&self.state.id);
        self.arbitrator.wake_waiters(inner, wakeups);
    }
}
