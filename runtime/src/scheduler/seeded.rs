//! The seeded queue: one list of runnable tasks, from which a seed picks the next at random.
//!
//! It takes the place of the deques and injectors for tests: with one worker, and tasks that only
//! each other wake, the schedule is a function of the seed. The list and the state of the dice lie
//! under one lock. Nobody is preferred, not even cancelled tasks: every order of the runnable tasks
//! is possible, and no task waits for ever, because each has the same chance each time.

use std::sync::Arc;

use gatework_shared_state::sync::Mutex;

use super::task::Task;

/// A random sequence fixed by its seed (SplitMix64, by Steele, Lea and Flood).
///
/// ```
/// use gatework_runtime::scheduler::Dice;
/// let (mut one, mut same) = (Dice::new(7), Dice::new(7));
/// assert_eq!(one.roll(), same.roll());
/// assert!(one.below(3) < 3);
/// ```
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, brought below `end`.
    ///
    /// # Panics
    /// If `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}

/// What a seeded executor did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Picks between two tasks or more. With none, the seed had no say.
    pub choices: u64,
    /// A hash of these picks. Equal for equal schedules, different for nearly all others.
    pub fingerprint: u64,
}

#[derive(Debug)]
struct Inner {
    runnable: Vec<Arc<Task>>,
    dice: Dice,
    schedule: Schedule,
    /// How many callers are adding several tasks, which must all be there before one is picked.
    holds: usize,
}

#[derive(Debug)]
pub(super) struct SeededQueue(Mutex<Inner>);

impl SeededQueue {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(Inner {
            runnable: Vec::new(),
            dice: Dice::new(seed),
            schedule: Schedule::default(),
            holds: 0,
        }))
    }

    pub(super) fn push(&self, task: Arc<Task>) {
        self.0.lock().runnable.push(task);
    }

    pub(super) fn take(&self) -> Option<Arc<Task>> {
        let mut inner = self.0.lock();
        let count = inner.runnable.len();
        if count == 0 || inner.holds > 0 {
            return None;
        }
        if count == 1 {
            return inner.runnable.pop();
        }
        let pick = inner.dice.below(count);
        inner.schedule.choices += 1;
        // FNV-1a over what was picked out of how many.
        for value in [pick as u64, count as u64] {
            inner.schedule.fingerprint =
                (inner.schedule.fingerprint ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(5);
        }
        Some(inner.runnable.swap_remove(pick))
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.0.lock();
        inner.runnable.is_empty() || inner.holds > 0
    }

    /// Lets nobody pick until [`release`](Self::release).
    pub(super) fn hold(&self) {
        self.0.lock().holds += 1;
    }

    pub(super) fn release(&self) {
        self.0.lock().holds -= 1;
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.0.lock().schedule
    }
}
