//! Join build, N:N: build tasks publish what they collected, probe tasks build the shared table out
//! of it in units, probe it, and drain what only the table knows (unmatched build rows).
//!
//! ```text
//! Collecting ──last sink──▶ Prepare ──prepared──▶ Build ──last unit──▶ Probe ──last prober──▶ Drain
//!      └────────── a sink or a builder leaves without finishing: Aborted ──────────┘
//! ```
//!
//! *Prepare* is the one serial step: a single source turns the collected parts into a table with a
//! number of build units. One that leaves before it is done passes what there is on to another. *Build* units and *drain* units are claimed by any source. Every source
//! gate is shut while its task has nothing to claim and is opened by whoever moves the phase on.
//!
//! A prober that leaves before its input ended (its consumers are gone) has not marked the rows it
//! would have matched, so nobody may drain: the drain phase is then empty. That is right because
//! early finish is a property of the consumers of all probers.
//!
//! Lock: `inner`. All gates flip under it; wakers run after it.

use std::sync::Arc;

use crate::{Dependency, DependencyKind, Gate, ManyToMany, Wakeups, sync::Mutex};

#[derive(Debug)]
enum Phase<P, T> {
    Collecting(Vec<P>),
    /// Someone prepares the table.
    Preparing,
    Build {
        table: Arc<T>,
        next: usize,
        units: usize,
        done: usize,
    },
    Probe {
        table: Arc<T>,
    },
    Drain {
        table: Arc<T>,
        next: usize,
        units: usize,
    },
    Aborted,
}

#[derive(Debug)]
struct Inner<P, T> {
    phase: Phase<P, T>,
    sinks_left: usize,
    sources_left: usize,
    /// Sources that have not ended their probe.
    probing: usize,
    /// A source left before its probe side ended.
    left_early: bool,
}

#[derive(Debug)]
struct State<P, T> {
    gates: ManyToMany,
    /// Ready when the table is built, or when it never will be.
    built: Gate,
    closed: Gate,
    inner: Mutex<Inner<P, T>>,
}

/// The right of one build task to publish its part. Dropping it unpublished aborts the join.
#[derive(Debug)]
pub struct BuildSink<P, T> {
    state: Arc<State<P, T>>,
    published: bool,
}

/// The right of one probe task to build, probe and drain.
#[derive(Debug)]
pub struct ProbeSource<P, T> {
    state: Arc<State<P, T>>,
    instance: usize,
    /// It took on a step (prepare, build unit) that it has not completed.
    owes: bool,
    ended: bool,
}

/// What a probe task is asked to do before it may probe.
#[derive(Debug)]
pub enum Build<P, T> {
    /// Make a table of these parts and call [`ProbeSource::prepared`].
    Prepare(Vec<P>),
    /// Do this build unit and call [`ProbeSource::built`].
    Unit(Arc<T>, usize),
    /// Others are at work: wait for the gate.
    Blocked(Gate),
    /// The table is ready.
    Ready(Arc<T>),
    /// The build side will never be whole.
    Aborted,
}

/// What a probe task that has ended its probe is asked to do.
#[derive(Debug)]
pub enum Drain<T> {
    /// Emit the unmatched rows of this drain unit.
    Unit(Arc<T>, usize),
    /// Others still probe: wait for the gate.
    Blocked(Gate),
    /// Nothing is left.
    Finished,
    /// The join was aborted.
    Aborted,
}

/// The tokens of a join's build tasks and of its probe tasks.
pub type Tokens<P, T> = (Vec<BuildSink<P, T>>, Vec<ProbeSource<P, T>>);

/// A join that `sinks` build tasks publish to and `sources` probe tasks read.
///
/// # Panics
/// If either is 0.
pub fn new<P, T>(name: &str, sinks: usize, sources: usize) -> Tokens<P, T> {
    assert!(sinks > 0 && sources > 0, "a join has at least one build and one probe task");
    let state = Arc::new(State {
        gates: ManyToMany::new(name, sinks, sources),
        built: Dependency::blocked(format!("{name} built"), DependencyKind::RuntimeFilter),
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
        inner: Mutex::new(Inner {
            phase: Phase::Collecting(Vec::new()),
            sinks_left: sinks,
            sources_left: sources,
            probing: sources,
            left_early: false,
        }),
    });
    (
        (0..sinks).map(|_| BuildSink { state: state.clone(), published: false }).collect(),
        (0..sources)
            .map(|instance| ProbeSource {
                state: state.clone(),
                instance,
                owes: false,
                ended: false,
            })
            .collect(),
    )
}

impl<P, T> State<P, T> {
    fn abort(&self, inner: &mut Inner<P, T>, wakeups: &mut Wakeups) -> Phase<P, T> {
        // Once: of a cancelled query, all sinks leave.
        if !matches!(inner.phase, Phase::Aborted) {
            self.gates.open_for_ever(wakeups);
            self.built.set_always_ready_later(wakeups);
        }
        std::mem::replace(&mut inner.phase, Phase::Aborted)
    }

    /// Opens the source gates for the step that has just become possible.
    fn open_sources(&self, wakeups: &mut Wakeups) {
        for gate in self.gates.sources() {
            gate.set_ready_later(wakeups);
        }
    }

    fn shut_sources(&self) {
        for gate in self.gates.sources() {
            gate.block();
        }
    }
}

impl<P, T> BuildSink<P, T> {
    /// Publishes this task's part of the build side.
    pub fn publish(mut self, part: P) {
        self.published = true;
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sinks_left -= 1;
        let last = inner.sinks_left == 0;
        if let Phase::Collecting(parts) = &mut inner.phase {
            parts.push(part);
            if last {
                self.state.open_sources(&mut wakeups);
            }
        }
    }

    /// Ready once no probe task is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }
}

impl<P, T> Drop for BuildSink<P, T> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sinks_left -= 1;
        let dropped = self.state.abort(&mut inner, &mut wakeups);
        drop(inner);
        drop(dropped);
    }
}

impl<P, T> ProbeSource<P, T> {
    /// What to do next on the way to a finished table.
    ///
    /// # Panics
    /// If this source has not completed the step it took on before.
    pub fn build(&mut self) -> Build<P, T> {
        assert!(!self.owes, "complete the step you have before you ask for another");
        let mut inner = self.state.inner.lock();
        let collected = inner.sinks_left == 0;
        match &mut inner.phase {
            Phase::Aborted => Build::Aborted,
            Phase::Collecting(parts) if collected => {
                let parts = std::mem::take(parts);
                inner.phase = Phase::Preparing;
                self.state.shut_sources();
                self.owes = true;
                Build::Prepare(parts)
            }
            Phase::Build { table, next, units, .. } if *next < *units => {
                *next += 1;
                self.owes = true;
                Build::Unit(table.clone(), *next - 1)
            }
            Phase::Collecting(_) | Phase::Preparing | Phase::Build { .. } => {
                // A source that left may have opened the gate for nothing: shut, or the task spins.
                let gate = self.state.gates.source(self.instance);
                gate.block();
                Build::Blocked(gate.clone())
            }
            Phase::Probe { table } | Phase::Drain { table, .. } => Build::Ready(table.clone()),
        }
    }

    /// Leaves [`Build::Prepare`] to another source, which gets these parts. To be dropped next.
    pub fn pass_on(&mut self, parts: Vec<P>) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        self.owes = false;
        if let Phase::Preparing = inner.phase {
            inner.phase = Phase::Collecting(parts);
            self.state.open_sources(&mut wakeups);
        }
    }

    /// Hands in the table made by [`Build::Prepare`], with the number of its build units.
    pub fn prepared(&mut self, table: T, units: usize) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        self.owes = false;
        if let Phase::Preparing = inner.phase {
            let table = Arc::new(table);
            if units == 0 {
                inner.phase = Phase::Probe { table };
                self.state.built.set_always_ready_later(&mut wakeups);
            } else {
                inner.phase = Phase::Build { table, next: 0, units, done: 0 };
            }
            self.state.open_sources(&mut wakeups);
        }
    }

    /// Completes a build unit. `true` for the unit that completes the table: the caller may publish
    /// what is known of it (a runtime filter) and then calls [`publish`](Self::publish).
    pub fn built(&mut self) -> bool {
        let mut inner = self.state.inner.lock();
        if let Phase::Build { units, done, .. } = &mut inner.phase {
            *done += 1;
            if done == units {
                return true;
            }
        }
        self.owes = false;
        false
    }

    /// Opens the finished table to all probers. Called once, after [`built`](Self::built) said so.
    pub fn publish(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        self.owes = false;
        if let Phase::Build { table, .. } = &inner.phase {
            let table = table.clone();
            inner.phase = Phase::Probe { table };
            self.state.built.set_always_ready_later(&mut wakeups);
            self.state.open_sources(&mut wakeups);
        }
    }

    /// Says that this task has probed all of its input. The last one opens the drain of `units`.
    pub fn end_probe(&mut self, units: usize) {
        if self.ended {
            return;
        }
        self.ended = true;
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.probing -= 1;
        self.to_drain(&mut inner, units, &mut wakeups);
    }

    fn to_drain(&self, inner: &mut Inner<P, T>, units: usize, wakeups: &mut Wakeups) {
        if inner.probing > 0 {
            return;
        }
        let units = if inner.left_early { 0 } else { units };
        if let Phase::Probe { table } = &inner.phase {
            let table = table.clone();
            inner.phase = Phase::Drain { table, next: 0, units };
            self.state.open_sources(wakeups);
        }
    }

    /// The next drain unit, once every task has ended its probe.
    pub fn drain(&mut self) -> Drain<T> {
        let mut inner = self.state.inner.lock();
        match &mut inner.phase {
            Phase::Aborted => Drain::Aborted,
            Phase::Drain { table, next, units } => {
                if next < units {
                    *next += 1;
                    Drain::Unit(table.clone(), *next - 1)
                } else {
                    Drain::Finished
                }
            }
            _ => {
                let gate = self.state.gates.source(self.instance);
                gate.block();
                Drain::Blocked(gate.clone())
            }
        }
    }

    /// Ready when the table is built or never will be; for those who watch from elsewhere.
    pub fn built_gate(&self) -> &Gate {
        &self.state.built
    }
}

impl<P, T> Drop for ProbeSource<P, T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sources_left -= 1;
        let mut dropped = None;
        if self.owes {
            dropped = Some(self.state.abort(&mut inner, &mut wakeups));
        } else if !self.ended {
            inner.probing -= 1;
            inner.left_early = true;
            self.to_drain(&mut inner, 0, &mut wakeups);
        }
        if inner.sources_left == 0 {
            self.state.closed.set_always_ready_later(&mut wakeups);
            dropped.get_or_insert_with(|| self.state.abort(&mut inner, &mut wakeups));
        } else if let Phase::Collecting(_) | Phase::Build { .. } = inner.phase {
            // Another source may have been woken for a step that this one left to it.
            self.state.open_sources(&mut wakeups);
        }
        drop(inner);
        drop(dropped);
    }
}
