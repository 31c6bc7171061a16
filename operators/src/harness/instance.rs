//! One way to run a case: a mode and its parameters, from which a trial can be made again.

use gatework_runtime::{Result, pipeline::Fault};

use super::Trial;

/// A mode with its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instance {
    Plain,
    TinyBatches { rows: usize },
    Selections,
    Blocking { calls: usize, seed: u64 },
    Seeded { seed: u64 },
    Memory { limit_bytes: usize },
    Spill { seed: u64 },
    EarlyEnd { rows: usize },
    Fault { fault: Fault, step: u64 },
}

impl Instance {
    pub(super) fn trial(self) -> Result<Trial> {
        match self {
            Self::Plain => Trial::plain(),
            Self::TinyBatches { rows } => Trial::tiny_batches(rows),
            Self::Selections => Trial::selections(),
            Self::Blocking { calls, seed } => Trial::blocking(calls, seed),
            Self::Seeded { seed } => Trial::seeded(seed),
            Self::Memory { limit_bytes } => Trial::memory(limit_bytes),
            Self::Spill { seed } => Trial::spill(seed),
            Self::EarlyEnd { rows } => Trial::early_end(rows),
            Self::Fault { fault, step } => Trial::fault(fault, step),
        }
    }
}
