//! The deterministic queue: one list of runnable tasks, from which a seeded generator picks the
//! next.
//!
//! It replaces the deques and injectors in tests. With one worker, and no wake-ups from other
//! threads, the schedule is a function of the seed. The list and the generator are under one lock.
//! No task has priority, not even a cancelled one: every order of the runnable tasks is possible.
//! No task waits forever, because each has the same chance at each pick.

use std::sync::Arc;

use gatework_shared_state::sync::Mutex;

use super::task::Task;

/// A random sequence fixed by its seed (SplitMix64, by Steele, Lea and Flood).
///
/// ```
/// use gatework_runtime::scheduler::SplitMix64;
/// let (mut one, mut same) = (SplitMix64::new(7), SplitMix64::new(7));
/// assert_eq!(one.next_u64(), same.next_u64());
/// assert!(one.next_below(3) < 3);
/// ```
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Creates the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns the next number modulo `end`.
    ///
    /// # Panics
    /// If `end` is 0.
    pub fn next_below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }
}

/// The picks of a deterministic executor so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScheduleTrace {
    /// Number of picks among two or more tasks. If it is 0, the seed had no effect.
    pub choices: u64,
    /// A hash of these picks. Equal for equal schedules, different for nearly all others.
    pub fingerprint: u64,
}

#[derive(Debug)]
struct Inner {
    runnable: Vec<Arc<Task>>,
    rng: SplitMix64,
    schedule: ScheduleTrace,
    /// Number of callers that are adding several tasks; no task is picked meanwhile.
    pauses: usize,
}

#[derive(Debug)]
pub(super) struct DeterministicQueue(Mutex<Inner>);

impl DeterministicQueue {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(Inner {
            runnable: Vec::new(),
            rng: SplitMix64::new(seed),
            schedule: ScheduleTrace::default(),
            pauses: 0,
        }))
    }

    pub(super) fn push(&self, task: Arc<Task>) {
        self.0.lock().runnable.push(task);
    }

    pub(super) fn take(&self) -> Option<Arc<Task>> {
        let mut inner = self.0.lock();
        let count = inner.runnable.len();
        if count == 0 || inner.pauses > 0 {
            return None;
        }
        if count == 1 {
            return inner.runnable.pop();
        }
        let pick = inner.rng.next_below(count);
        inner.schedule.choices += 1;
        // FNV-1a over the picked index and the number of runnable tasks.
        for value in [pick as u64, count as u64] {
            inner.schedule.fingerprint =
                (inner.schedule.fingerprint ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(5);
        }
        Some(inner.runnable.swap_remove(pick))
    }

    pub(super) fn is_empty(&self) -> bool {
        let inner = self.0.lock();
        inner.runnable.is_empty() || inner.pauses > 0
    }

    /// Prevents picks until [`resume_picks`](Self::resume_picks).
    pub(super) fn pause_picks(&self) {
        self.0.lock().pauses += 1;
    }

    pub(super) fn resume_picks(&self) {
        self.0.lock().pauses -= 1;
    }

    pub(super) fn schedule(&self) -> ScheduleTrace {
        self.0.lock().schedule
    }
}
