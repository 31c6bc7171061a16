//! What the harness says in the end.

use std::fmt;

use super::Mode;

/// What one mode did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeReport {
    /// The mode.
    pub mode: Mode,
    /// Queries that were run.
    pub trials: u64,
    /// How often the mode did something; see [`Trial::injections`](super::Trial::injections). For seeded runs,
    /// how many different schedules there were, where seeds were to differ.
    pub injections: u64,
}

/// What all modes did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The modes, in the order in which they were run.
    pub modes: Vec<ModeReport>,
}

impl Report {
    /// Modes that did nothing, so that they say nothing about the operator.
    pub fn not_run(&self) -> Vec<Mode> {
        self.modes
            .iter()
            .filter(|report| report.injections == 0)
            .map(|report| report.mode)
            .collect()
    }

    /// How often `mode` did something.
    pub fn injections(&self, mode: Mode) -> u64 {
        self.modes.iter().filter(|report| report.mode == mode).map(|report| report.injections).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ModeReport { mode, trials, injections } in &self.modes {
            match injections {
                0 => writeln!(f, "{mode}: not run (it did nothing in {trials} trials)")?,
                _ => writeln!(f, "{mode}: {trials} trials, {injections} injections")?,
            }
        }
        Ok(())
    }
}

/// What is wrong with an operator, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HarnessFailure {
    /// The mode it was found in.
    pub mode: Mode,
    /// The mode with its numbers: seed, step, limit.
    pub trial: String,
    /// How many tasks the pipelines had.
    pub num_tasks: usize,
    /// What was wrong.
    pub message: String,
}

impl fmt::Display for HarnessFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} tasks: {}", self.trial, self.num_tasks, self.message)
    }
}

impl std::error::Error for HarnessFailure {}
