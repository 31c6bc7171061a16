//! The trials of one mode: which numbers (seeds, steps, limits) it is run with, and the verdict.

use std::{collections::HashSet, fmt, sync::Arc};

use arrow::array::RecordBatch;
use gatework_runtime::{Result, pipeline::Fault};

use super::{
    Case, Finding, Harness, Mode, ModeReport, Trial,
    run::{self, Ended},
};

/// A sweep over steps that has not come to an end by then never will.
const MOST_STEPS: u64 = 1_000_000;

/// The trials of one mode.
pub(super) struct Series<'a> {
    harness: &'a Harness,
    inputs: &'a Arc<[Vec<RecordBatch>]>,
    mode: Mode,
    trials: u64,
    acts: u64,
}

impl<'a> Series<'a> {
    pub(super) fn new(
        harness: &'a Harness,
        inputs: &'a Arc<[Vec<RecordBatch>]>,
        mode: Mode,
    ) -> Self {
        Self { harness, inputs, mode, trials: 0, acts: 0 }
    }

    pub(super) fn report(&self) -> ModeReport {
        ModeReport { mode: self.mode, trials: self.trials, acts: self.acts }
    }

    /// Runs the mode's trials on `instances` tasks.
    pub(super) fn run(&mut self, instances: usize) -> Result<(), Finding> {
        match self.mode {
            Mode::Plain => {
                self.try_once(Trial::plain(), instances)?;
            }
            Mode::TinyBatches => {
                for rows in [1, 3] {
                    self.try_once(Trial::tiny_batches(rows), instances)?;
                }
            }
            Mode::Blocking => {
                for seed in self.harness.seeds.clone() {
                    // All calls, or one in two or three, so that runs between blocks differ.
                    let calls = 1 + (seed % 3) as usize;
                    self.try_once(Trial::blocking(calls, seed), instances)?;
                }
            }
            Mode::Seeded => self.try_seeds(instances)?,
            Mode::Memory => self.try_limits(instances)?,
            Mode::Spill => {
                for seed in self.harness.seeds.clone() {
                    self.try_once(Trial::spill(seed), instances)?;
                }
            }
            Mode::Cancel => self.sweep(Fault::Cancel, instances)?,
            Mode::Error => self.sweep(Fault::Error, instances)?,
            Mode::Panic => self.sweep(Fault::Panic, instances)?,
        }
        Ok(())
    }

    /// Seeds that all lead to the same schedule have not run.
    fn try_seeds(&mut self, instances: usize) -> Result<(), Finding> {
        let acts_before = self.acts;
        let mut fingerprints = HashSet::new();
        for seed in self.harness.seeds.clone() {
            let trial = self.try_once(Trial::seeded(seed), instances)?;
            fingerprints.extend(trial.executor().schedule().map(|made| made.fingerprint));
        }
        let seeds = self.harness.seeds.end.saturating_sub(self.harness.seeds.start);
        if seeds > 1 {
            self.acts = acts_before + fingerprints.len() as u64 - 1;
        }
        Ok(())
    }

    /// Limits from nothing to just below what the query reserves without a limit.
    fn try_limits(&mut self, instances: usize) -> Result<(), Finding> {
        let trial = self.prepare(Trial::plain(), instances)?;
        let peak = self.observe(&trial, instances)?.peak_memory_bytes;
        if peak == 0 {
            return Ok(());
        }
        for limit in [0, peak / 4, peak / 2, peak - peak / 4, peak - 1] {
            self.try_once(Trial::memory(limit), instances)?;
        }
        Ok(())
    }

    /// Throws `fault` at step 0, 1, 2, … until a run ends before it reaches the step.
    fn sweep(&mut self, fault: Fault, instances: usize) -> Result<(), Finding> {
        for step in (0..MOST_STEPS).step_by(self.harness.stride as usize) {
            if self.try_once(Trial::fault(fault, step), instances)?.acts() == 0 {
                return Ok(());
            }
        }
        Err(self.finding(self.mode, instances, format!("it made {MOST_STEPS} steps without end")))
    }

    fn try_once(&mut self, trial: Result<Trial>, instances: usize) -> Result<Trial, Finding> {
        let trial = self.prepare(trial, instances)?;
        self.observe(&trial, instances)?;
        self.trials += 1;
        self.acts += trial.acts();
        Ok(trial)
    }

    fn prepare(&self, trial: Result<Trial>, instances: usize) -> Result<Trial, Finding> {
        trial.map_err(|error| self.finding(self.mode, instances, error.to_string()))
    }

    /// Runs a trial and judges how it ended.
    fn observe(&self, trial: &Trial, instances: usize) -> Result<Ended, Finding> {
        let case = Case::new(trial, self.inputs.clone(), instances);
        let finding = |what| self.finding(trial, instances, what);
        let ended = run::run(trial, &case, &self.harness.build, self.harness.hang_after)
            .map_err(finding)?;
        match (&ended.error, &self.harness.expected) {
            (Some(error), _) if trial.allows(error) => {}
            (Some(error), _) => return Err(finding(format!("it failed: {error}"))),
            (None, Some(check)) => check(&ended.rows).map_err(finding)?,
            (None, None) => return Err(finding("state the rows to expect".into())),
        }
        Ok(ended)
    }

    fn finding(&self, trial: impl fmt::Display, instances: usize, what: String) -> Finding {
        Finding { mode: self.mode, trial: trial.to_string(), instances, what }
    }
}
