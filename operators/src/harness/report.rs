//! Reports and failures of the harness.

use std::fmt;

use super::Mode;

/// Trials and injections of one mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeReport {
    /// Mode of the trials.
    pub mode: Mode,
    /// Number of queries run.
    pub trials: u64,
    /// Number of injections; see [`Trial::injections`](super::Trial::injections). For seeded runs:
    /// the number of different schedules beyond the first, if there are several seeds.
    pub injections: u64,
}

/// Trials and injections of all modes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Modes, in the order in which they were run.
    pub modes: Vec<ModeReport>,
}

impl Report {
    /// Returns the modes without injections, which tested nothing.
    pub fn not_run(&self) -> Vec<Mode> {
        self.modes
            .iter()
            .filter(|report| report.injections == 0)
            .map(|report| report.mode)
            .collect()
    }

    /// Returns the number of injections of `mode`.
    pub fn injections(&self, mode: Mode) -> u64 {
        self.modes.iter().filter(|report| report.mode == mode).map(|report| report.injections).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ModeReport { mode, trials, injections } in &self.modes {
            match injections {
                0 => writeln!(f, "{mode}: not run (no injection in {trials} trials)")?,
                _ => writeln!(f, "{mode}: {trials} trials, {injections} injections")?,
            }
        }
        Ok(())
    }
}

/// Failure of an operator, and how to reproduce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HarnessFailure {
    /// Mode of the failure.
    pub mode: Mode,
    /// Mode with its parameters: seed, step, limit.
    pub trial: String,
    /// Number of tasks of the pipelines.
    pub num_tasks: usize,
    /// Description of the failure.
    pub message: String,
}

impl fmt::Display for HarnessFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} tasks: {}", self.trial, self.num_tasks, self.message)
    }
}

impl std::error::Error for HarnessFailure {}
