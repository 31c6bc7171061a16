//! What must be dropped at the end of a query: the graph's parts and the gates of their states.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use gatework_runtime::pipeline::{GraphHandle, GraphWatch};
use gatework_shared_state::{Dependency, DependencyKind, Gate};

/// Time for other threads, such as those of I/O, to drop what they hold.
const PATIENCE: Duration = Duration::from_secs(10);

/// A watch on a graph's parts and gates. It holds none of them.
pub(super) struct LeakWatch {
    parts: GraphWatch,
    gates: Vec<Weak<Dependency>>,
}

impl LeakWatch {
    pub(super) fn new(parts: GraphWatch) -> Self {
        Self { parts, gates: Vec::new() }
    }

    /// Adds the gates of shared states that the graph's tasks have waited for, without those that
    /// `is_own` names as the harness's.
    pub(super) fn add_gates(&mut self, graph: &GraphHandle, is_own: impl Fn(&Gate) -> bool) {
        let of_a_state = |kind| {
            matches!(
                kind,
                DependencyKind::Source | DependencyKind::Sink | DependencyKind::ConsumersGone
            )
        };
        let gates = graph.gates();
        let gates = gates.iter().filter(|gate| of_a_state(gate.kind()) && !is_own(gate));
        self.gates.extend(gates.map(Arc::downgrade));
    }

    /// Checks that all parts and gates are dropped. Called when the query is dropped.
    pub(super) fn check(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let is_last = started.elapsed() > PATIENCE;
            match self.has_leaks() {
                false => return Ok(()),
                true if is_last => return Err(self.describe()),
                true => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn has_leaks(&self) -> bool {
        !self.parts.alive().is_empty() || self.gates.iter().any(|gate| gate.strong_count() > 0)
    }

    fn describe(&self) -> String {
        let parts = self.parts.alive().join(", ");
        let gates = self.gates.iter().filter_map(Weak::upgrade);
        let mut gates: Vec<String> = gates.map(|gate| format!("'{}'", gate.name())).collect();
        gates.sort();
        gates.dedup();
        format!(
            "something is alive after the query was dropped, perhaps because it holds itself (a \
             cycle of `Arc`s): operators: {}; gates of shared states: {}",
            if parts.is_empty() { "none" } else { &parts },
            if gates.is_empty() { "none".into() } else { gates.join(", ") },
        )
    }
}
