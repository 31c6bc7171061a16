//! How workers sleep and are woken, without spinning, ticking, or losing a wake-up.
//!
//! Actors: *sleepers* (workers that found no work) and *notifiers* (threads that pushed work).
//!
//! A sleeper adds its index to `sleepers`, then looks for work once more, and only then parks. A
//! notifier pushes its work first, then checks `sleepers`, removes one index, and unparks that
//! worker. Both put a SeqCst fence between their two steps. In the single order of the fences, one
//! of two cases holds. If the sleeper's fence comes first, the notifier sees its entry. If the
//! notifier's fence comes first, the sleeper finds the work in its second look. A push wakes at
//! most one sleeper.
//!
//! A woken worker is *searching* until it finds work or goes back to sleep. While one worker is
//! searching, pushes wake no other: the searching worker finds what they pushed. When it has found
//! work, it checks for more, and if there is more, wakes the next worker. So a series of pushes
//! costs one unpark, and the number of awake workers follows the work. No work is left behind: a
//! searching worker clears its searching state before its last look, with a fence between the two.
//! A notifier that still saw it searching has therefore pushed before that look. (Tokio's and Go's
//! schedulers do the same.)
//!
//! A sleeper that finds work in its second look removes its entry. If the entry is no longer there,
//! a notifier has removed it and unparks this worker; [`ParkToken`] tells the two cases apart.
//!
//! Invariant: every entry that a notifier removes is matched by one unpark, and every unpark by one
//! park. So only workers that sleep, or are about to, have an entry.

use gatework_shared_state::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering, fence},
};

/// The set of sleeping workers.
#[derive(Debug)]
pub struct Sleep {
    sleepers: Mutex<Vec<usize>>,
    /// Length of `sleepers`, written under its lock; notifiers read it without the lock.
    count: AtomicUsize,
    /// Number of workers that were removed to be unparked and have not found work yet.
    searching: AtomicUsize,
}

/// What a worker that is about to sleep must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkToken {
    /// Park: the notifier that removes the entry unparks the worker.
    Park,
    /// Stay awake: there is work, and the entry is removed.
    Awake,
    /// There is work, but a notifier has removed the entry and is about to unpark the worker. A
    /// worker with a thread of its own must consume the unpark by parking, or its next park ends
    /// too soon.
    Unparked,
}

impl Sleep {
    /// Creates a set with the workers `asleep` in it.
    pub fn new(asleep: impl IntoIterator<Item = usize>) -> Self {
        let sleepers: Vec<usize> = asleep.into_iter().collect();
        Self {
            count: AtomicUsize::new(sleepers.len()),
            searching: AtomicUsize::new(0),
            sleepers: Mutex::new(sleepers),
        }
    }

    /// Adds `worker`, looks for work again, and returns whether the worker may park.
    pub fn announce_sleep(&self, worker: usize, has_work: impl FnOnce() -> bool) -> ParkToken {
        {
            let mut sleepers = self.sleepers.lock();
            sleepers.push(worker);
            self.count.store(sleepers.len(), Ordering::SeqCst);
        }
        // Pairs with the fence in `notify_one`, see the module documentation.
        fence(Ordering::SeqCst);
        if !has_work() {
            return ParkToken::Park;
        }
        if !self.remove_sleeper(worker) {
            return ParkToken::Unparked;
        }
        ParkToken::Awake
    }

    /// Removes all sleepers, for the caller to unpark.
    #[must_use]
    pub fn notify_all(&self) -> Vec<usize> {
        // Pairs with the fence in `announce_sleep`, see the module documentation.
        fence(Ordering::SeqCst);
        let mut sleepers = self.sleepers.lock();
        self.count.store(0, Ordering::SeqCst);
        self.searching.fetch_add(sleepers.len(), Ordering::SeqCst);
        std::mem::take(&mut *sleepers)
    }

    /// Adds `worker`, looks for work again, and calls `park` unless there is some. Returns `true`
    /// if the worker was woken and is searching.
    ///
    /// On return, `worker` is not in the set: notifiers would pick an awake worker in the set
    /// instead of one that sleeps.
    #[must_use]
    pub fn park_unless_work(
        &self,
        worker: usize,
        has_work: impl FnOnce() -> bool,
        park: impl FnOnce(),
    ) -> bool {
        match self.announce_sleep(worker, has_work) {
            ParkToken::Park => {
                park();
                // `park` may also return spuriously.
                !self.remove_sleeper(worker)
            }
            // The unpark follows at once; if it were not consumed, the next park would end too
            // soon.
            ParkToken::Unparked => {
                park();
                true
            }
            ParkToken::Awake => false,
        }
    }

    /// Ends the calling worker's search. A worker that found work then checks for more and calls
    /// [`notify_one`](Self::notify_one). A worker that found none calls
    /// [`park_unless_work`](Self::park_unless_work), which looks again.
    pub fn stop_searching(&self) {
        self.searching.fetch_sub(1, Ordering::SeqCst);
        // Pairs with the fence in `notify_one`, see the module documentation.
        fence(Ordering::SeqCst);
    }

    /// Removes one sleeper for the caller to unpark, unless a worker is searching. Called after a
    /// push.
    #[must_use]
    pub fn notify_one(&self) -> Option<usize> {
        // Pairs with the fence in `announce_sleep`, see the module documentation.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) == 0 || self.searching.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let mut sleepers = self.sleepers.lock();
        let worker = sleepers.pop()?;
        self.count.store(sleepers.len(), Ordering::SeqCst);
        self.searching.fetch_add(1, Ordering::SeqCst);
        Some(worker)
    }

    /// Removes `worker` if it is in the set, for the caller to unpark.
    #[must_use]
    pub fn notify_worker(&self, worker: usize) -> bool {
        let mut sleepers = self.sleepers.lock();
        let Some(index) = sleepers.iter().position(|&entered| entered == worker) else {
            return false;
        };
        sleepers.swap_remove(index);
        self.count.store(sleepers.len(), Ordering::SeqCst);
        self.searching.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Returns the number of sleeping workers.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Removes `worker`; `false` if it is no longer in the set.
    fn remove_sleeper(&self, worker: usize) -> bool {
        let mut sleepers = self.sleepers.lock();
        let Some(index) = sleepers.iter().position(|&entered| entered == worker) else {
            return false;
        };
        sleepers.swap_remove(index);
        self.count.store(sleepers.len(), Ordering::SeqCst);
        true
    }
}
