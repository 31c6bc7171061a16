//! The four ways in which sink tasks and source tasks can meet, as typed sets of gates.
//!
//! Source gates start shut (there is nothing to read), sink gates start open (there is room).

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
            /// Gates named after `name`, the breaker they belong to.
            pub fn new(name: &str $(, $arg: usize)*) -> Self {
                Self { sinks: gates($sinks, sink, name), sources: gates($sources, source, name) }
            }

            /// All sink gates, by sink instance.
            pub fn sinks(&self) -> &[Gate] {
                &self.sinks
            }

            /// All source gates, by source instance.
            pub fn sources(&self) -> &[Gate] {
                &self.sources
            }

            /// Opens every gate for ever: the protocol is over.
            pub fn set_always_ready_all(&self, wakeups: &mut Wakeups) {
                for gate in self.sinks.iter().chain(self.sources.iter()) {
                    gate.set_always_ready_deferred(wakeups);
                }
            }
        }
    };
}

cardinality!(
    /// One sink task, one source task: a breaker that stays within an instance.
    OneToOne(), 1, 1
);
cardinality!(
    /// One sink task, several source tasks, each with a gate and a position of its own.
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
    /// The sink's gate.
    pub fn sink(&self) -> &Gate {
        &self.sinks[0]
    }

    /// The source's gate.
    pub fn source(&self) -> &Gate {
        &self.sources[0]
    }
}

impl OneToMany {
    /// The sink's gate.
    pub fn sink(&self) -> &Gate {
        &self.sinks[0]
    }

    /// The gate of source `task_index`.
    pub fn source(&self, task_index: usize) -> &Gate {
        &self.sources[task_index]
    }
}

impl ManyToOne {
    /// The gate of sink `task_index`.
    pub fn sink(&self, task_index: usize) -> &Gate {
        &self.sinks[task_index]
    }

    /// The source's gate.
    pub fn source(&self) -> &Gate {
        &self.sources[0]
    }
}

impl ManyToMany {
    /// Several sink tasks whose sources are read outside the executor: its tasks wait for those as they wait
    /// for I/O.
    pub fn with_external_readers(name: &str, sinks: usize, sources: usize) -> Self {
        let reader =
            |name: &str| Dependency::ready(format!("{name} reader"), DependencyKind::External);
        Self { sinks: gates(sinks, reader, name), sources: gates(sources, source, name) }
    }

    /// The gate of sink `task_index`.
    pub fn sink(&self, task_index: usize) -> &Gate {
        &self.sinks[task_index]
    }

    /// The gate of source `task_index`.
    pub fn source(&self, task_index: usize) -> &Gate {
        &self.sources[task_index]
    }
}
