//! Modes: the disturbances injected into an operator while it runs.

use std::fmt;

/// Disturbance of a query's tasks while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// No disturbance: the control.
    Plain,
    /// Batches of 1 and of 3 rows between all operators.
    TinyBatches,
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
    /// The query is cancelled at step *k*, for each *k*.
    Cancel,
    /// A call fails at step *k*, for each *k*.
    Error,
    /// A call panics at step *k*, for each *k*.
    Panic,
}

impl Mode {
    /// Returns every mode, for operators that spill when a reservation is denied.
    pub fn all() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Blocking,
            Self::Seeded,
            Self::Memory,
            Self::Spill,
            Self::Cancel,
            Self::Error,
            Self::Panic,
        ]
    }

    /// Returns every mode that affects operators that reserve memory and cannot spill.
    pub fn without_spill() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Blocking,
            Self::Seeded,
            Self::Memory,
            Self::Cancel,
            Self::Error,
            Self::Panic,
        ]
    }

    /// Returns every mode that affects operators that reserve no memory.
    pub fn without_memory() -> &'static [Self] {
        &[
            Self::Plain,
            Self::TinyBatches,
            Self::Blocking,
            Self::Seeded,
            Self::Cancel,
            Self::Error,
            Self::Panic,
        ]
    }

    /// Returns the modes that must end with rows.
    pub fn with_rows() -> &'static [Self] {
        &[Self::Plain, Self::TinyBatches, Self::Blocking, Self::Seeded]
    }

    /// Returns the modes that end queries.
    pub fn faults() -> &'static [Self] {
        &[Self::Cancel, Self::Error, Self::Panic]
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::TinyBatches => "tiny batches",
            Self::Blocking => "blocking",
            Self::Seeded => "seeded",
            Self::Memory => "memory",
            Self::Spill => "spill",
            Self::Cancel => "cancel",
            Self::Error => "error",
            Self::Panic => "panic",
        })
    }
}
