//! Sweep over the trials of one mode: its seeds, steps and limits, and the check of each run.

use std::{collections::HashSet, fmt, sync::Arc};

use arrow::array::RecordBatch;
use gatework_runtime::{Result, pipeline::Fault};

use super::{
    Case, Harness, HarnessFailure, Mode, ModeReport, Trial,
    run::{self, RunOutcome},
};

/// Number of steps after which a fault sweep counts as endless.
const MAX_STEPS: u64 = 1_000_000;

/// Trials of one mode.
pub(super) struct InstanceSweep<'a> {
    harness: &'a Harness,
    inputs: &'a Arc<[Vec<RecordBatch>]>,
    mode: Mode,
    trials: u64,
    injections: u64,
}

impl<'a> InstanceSweep<'a> {
    pub(super) fn new(
        harness: &'a Harness,
        inputs: &'a Arc<[Vec<RecordBatch>]>,
        mode: Mode,
    ) -> Self {
        Self { harness, inputs, mode, trials: 0, injections: 0 }
    }

    pub(super) fn report(&self) -> ModeReport {
        ModeReport { mode: self.mode, trials: self.trials, injections: self.injections }
    }

    /// Runs the mode's trials on `num_tasks` tasks.
    pub(super) fn run(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        match self.mode {
            Mode::Plain => {
                self.try_once(Trial::plain(), num_tasks)?;
            }
            Mode::TinyBatches => {
                for rows in [1, 3] {
                    self.try_once(Trial::tiny_batches(rows), num_tasks)?;
                }
            }
            Mode::Blocking => {
                for seed in self.harness.seeds.clone() {
                    // All calls block, or one in two or three, so that the calls between two blocks
                    // differ.
                    let calls = 1 + (seed % 3) as usize;
                    self.try_once(Trial::blocking(calls, seed), num_tasks)?;
                }
            }
            Mode::Seeded => self.try_seeds(num_tasks)?,
            Mode::Memory => self.try_limits(num_tasks)?,
            Mode::Spill => {
                for seed in self.harness.seeds.clone() {
                    self.try_once(Trial::spill(seed), num_tasks)?;
                }
            }
            Mode::Cancel => self.sweep(Fault::Cancel, num_tasks)?,
            Mode::Error => self.sweep(Fault::Error, num_tasks)?,
            Mode::Panic => self.sweep(Fault::Panic, num_tasks)?,
        }
        Ok(())
    }

    /// Runs the seeds. Seeds that all lead to the same schedule count as not run.
    fn try_seeds(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        let injections_before = self.injections;
        let mut fingerprints = HashSet::new();
        for seed in self.harness.seeds.clone() {
            let trial = self.try_once(Trial::seeded(seed), num_tasks)?;
            fingerprints.extend(trial.executor().schedule().map(|schedule| schedule.fingerprint));
        }
        let seeds = self.harness.seeds.end.saturating_sub(self.harness.seeds.start);
        if seeds > 1 {
            self.injections = injections_before + fingerprints.len() as u64 - 1;
        }
        Ok(())
    }

    /// Runs memory limits from 0 to just below the peak reservation without a limit.
    fn try_limits(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        let trial = self.prepare(Trial::plain(), num_tasks)?;
        let peak = self.observe(&trial, num_tasks)?.peak_memory_bytes;
        if peak == 0 {
            return Ok(());
        }
        for limit in [0, peak / 4, peak / 2, peak - peak / 4, peak - 1] {
            self.try_once(Trial::memory(limit), num_tasks)?;
        }
        Ok(())
    }

    /// Injects `fault` at step 0, 1, 2, … until a run ends before it reaches the step.
    fn sweep(&mut self, fault: Fault, num_tasks: usize) -> Result<(), HarnessFailure> {
        for step in (0..MAX_STEPS).step_by(self.harness.stride as usize) {
            if self.try_once(Trial::fault(fault, step), num_tasks)?.injections() == 0 {
                return Ok(());
            }
        }
        Err(self.failure(self.mode, num_tasks, format!("no end within {MAX_STEPS} steps")))
    }

    fn try_once(
        &mut self,
        trial: Result<Trial>,
        num_tasks: usize,
    ) -> Result<Trial, HarnessFailure> {
        let trial = self.prepare(trial, num_tasks)?;
        self.observe(&trial, num_tasks)?;
        self.trials += 1;
        self.injections += trial.injections();
        Ok(trial)
    }

    fn prepare(&self, trial: Result<Trial>, num_tasks: usize) -> Result<Trial, HarnessFailure> {
        trial.map_err(|error| self.failure(self.mode, num_tasks, error.to_string()))
    }

    /// Runs a trial and checks its error or its rows.
    fn observe(&self, trial: &Trial, num_tasks: usize) -> Result<RunOutcome, HarnessFailure> {
        let case = Case::new(trial, self.inputs.clone(), num_tasks);
        let failure = |what| self.failure(trial, num_tasks, what);
        let outcome = run::run(trial, &case, &self.harness.build, self.harness.hang_after)
            .map_err(failure)?;
        match (&outcome.error, &self.harness.expected) {
            (Some(error), _) if trial.allows(error) => {}
            (Some(error), _) => return Err(failure(format!("the run failed: {error}"))),
            (None, Some(check)) => check(&outcome.rows).map_err(failure)?,
            (None, None) => return Err(failure("no expected rows: call `expect_rows`".into())),
        }
        Ok(outcome)
    }

    fn failure(
        &self,
        trial: impl fmt::Display,
        num_tasks: usize,
        message: String,
    ) -> HarnessFailure {
        HarnessFailure { mode: self.mode, trial: trial.to_string(), num_tasks, message }
    }
}
