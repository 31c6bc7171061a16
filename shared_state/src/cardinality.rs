//! The four cardinalities of producer and consumer tasks, as typed sets of gates.
//!
//! Source gates start blocked (no item to read), sink gates start ready (there is capacity).

use crate::{Dependency, DependencyKind, Gate, Wakeups};

fn source(name: &str) -> Gate {
    Dependency::blocked(format!("{name} source"), DependencyKind::Source)
}

fn sink(name: &str) -> Gate {
    Dependency::ready(format!("{name} sink"), DependencyKind::Sink)
}

fn gates(count: usize, gate: impl Fn(&str) -> Gate, name: &str) -> Box<[Gate]> {
    if count == 1 {
        return Box::new([gate(name)]);
    }
    (0..count).map(|task_index| gate(&format!("{name} [{task_index}]"))).collect()
}

macro_rules! cardinality {
    ($(#[$doc:meta])* $name:ident ( $($arg:ident),* ), $sinks:expr, $sources:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            sinks: Box<[Gate]>,
            sources: Box<[Gate]>,
        }

        impl $name {
            /// Creates gates named after `name`, the breaker to which they belong.
            pub fn new(name: &str $(, $arg: usize)*) -> Self {
                Self { sinks: gates($sinks, sink, name), sources: gates($sources, source, name) }
            }

            /// Returns all sink gates, by task index.
            pub fn sinks(&self) -> &[Gate] {
                &self.sinks
            }

            /// Returns all source gates, by task index.
            pub fn sources(&self) -> &[Gate] {
                &self.sources
            }

            /// Marks all gates always ready. Called once, when the state finishes or aborts.
            pub fn set_always_ready_all(&self, wakeups: &mut Wakeups) {
                for gate in self.sinks.iter().chain(self.sources.iter()) {
                    gate.set_always_ready_deferred(wakeups);
                }
            }
        }
    };
}

cardinality!(
    /// One sink task and one source task of the same task index.
    OneToOne(), 1, 1
);
cardinality!(
    /// One sink task and several source tasks, each with its own gate and position.
    OneToMany(sources), 1, sources
);
cardinality!(
    /// Several sink tasks, one source task.
    ManyToOne(sinks), sinks, 1
);
cardinality!(
    /// Several sink tasks, several source tasks.
    ManyToMany(sinks, sources), sinks, sources
);

impl OneToOne {
    /// Returns the sink's gate.
    pub fn sink(&self) -> &Gate {
        &self.sinks[0]
    }

    /// Returns the source's gate.
    pub fn source(&self) -> &Gate {
        &self.sources[0]
    }
}

impl OneToMany {
    /// Returns the sink's gate.
    pub fn sink(&self) -> &Gate {
        &self.sinks[0]
    }

    /// Returns the gate of source `task_index`.
    pub fn source(&self, task_index: usize) -> &Gate {
        &self.sources[task_index]
    }
}

impl ManyToOne {
    /// Returns the gate of sink `task_index`.
    pub fn sink(&self, task_index: usize) -> &Gate {
        &self.sinks[task_index]
    }

    /// Returns the source's gate.
    pub fn source(&self) -> &Gate {
        &self.sources[0]
    }
}

impl ManyToMany {
    /// Creates gates for several sink tasks whose sources are read outside the executor. The sink
    /// tasks wait at gates of kind `External`, as they do for I/O.
    pub fn with_external_readers(name: &str, sinks: usize, sources: usize) -> Self {
        let reader =
            |name: &str| Dependency::ready(format!("{name} reader"), DependencyKind::External);
        Self { sinks: gates(sinks, reader, name), sources: gates(sources, source, name) }
    }

    /// Returns the gate of sink `task_index`.
    pub fn sink(&self, task_index: usize) -> &Gate {
        &self.sinks[task_index]
    }

    /// Returns the gate of source `task_index`.
    pub fn source(&self, task_index: usize) -> &Gate {
        &self.sources[task_index]
    }
}
