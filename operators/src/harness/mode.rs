//! Modes: the disturbances injected into an operator while it runs.

use std::fmt;

/// Disturbance of a query's tasks while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// No disturbance: the control.
    Plain,
    /// Batches of 1 and of 3 rows between all operators.
    TinyBatches,
    /// Batches whose selections choose half of their rows, between all operators.
    Selections,
    /// Every source, operator, sink and finish call blocks, and another thread wakes it. Waiting
    /// tasks are also called before their gate is ready.
    Blocking,
    /// One thread picks the next task at random, after every step.
    Seeded,
    /// Memory limits below the operators' reservations: correct rows, or a clean out-of-memory
    /// error.
    Memory,
    /// Reservations are denied at random, at most 4 of 16 in a row, and even the smallest can be
    /// spilled.
    Spill,
    /// The result wants *k* rows, for each *k*; after that, no input ends by itself.
    EarlyEnd,
    /// The query is cancelled at step *k*, for each *k*.
    Cancel,
    /// A call fails at step *k*, for each *k*.
    Error,
    /// A call panics at step *k*, for each *k*.
    Panic,
    /// A task is dropped at step *k*, for each *k*, and the query goes on.
    DroppedTask,
}

impl Mode {
    /// Returns every mode, for operators that spill when a reservation is denied.
    pub fn all() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Selections,
            Self::Blocking,
            Self::Seeded,
            Self::Memory,
            Self::Spill,
            Self::EarlyEnd,
            Self::Cancel,
            Self::Error,
            Self::Panic,
            Self::DroppedTask,
        ]
    }

    /// Returns every mode that affects operators that reserve memory and cannot spill.
    pub fn without_spill() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Selections,
            Self::Blocking,
            Self::Seeded,
            Self::Memory,
            Self::EarlyEnd,
            Self::Cancel,
            Self::Error,
            Self::Panic,
            Self::DroppedTask,
        ]
    }

    /// Returns every mode that affects operators that reserve no memory.
    pub fn without_memory() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Selections,
            Self::Blocking,
            Self::Seeded,
            Self::EarlyEnd,
            Self::Cancel,
            Self::Error,
            Self::Panic,
            Self::DroppedTask,
        ]
    }

    /// Returns the modes that must end with rows.
    pub fn with_rows() -> &'static [Self] {
        &[Self::Plain, Self::TinyBatches, Self::Selections, Self::Blocking, Self::Seeded]
    }

    /// Returns the modes that end queries.
    pub fn faults() -> &'static [Self] {
        &[Self::Cancel, Self::Error, Self::Panic, Self::DroppedTask]
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::TinyBatches => "tiny batches",
            Self::Selections => "selections",
            Self::Blocking => "blocking",
            Self::Seeded => "seeded",
            Self::Memory => "memory",
            Self::Spill => "spill",
            Self::EarlyEnd => "early end",
            Self::Cancel => "cancel",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::DroppedTask => "dropped task",
        })
    }
}
