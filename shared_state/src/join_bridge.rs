//! Hash join bridge, N:N: build tasks publish their parts of the build side, and probe tasks build
//! the shared table from them in morsels. Probe tasks then probe the table and scan it for
//! unmatched build rows. (Velox and Presto: `HashJoinBridge`.)
//!
//! ```text
//! Collecting ─last producer─▶ Finalize ─finish_finalize─▶ Build ─last─▶ Probe ─▶ UnmatchedScan
//!      └──── a producer or a consumer with a step in hand is dropped: Aborted ────┘
//! ```
//!
//! *Finalize* is the one serial step: a single consumer turns the collected parts into a table with
//! a number of build morsels. A consumer that leaves before it is done hands its parts over to
//! another. Any consumer claims *build* morsels and *unmatched-scan* morsels. A consumer's gate is
//! blocked while there is nothing to claim, and becomes ready with the next phase. `UnmatchedScan`
//! starts when the last probe has finished.
//!
//! A consumer that is dropped before its probe finished (its own consumers have ended) has not
//! marked the rows that it would have matched. The unmatched scan is then empty. That is correct,
//! because early finish applies to the consumers of all probe tasks.
//!
//! Lock: `inner`. All gates change under it; wakers run after it.

use std::sync::Arc;

use crate::{Dependency, DependencyKind, Gate, ManyToMany, StateLock, Wakeups};

#[derive(Debug)]
enum Phase<P, T> {
    Collecting(Vec<P>),
    /// One consumer builds the table from the parts.
    Finalizing,
    Build {
        table: Arc<T>,
        next: usize,
        morsels: usize,
        done: usize,
    },
    Probe {
        table: Arc<T>,
    },
    UnmatchedScan {
        table: Arc<T>,
        next: usize,
        morsels: usize,
    },
    Aborted,
}

#[derive(Debug)]
struct Inner<P, T> {
    phase: Phase<P, T>,
    producers_left: usize,
    consumers_left: usize,
    /// Consumers that have not finished their probe.
    probing: usize,
    /// Whether a consumer was dropped before its probe finished.
    probe_dropped: bool,
}

#[derive(Debug)]
struct JoinBridge<P, T> {
    gates: ManyToMany,
    /// Ready when the table is built, or when it never will be.
    built: Gate,
    closed: Gate,
    inner: StateLock<Inner<P, T>>,
}

/// The right of one build task to publish its part. Dropping it unpublished aborts the join.
#[derive(Debug)]
pub struct BuildProducer<P, T> {
    state: Arc<JoinBridge<P, T>>,
    published: bool,
}

/// The right of one probe task to build, probe and scan for unmatched rows.
#[derive(Debug)]
pub struct ProbeConsumer<P, T> {
    state: Arc<JoinBridge<P, T>>,
    task_index: usize,
    /// Whether this consumer took a step (finalize, build morsel) that it has not completed.
    outstanding_step: bool,
    probe_finished: bool,
}

/// The next step of a probe task before it may probe.
#[derive(Debug)]
pub enum BuildStep<P, T> {
    /// Build a table from these parts and call [`ProbeConsumer::finish_finalize`].
    Finalize(Vec<P>),
    /// Build this morsel and call [`ProbeConsumer::finish_build_morsel`].
    Morsel(Arc<T>, usize),
    /// Other consumers build: wait for the gate.
    Blocked(Gate),
    /// The table is complete: probe it.
    Ready(Arc<T>),
    /// The build side will never be complete.
    Aborted,
}

/// The next step of a probe task whose probe has finished.
#[derive(Debug)]
pub enum UnmatchedScan<T> {
    /// Emit the unmatched rows of this morsel.
    Morsel(Arc<T>, usize),
    /// Other consumers still probe: wait for the gate.
    Blocked(Gate),
    /// All morsels are claimed.
    Finished,
    /// The join was aborted.
    Aborted,
}

/// The tokens of a join's build tasks and of its probe tasks.
pub type Tokens<P, T> = (Vec<BuildProducer<P, T>>, Vec<ProbeConsumer<P, T>>);

/// Creates a join bridge for `producers` build tasks and `consumers` probe tasks.
///
/// # Panics
/// If either is 0.
pub fn new<P, T>(name: &str, producers: usize, consumers: usize) -> Tokens<P, T> {
    assert!(producers > 0 && consumers > 0, "a join has at least one build and one probe task");
    let state = Arc::new(JoinBridge {
        gates: ManyToMany::new(name, producers, consumers),
        built: Dependency::blocked(format!("{name} built"), DependencyKind::RuntimeFilter),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        inner: StateLock::new(Inner {
            phase: Phase::Collecting(Vec::new()),
            producers_left: producers,
            consumers_left: consumers,
            probing: consumers,
            probe_dropped: false,
        }),
    });
    (
        (0..producers).map(|_| BuildProducer { state: state.clone(), published: false }).collect(),
        (0..consumers)
            .map(|task_index| ProbeConsumer {
                state: state.clone(),
                task_index,
                outstanding_step: false,
                probe_finished: false,
            })
            .collect(),
    )
}

impl<P, T> JoinBridge<P, T> {
    fn abort(&self, inner: &mut Inner<P, T>, wakeups: &mut Wakeups) -> Phase<P, T> {
        // Only once: in a cancelled query, all producers are dropped.
        if !matches!(inner.phase, Phase::Aborted) {
            self.gates.set_always_ready_all(wakeups);
            self.built.set_always_ready_deferred(wakeups);
        }
        std::mem::replace(&mut inner.phase, Phase::Aborted)
    }

    /// Makes all consumer gates ready for the step that has become possible.
    fn set_consumers_ready(&self, wakeups: &mut Wakeups) {
        for gate in self.gates.sources() {
            gate.set_ready_deferred(wakeups);
        }
    }

    fn block_consumers(&self) {
        for gate in self.gates.sources() {
            gate.block();
        }
    }
}

impl<P, T> BuildProducer<P, T> {
    /// Publishes this task's part of the build side.
    pub fn publish(mut self, part: P) {
        self.published = true;
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.producers_left -= 1;
        let last = inner.producers_left == 0;
        if let Phase::Collecting(parts) = &mut inner.phase {
            parts.push(part);
            if last {
                self.state.set_consumers_ready(wakeups);
            }
        }
    }

    /// Returns the gate that is ready once no probe task is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }
}

impl<P, T> Drop for BuildProducer<P, T> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.producers_left -= 1;
        let dropped = self.state.abort(inner, wakeups);
        guard.unlock_and_drop(dropped);
    }
}

impl<P, T> ProbeConsumer<P, T> {
    /// Returns the next step towards a complete table.
    ///
    /// # Panics
    /// If this consumer has not completed its previous step.
    pub fn next_build_step(&mut self) -> BuildStep<P, T> {
        assert!(!self.outstanding_step, "the previous build step is not complete");
        let mut inner = self.state.inner.lock();
        let all_published = inner.producers_left == 0;
        match &mut inner.phase {
            Phase::Aborted => BuildStep::Aborted,
            Phase::Collecting(parts) if all_published => {
                let parts = std::mem::take(parts);
                inner.phase = Phase::Finalizing;
                self.state.block_consumers();
                self.outstanding_step = true;
                BuildStep::Finalize(parts)
            }
            Phase::Build { table, next, morsels, .. } if *next < *morsels => {
                *next += 1;
                self.outstanding_step = true;
                BuildStep::Morsel(table.clone(), *next - 1)
            }
            Phase::Collecting(_) | Phase::Finalizing | Phase::Build { .. } => {
                // A consumer that was dropped may have made the gate ready without new work.
                // Without blocking it, the task would spin.
                let gate = self.state.gates.source(self.task_index);
                gate.block();
                BuildStep::Blocked(gate.clone())
            }
            Phase::Probe { table } | Phase::UnmatchedScan { table, .. } => {
                BuildStep::Ready(table.clone())
            }
        }
    }

    /// Hands [`BuildStep::Finalize`] and its parts over to another consumer. The caller drops this
    /// token next.
    pub fn hand_over_finalize(&mut self, parts: Vec<P>) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.outstanding_step = false;
        if let Phase::Finalizing = inner.phase {
            inner.phase = Phase::Collecting(parts);
            self.state.set_consumers_ready(wakeups);
        }
    }

    /// Stores the table made by [`BuildStep::Finalize`], with the number of its build morsels.
    pub fn finish_finalize(&mut self, table: T, morsels: usize) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.outstanding_step = false;
        if let Phase::Finalizing = inner.phase {
            let table = Arc::new(table);
            if morsels == 0 {
                inner.phase = Phase::Probe { table };
                self.state.built.set_always_ready_deferred(wakeups);
            } else {
                inner.phase = Phase::Build { table, next: 0, morsels, done: 0 };
            }
            self.state.set_consumers_ready(wakeups);
        }
    }

    /// Completes a build morsel. Returns `true` for the last one: the caller may then publish facts
    /// about the build side (a runtime filter), and must call
    /// [`publish_table`](Self::publish_table).
    pub fn finish_build_morsel(&mut self) -> bool {
        let mut inner = self.state.inner.lock();
        if let Phase::Build { morsels, done, .. } = &mut inner.phase {
            *done += 1;
            if done == morsels {
                return true;
            }
        }
        self.outstanding_step = false;
        false
    }

    /// Publishes the complete table to all consumers. Called once, after
    /// [`finish_build_morsel`](Self::finish_build_morsel) returned `true`.
    pub fn publish_table(&mut self) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.outstanding_step = false;
        if let Phase::Build { table, .. } = &inner.phase {
            let table = table.clone();
            inner.phase = Phase::Probe { table };
            self.state.built.set_always_ready_deferred(wakeups);
            self.state.set_consumers_ready(wakeups);
        }
    }

    /// Records that this task has probed all of its input. The last call starts the unmatched scan
    /// of `morsels` morsels.
    pub fn finish_probe(&mut self, morsels: usize) {
        if self.probe_finished {
            return;
        }
        self.probe_finished = true;
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.probing -= 1;
        self.advance_to_unmatched_scan(inner, morsels, wakeups);
    }

    fn advance_to_unmatched_scan(
        &self,
        inner: &mut Inner<P, T>,
        morsels: usize,
        wakeups: &mut Wakeups,
    ) {
        if inner.probing > 0 {
            return;
        }
        let morsels = if inner.probe_dropped { 0 } else { morsels };
        if let Phase::Probe { table } = &inner.phase {
            let table = table.clone();
            inner.phase = Phase::UnmatchedScan { table, next: 0, morsels };
            self.state.set_consumers_ready(wakeups);
        }
    }

    /// Returns the next unmatched-scan morsel, once every task has finished its probe.
    pub fn next_unmatched_scan(&mut self) -> UnmatchedScan<T> {
        let mut inner = self.state.inner.lock();
        match &mut inner.phase {
            Phase::Aborted => UnmatchedScan::Aborted,
            Phase::UnmatchedScan { table, next, morsels } => {
                if next < morsels {
                    *next += 1;
                    UnmatchedScan::Morsel(table.clone(), *next - 1)
                } else {
                    UnmatchedScan::Finished
                }
            }
            _ => {
                let gate = self.state.gates.source(self.task_index);
                gate.block();
                UnmatchedScan::Blocked(gate.clone())
            }
        }
    }

    /// Returns the gate that is ready when the table is built or never will be; for observers of
    /// the build.
    pub fn built_gate(&self) -> &Gate {
        &self.state.built
    }
}

impl<P, T> Drop for ProbeConsumer<P, T> {
    fn drop(&mut self) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.consumers_left -= 1;
        let mut dropped = None;
        if self.outstanding_step {
            dropped = Some(self.state.abort(inner, wakeups));
        } else if !self.probe_finished {
            inner.probing -= 1;
            inner.probe_dropped = true;
            self.advance_to_unmatched_scan(inner, 0, wakeups);
        }
        if inner.consumers_left == 0 {
            self.state.closed.set_always_ready_deferred(wakeups);
            dropped.get_or_insert_with(|| self.state.abort(inner, wakeups));
        } else if let Phase::Collecting(_) | Phase::Build { .. } = inner.phase {
            // Another consumer may have been woken for a step that this one did not take.
            self.state.set_consumers_ready(wakeups);
        }
        guard.unlock_and_drop(dropped);
    }
}
