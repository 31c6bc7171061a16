//! How workers sleep and are woken, without spinning, ticking, or losing a wake-up.
//!
//! Actors: *sleepers* (workers that found no work) and *notifiers* (whoever pushed work).
//!
//! A sleeper enters its number in `sleepers`, then looks for work once more, and only then parks. A
//! notifier pushes its work first, then looks whether anybody is entered, takes one out, and unparks
//! it. Both put a SeqCst fence between their two steps. So in the single order of the fences either
//! the sleeper's entry comes first, and the notifier sees it, or the notifier's push comes first,
//! and the sleeper finds the work when it looks again. A push wakes one sleeper at most.
//!
//! A worker that was woken *searches* until it finds work or goes back to sleep, and while one
//! searches, pushes wake nobody: the one that searches finds what they pushed, and when it has found
//! something it looks whether there is more, and if so wakes the next. So a row of pushes costs one
//! unpark, not one each, and workers come as there is work for them. Nothing is left lying: a searcher
//! says that it searches no longer before its last look, with a fence between the two, so a notifier
//! that still saw it searching had pushed before that look. (Tokio's and Go's schedulers do the same.)
//!
//! A sleeper that finds work on its second look takes its number out again. If it is not there any
//! more, a notifier has taken it out and will unpark this worker: [`ParkToken`] says which happened.
//! Every entry that a notifier takes out is matched by one unpark, and every unpark by one park, so
//! only workers that sleep, or are about to, are entered.

use gatework_shared_state::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering, fence},
};

/// The set of sleeping workers.
#[derive(Debug)]
pub struct Sleep {
    sleepers: Mutex<Vec<usize>>,
    /// The length of `sleepers`, written under its lock, read without it by notifiers.
    count: AtomicUsize,
    /// Workers that were taken out to be unparked, and have not found work yet.
    searching: AtomicUsize,
}

/// What a worker that wanted to sleep is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkToken {
    /// Park: whoever takes the number out will unpark it.
    Park,
    /// Stay awake: there is work, and the number is out again.
    Awake,
    /// There is work, but a notifier has taken the number out: an unpark is on its way. Whoever
    /// parks a thread of its own must take it, by parking, or it ends a later sleep too soon.
    Unparked,
}

impl Sleep {
    /// A set in which the workers `asleep` are entered.
    pub fn new(asleep: impl IntoIterator<Item = usize>) -> Self {
        let sleepers: Vec<usize> = asleep.into_iter().collect();
        Self {
            count: AtomicUsize::new(sleepers.len()),
            searching: AtomicUsize::new(0),
            sleepers: Mutex::new(sleepers),
        }
    }

    /// Enters `worker`, looks for work again, and says whether it may park.
    pub fn announce_sleep(&self, worker: usize, has_work: impl FnOnce() -> bool) -> ParkToken {
        {
            let mut sleepers = self.sleepers.lock();
            sleepers.push(worker);
            self.count.store(sleepers.len(), Ordering::SeqCst);
        }
        // Pairs with the fence in `notify_one`, see above.
        fence(Ordering::SeqCst);
        if !has_work() {
            return ParkToken::Park;
        }
        if !self.remove_sleeper(worker) {
            return ParkToken::Unparked;
        }
        ParkToken::Awake
    }

    /// Takes all sleepers out, for the caller to unpark.
    #[must_use]
    pub fn notify_all(&self) -> Vec<usize> {
        // Pairs with the fence in `announce_sleep`, see above.
        fence(Ordering::SeqCst);
        let mut sleepers = self.sleepers.lock();
        self.count.store(0, Ordering::SeqCst);
        self.searching.fetch_add(sleepers.len(), Ordering::SeqCst);
        std::mem::take(&mut *sleepers)
    }

    /// Enters `worker`, looks for work again, and calls `park` unless it found some. `true`: the worker
    /// was woken, and searches.
    ///
    /// When this returns, `worker` is not entered: a worker that is entered while it works would be
    /// picked by notifiers in place of one that sleeps.
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
                // Nobody may have meant it: parking can end for no reason.
                !self.remove_sleeper(worker)
            }
            // The unpark comes at once; left untaken, it would cut the next sleep short.
            ParkToken::Unparked => {
                park();
                true
            }
            ParkToken::Awake => false,
        }
    }

    /// The calling worker searches no longer. Whoever found work looks for more then, and passes that on
    /// with [`notify_one`](Self::notify_one); whoever found none goes to [`park_unless_work`](Self::park_unless_work), which looks.
    pub fn stop_searching(&self) {
        self.searching.fetch_sub(1, Ordering::SeqCst);
        // Pairs with the fence in `notify_one`, see above.
        fence(Ordering::SeqCst);
    }

    /// After a push: takes one sleeper out, for the caller to unpark, unless someone searches.
    #[must_use]
    pub fn notify_one(&self) -> Option<usize> {
        // Pairs with the fence in `announce_sleep`, see above.
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

    /// Takes `worker` out if it is entered, for the caller to unpark.
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

    /// How many are asleep.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Takes `worker` out; `false` if it is not entered any more.
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
