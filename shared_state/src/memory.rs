//! Memory, N:N: who is refused some asks who holds most to give some back, and waits for that.
//!
//! A *holder* says how many bytes it could give back ([`Holder::set_bytes`]). One that is refused memory
//! ([`Holder::ask`]) asks another that holds much more, and waits at its own gate. Who is asked finds its
//! gate open, also while it waits for something else; it takes the question ([`Holder::take_question`]) and
//! begins to give back, or says that it has nothing ([`Holder::gave_nothing`]). Whoever gives memory back
//! calls [`Arbiter::released`], which lets all who wait try again. (Presto revokes the memory of operators
//! that can spill in this way, but by a timer.)
//!
//! Nobody waits for ever. Who waits has asked under the lock, so the question is there to be found until it
//! is taken; from then on either something is released, or the holder has nothing, or it leaves, and each of
//! these wakes all who wait. A second one that asks in between asks anew, since the question was taken
//! *before* anything was given back. And nobody is asked who gave nothing, until it holds something again.
//! What is on its way back ([`Giving`]) is no holder's any more; it counts until it is there, and wakes all.
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
    bytes: AtomicUsize,
    /// Open while a question waits for this holder.
    asked: Gate,
    /// Shut while this one waits for others.
    relief: Gate,
}

#[derive(Debug, Default)]
struct Inner {
    next_id: u64,
    /// By number, so that one comes and goes without a look at the others.
    holders: BTreeMap<u64, Arc<State>>,
    waiting: BTreeMap<u64, Arc<State>>,
    /// The pools of what is on its way back, which no holder counts any more, and how much is.
    giving: HashMap<usize, usize>,
}

/// Those who hold memory that they could give back, and those who wait for some.
#[derive(Debug, Default)]
pub struct Arbiter {
    inner: Mutex<Inner>,
    /// The length of `waiting`, so that a release looks no further if there is nobody.
    waiting: AtomicUsize,
}

/// Memory on its way back to a pool. To be dropped when it is there.
#[derive(Debug)]
pub struct Giving {
    arbiter: Arc<Arbiter>,
    pool: usize,
}

/// A place among the holders. Dropping it gives it up.
#[derive(Debug)]
pub struct Holder {
    arbiter: Arc<Arbiter>,
    state: Arc<State>,
}

impl Arbiter {
    /// Nobody holds anything.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A holder of memory of `pool`, on behalf of `owner`.
    pub fn holder(self: &Arc<Self>, pool: usize, owner: u64) -> Holder {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let state = Arc::new(State {
            id,
            pool,
            owner,
            bytes: AtomicUsize::new(0),
            asked: Dependency::blocked("memory is asked for", DependencyKind::Memory),
            relief: Dependency::ready("memory", DependencyKind::Memory),
        });
        inner.holders.insert(id, state.clone());
        drop(inner);
        Holder { arbiter: self.clone(), state }
    }

    /// Says that memory of `pool` is about to come back: whoever finds no holder to ask waits for it.
    pub fn giving(self: &Arc<Self>, pool: usize) -> Giving {
        *self.inner.lock().giving.entry(pool).or_default() += 1;
        Giving { arbiter: self.clone(), pool }
    }

    /// Somebody has given memory back: all who wait try again.
    pub fn released(&self) {
        // SeqCst, as in `ask`: who does not see the one that waits was before its question, and the answer
        // to that is yet to come.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut wakeups = Wakeups::new();
        self.relieve(&mut self.inner.lock(), &mut wakeups);
    }

    fn relieve(&self, inner: &mut Inner, wakeups: &mut Wakeups) {
        for state in std::mem::take(&mut inner.waiting).into_values() {
            state.relief.set_ready_later(wakeups);
        }
        self.waiting.store(0, Ordering::SeqCst);
    }
}

impl Holder {
    /// Says that this one could give `bytes` back.
    pub fn set_bytes(&self, bytes: usize) {
        // Nobody asks one that has nothing: afterwards, either its gate is open, or it stays shut.
        let _inner = (bytes == 0 && self.bytes() > 0).then(|| self.arbiter.inner.lock());
        // Relaxed: a hint otherwise. Who is asked looks at what it has.
        self.state.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The bytes it could give back.
    pub fn bytes(&self) -> usize {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// Asks another holder of the same pool, one of the same owner rather than others, that could give at
    /// least `least` bytes back, and twice as many as this one. The gate to wait at before memory is tried
    /// for again; `None` if there is no such holder, and nothing is on its way back, or this one could give
    /// `least` bytes itself.
    pub fn ask(&self, least: usize) -> Option<Gate> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbiter.inner.lock();
        let own = self.bytes();
        let waits = own < least.max(1) && inner.giving.contains_key(&self.state.pool);
        let least = least.max(2 * own).max(1);
        let others = inner
            .holders
            .values()
            .filter(|other| other.pool == self.state.pool && !Arc::ptr_eq(other, &self.state));
        let able = others
            .map(|other| {
                (other.owner == self.state.owner, other.bytes.load(Ordering::Relaxed), other)
            })
            .filter(|(_, bytes, _)| *bytes >= least);
        match able.max_by_key(|(same, bytes, _)| (*same, *bytes)) {
            Some((_, _, most)) => most.asked.set_ready_later(&mut wakeups),
            None if waits => {}
            None => return None,
        }
        self.state.relief.block();
        inner.waiting.insert(self.state.id, self.state.clone());
        self.arbiter.waiting.store(inner.waiting.len(), Ordering::SeqCst);
        Some(self.state.relief.clone())
    }

    /// Open while this one is asked to give memory back.
    pub fn asked(&self) -> &Gate {
        &self.state.asked
    }

    /// Whether it was asked. Then it is to give back what it can, or to say that this is nothing.
    #[must_use = "who asked waits for the answer"]
    pub fn take_question(&self) -> bool {
        if !self.state.asked.is_ready() {
            return false;
        }
        // Under the lock, so that who asks later opens it again.
        let _inner = self.arbiter.inner.lock();
        self.state.asked.block();
        true
    }

    /// Says that there is nothing to give back, before [`set_bytes`](Self::set_bytes) says otherwise.
    pub fn gave_nothing(&self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbiter.inner.lock();
        self.state.bytes.store(0, Ordering::Relaxed);
        self.state.asked.block();
        self.arbiter.relieve(&mut inner, &mut wakeups);
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbiter.inner.lock();
        if let Entry::Occupied(mut giving) = inner.giving.entry(self.pool) {
            *giving.get_mut() -= 1;
            if *giving.get() == 0 {
                giving.remove();
            }
        }
        self.arbiter.relieve(&mut inner, &mut wakeups);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.arbiter.inner.lock();
        inner.holders.remove(&self.state.id);
        inner.waiting.remove(&self.state.id);
        self.arbiter.relieve(&mut inner, &mut wakeups);
    }
}
