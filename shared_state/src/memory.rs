//! Memory, N:N: who is refused some asks who holds most to give some back, and waits for that.
//!
//! A *participant* says how many bytes it could give back ([`ArbitrationParticipant::set_reclaimable_bytes`]). One that is refused memory
//! ([`ArbitrationParticipant::request_reclaim`]) asks another that holds much more, and waits at its own gate. Who is asked finds its
//! gate open, also while it waits for something else; it takes the request ([`ArbitrationParticipant::take_reclaim_request`]) and
//! begins to give back, or says that it has nothing ([`ArbitrationParticipant::decline_reclaim`]). Whoever gives memory back
//! calls [`MemoryArbitrator::notify_released`], which lets all who wait try again. (Presto revokes the memory of operators
//! that can spill in this way, but by a timer.)
//!
//! Nobody waits for ever. Who waits has asked under the lock, so the question is there to be found until it
//! is taken; from then on either something is released, or the holder has nothing, or it leaves, and each of
//! these wakes all who wait. A second one that asks in between asks anew, since the question was taken
//! *before* anything was given back. And nobody is asked who gave nothing, until it holds something again.
//! What is on its way back ([`PendingRelease`]) is no holder's any more; it counts until it is there, and wakes all.
//!
//! Lock: `inner`. Gates flip under it; wakers run after it.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    Dependency, DependencyKind, Gate, Wakeups,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

#[derive(Debug)]
struct State {
    /// Its number among all holders.
    id: u64,
    /// Holders of one pool compete for the same bytes.
    pool: usize,
    owner: u64,
    reclaimable_bytes: AtomicUsize,
    /// Open while a question waits for this holder.
    reclaim_requested: Gate,
    /// Shut while this one waits for others.
    memory_available: Gate,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    /// By number, so that one comes and goes without a look at the others.
    participants: BTreeMap<u64, Arc<State>>,
    waiting: BTreeMap<u64, Arc<State>>,
    /// The pools of what is on its way back, which no holder counts any more, and how much is.
    pending_releases: HashMap<usize, usize>,
}

/// Those who hold memory that they could give back, and those who wait for some.
#[derive(Debug, Default)]
pub struct MemoryArbitrator {
    inner: Mutex<Inner>,
    /// The length of `waiting`, so that a release looks no further if there is nobody.
    waiting: AtomicUsize,
}

/// Memory on its way back to a pool. To be dropped when it is there.
#[derive(Debug)]
pub struct PendingRelease {
    arbitrator: Arc<MemoryArbitrator>,
    pool: usize,
}

/// A place among the holders. Dropping it gives it up.
#[derive(Debug)]
pub struct ArbitrationParticipant {
    arbitrator: Arc<MemoryArbitrator>,
    state: Arc<State>,
}

impl MemoryArbitrator {
    /// Nobody holds anything.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A holder of memory of `pool`, on behalf of `owner`.
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

    /// Says that memory of `pool` is about to come back: whoever finds no holder to ask waits for it.
    pub fn announce_release(self: &Arc<Self>, pool: usize) -> PendingRelease {
        *self.inner.lock().pending_releases.entry(pool).or_default() += 1;
        PendingRelease { arbitrator: self.clone(), pool }
    }

    /// Somebody has given memory back: all who wait try again.
    pub fn notify_released(&self) {
        // SeqCst, as in `request_reclaim`: who does not see the one that waits was before its question, and the answer
        // to that is yet to come.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut wakeups = Wakeups::new();
        self.wake_waiters(&mut self.inner.lock(), &mut wakeups);
    }

    fn wake_waiters(&self, inner: &mut Inner, wakeups: &mut Wakeups) {
        for state in std::mem::take(&mut inner.waiting).into_values() {
            state.memory_available.set_ready_deferred(wakeups);
        }
        self.waiting.store(0, Ordering::SeqCst);
    }
}

impl ArbitrationParticipant {
    /// Says that this one could give `bytes` back.
    pub fn set_reclaimable_bytes(&self, bytes: usize) {
        // Nobody asks one that has nothing: afterwards, either its gate is open, or it stays shut.
        let _inner =
            (bytes == 0 && self.reclaimable_bytes() > 0).then(|| self.arbitrator.inner.lock());
        // Relaxed: a hint otherwise. Who is asked looks at what it has.
        self.state.reclaimable_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The bytes it could give back.
    pub fn reclaimable_bytes(&self) -> usize {
        self.state.reclaimable_bytes.load(Ordering::Relaxed)
    }

    /// Asks another holder of the same pool, one of the same owner rather than others, that could give at
    /// least `min_bytes` bytes back, and twice as many as this one. The gate to wait at before memory is tried
    /// for again; `None` if there is no such holder, and nothing is on its way back, or this one could give
    /// `min_bytes` bytes itself.
    pub fn request_reclaim(&self, min_bytes: usize) -> Option<Gate> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbitrator.inner.lock();
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
            Some((_, _, target)) => target.reclaim_requested.set_ready_deferred(&mut wakeups),
            None if release_pending => {}
            None => return None,
        }
        self.state.memory_available.block();
        inner.waiting.insert(self.state.id, self.state.clone());
        self.arbitrator.waiting.store(inner.waiting.len(), Ordering::SeqCst);
        Some(self.state.memory_available.clone())
    }

    /// Open while this one is asked to give memory back.
    pub fn reclaim_requested(&self) -> &Gate {
        &self.state.reclaim_requested
    }

    /// Whether it was asked. Then it is to give back what it can, or to say that this is nothing.
    #[must_use = "the requester waits for the answer"]
    pub fn take_reclaim_request(&self) -> bool {
        if !self.state.reclaim_requested.is_ready() {
            return false;
        }
        // Under the lock, so that who asks later opens it again.
        let _inner = self.arbitrator.inner.lock();
        self.state.reclaim_requested.block();
        true
    }

    /// Says that there is nothing to give back, before [`set_reclaimable_bytes`](Self::set_reclaimable_bytes) says otherwise.
    pub fn decline_reclaim(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbitrator.inner.lock();
        self.state.reclaimable_bytes.store(0, Ordering::Relaxed);
        self.state.reclaim_requested.block();
        self.arbitrator.wake_waiters(&mut inner, &mut wakeups);
    }
}

impl Drop for PendingRelease {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbitrator.inner.lock();
        if let Entry::Occupied(mut pending) = inner.pending_releases.entry(self.pool) {
            *pending.get_mut() -= 1;
            if *pending.get() == 0 {
                pending.remove();
            }
        }
        self.arbitrator.wake_waiters(&mut inner, &mut wakeups);
    }
}

impl Drop for ArbitrationParticipant {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbitrator.inner.lock();
        inner.participants.remove(&self.state.id);
        inner.waiting.remove(&self.state.id);
        self.arbitrator.wake_waiters(&mut inner, &mut wakeups);
    }
}
