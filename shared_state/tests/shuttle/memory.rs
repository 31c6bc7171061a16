//! Memory arbitration among tasks that spill and a task that has nothing to spill.

use std::sync::Arc;

use gatework_shared_state::{
    Dependency, DependencyKind, Gate,
    memory::{ArbitrationParticipant, MemoryArbitrator},
};
use shuttle::{sync::Mutex, thread};

use crate::support::{Ending, Query, Task, below, check_all, must_fail};

const LIMIT: usize = 5;
const ROUNDS: usize = 4;

/// A fault of a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It takes the reclaim request after it has started to spill.
    TakesRequestLate,
    /// It has nothing to spill, and does not decline.
    DoesNotDecline,
    /// It counts a write as pending that has finished.
    CountsFinishedWrite,
    /// Its release wakes no requester.
    ReleasesSilently,
    /// While it waits for memory, it does not watch for reclaim requests.
    WaitsForMemoryOnly,
    /// Its write releases memory before it counts as done.
    ReleasesEarly,
}

struct Pool {
    used: Mutex<usize>,
    arbitrator: Arc<MemoryArbitrator>,
    fault: Fault,
    /// Ready when no task needs memory any more: the input of the spilling tasks.
    satisfied: Gate,
}

impl Pool {
    fn try_grow(&self) -> bool {
        let mut used = self.used.lock().unwrap();
        let fits = *used < LIMIT;
        *used += usize::from(fits);
        fits
    }

    fn release(&self, bytes: usize) {
        *self.used.lock().unwrap() -= bytes;
        if self.fault != Fault::ReleasesSilently {
            self.arbitrator.notify_released();
        }
    }
}

/// A task that spills when it is asked to, or when no other task has more memory.
struct Spiller {
    pool: Arc<Pool>,
    participant: ArbitrationParticipant,
    reserved: usize,
    /// Its reclaimable bytes cannot be released.
    overstates: bool,
    /// The gate of a pending write, and whether the write is done.
    writing: Option<(Gate, Arc<Mutex<bool>>)>,
}

impl Spiller {
    fn new(pool: &Arc<Pool>, overstates: bool) -> Self {
        let participant = pool.arbitrator.register(1, 1);
        Self { pool: pool.clone(), participant, reserved: 0, overstates, writing: None }
    }

    fn is_writing(&mut self) -> bool {
        if self.writing.as_ref().is_some_and(|(_, done)| *done.lock().unwrap()) {
            self.writing = None;
        }
        self.writing.is_some()
    }

    /// Starts to write half of the memory on another thread, if there is any that can be written.
    fn write(&mut self) -> bool {
        let bytes = self.reserved.div_ceil(2);
        if bytes == 0 || self.overstates {
            return false;
        }
        self.reserved -= bytes;
        self.participant.set_reclaimable_bytes(self.reserved);
        let gate = Dependency::blocked("write", DependencyKind::External);
        let done = Arc::<Mutex<bool>>::default();
        self.writing = Some((gate.clone(), done.clone()));
        let pool = self.pool.clone();
        let pending_release = pool.arbitrator.announce_release(1);
        // A task that finds the write not done knows that its memory is still to be released.
        thread::spawn(move || {
            if pool.fault == Fault::ReleasesEarly {
                pool.release(bytes);
            }
            *done.lock().unwrap() = true;
            if pool.fault != Fault::ReleasesEarly {
                pool.release(bytes);
            }
            match pool.fault {
                Fault::ReleasesEarly | Fault::ReleasesSilently => std::mem::forget(pending_release),
                _ => drop(pending_release),
            }
            gate.set_always_ready();
        });
        true
    }

    fn handle_reclaim_requests(&mut self) {
        let late = self.pool.fault == Fault::TakesRequestLate;
        let requested = if late {
            self.participant.reclaim_requested().is_ready()
        } else {
            self.participant.take_reclaim_request()
        };
        if !requested {
            return;
        }
        let was_writing = self.pool.fault == Fault::CountsFinishedWrite && self.writing.is_some();
        let releases = was_writing || self.is_writing() || self.write();
        if late {
            let _requested = self.participant.take_reclaim_request();
        }
        if !releases && self.pool.fault != Fault::DoesNotDecline {
            self.participant.decline_reclaim();
        }
    }

    /// Reserves one more byte; `false` if the query was cancelled meanwhile.
    fn grow(&mut self, task: &mut Task) -> bool {
        while !task.is_cancelled() {
            self.handle_reclaim_requests();
            if self.pool.try_grow() {
                self.reserved += 1;
                self.participant.set_reclaimable_bytes(self.reserved);
                task.progress();
                return true;
            }
            if let Some(memory_available) = self.participant.request_reclaim(1) {
                match self.pool.fault {
                    Fault::WaitsForMemoryOnly => task.wait(&memory_available),
                    _ => task.wait_any(&[&memory_available, self.participant.reclaim_requested()]),
                }
            } else if self.is_writing() || self.write() {
                if let Some((gate, _)) = &self.writing {
                    let gate = gate.clone();
                    task.wait_any(&[&gate, self.participant.reclaim_requested()]);
                }
            } else {
                // The other tasks have too little memory for a request. This task goes on with its
                // own.
                return true;
            }
        }
        false
    }

    /// Runs to the end, or leaves after a random number of rounds.
    fn run(mut self, mut task: Task, ending: Ending, leaves: bool) {
        let aborts = leaves && ending == Ending::Abort;
        // A task that leaves early has sometimes made others wait for memory before.
        for _ in 0..if leaves { below(2 * ROUNDS) } else { ROUNDS } {
            if !self.grow(&mut task) {
                break;
            }
        }
        let satisfied = self.pool.satisfied.clone();
        while !leaves && !task.is_cancelled() && !satisfied.is_ready() {
            self.handle_reclaim_requests();
            match self.pool.fault {
                Fault::WaitsForMemoryOnly => task.wait(&satisfied),
                _ => task.wait_any(&[&satisfied, self.participant.reclaim_requested()]),
            }
            task.progress();
        }
        if !aborts && !task.is_cancelled() {
            self.participant.decline_reclaim();
        }
        let Self { pool, participant, reserved, .. } = self;
        // Memory is released before the participant is dropped, as a reservation is in a dropped
        // task.
        pool.release(reserved);
        drop(participant);
    }
}

/// Needs memory that it releases only at its end, and gives up if no task has reclaimable memory.
fn need(pool: &Arc<Pool>, mut task: Task) {
    let participant = pool.arbitrator.register(1, 1);
    let mut reserved = 0;
    while reserved < 2 && !task.is_cancelled() {
        if pool.try_grow() {
            reserved += 1;
            task.progress();
        } else if let Some(memory_available) = participant.request_reclaim(1) {
            task.wait(&memory_available);
        } else {
            break;
        }
    }
    pool.release(reserved);
    pool.satisfied.set_always_ready();
}

fn model(ending: Ending, fault: Fault) {
    let satisfied = Dependency::blocked("input", DependencyKind::Source);
    let pool = Pool { used: Mutex::new(0), arbitrator: MemoryArbitrator::new(), fault, satisfied };
    let pool = Arc::new(pool);
    let query = Query::new();
    let mut threads = Vec::new();
    for number in 0..2 {
        let (spiller, task) = (Spiller::new(&pool, number == 1), Task::new(&query));
        let leaves = match ending {
            Ending::Finish | Ending::Cancel => false,
            Ending::Abort | Ending::Leave => number == 0,
            Ending::AllLeave | Ending::LeaveAndCancel => true,
        };
        threads.push(thread::spawn(move || spiller.run(task, ending, leaves)));
    }
    let (needed, task) = (pool.clone(), Task::new(&query));
    threads.push(thread::spawn(move || need(&needed, task)));
    if ending.cancels() {
        query.cancel();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_task_that_waits_for_memory_gets_it_or_an_answer() {
    check_all(|ending| model(ending, Fault::None));
}

fn caught(fault: Fault) {
    must_fail("deadlock", move || model(Ending::Finish, fault));
}

#[test]
fn a_request_taken_late_is_lost() {
    caught(Fault::TakesRequestLate);
}

#[test]
fn silence_about_nothing_is_seen() {
    caught(Fault::DoesNotDecline);
}

#[test]
fn an_answer_for_what_is_over_is_seen() {
    caught(Fault::CountsFinishedWrite);
}

#[test]
fn a_silent_release_is_seen() {
    caught(Fault::ReleasesSilently);
}

#[test]
fn memory_that_comes_back_before_it_counts_is_seen() {
    caught(Fault::ReleasesEarly);
}

#[test]
fn one_that_waits_and_does_not_look_is_seen() {
    caught(Fault::WaitsForMemoryOnly);
}
