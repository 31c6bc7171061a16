//! The modes: what is done to an operator while it runs.

use std::fmt;

/// What is done to a query's tasks while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing: the control.
    Plain,
    /// Batches of 1 and of 3 rows, between all operators.
    TinyBatches,
    /// Every source, operator, sink and finish blocks and is woken by a foreign thread; those that
    /// wait are also asked before their gate is open.
    Blocking,
    /// One thread picks the next task at random, after every step.
    Seeded,
    /// Memory limits below what the operators reserve: right rows, or a clean out-of-memory error.
    Memory,
    /// One reservation in three is refused, and there is a place to spill to, however little it is.
    Spill,
    /// The query is cancelled at step *k*, for each *k*.
    Cancel,
    /// A call fails at step *k*, for each *k*.
    Error,
    /// A call panics at step *k*, for each *k*.
    Panic,
}

impl Mode {
    /// Every mode, for operators that spill what gets no memory.
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

    /// Every mode that can do something to operators that reserve memory, and cannot spill.
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

    /// Every mode that can do something to operators that reserve no memory.
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

    /// The modes that must end with rows.
    pub fn with_rows() -> &'static [Self] {
        &[Self::Plain, Self::TinyBatches, Self::Blocking, Self::Seeded]
    }

    /// The modes that end queries.
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
