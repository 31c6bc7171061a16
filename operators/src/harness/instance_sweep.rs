//! Sweep over the trials of one mode: its seeds, steps and limits, and the check of each run.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use arrow::array::RecordBatch;
use gatework_runtime::{Error, Result, pipeline::Fault};

use super::{
    Case, Harness, HarnessFailure, Mode, ModeReport, Trial,
    expect::Expected,
    instance::Instance,
    run::{self, RunOutcome},
    shrink,
};

/// Number of steps after which a fault sweep counts as endless.
const MAX_STEPS: u64 = 1_000_000;
/// Number of runs in which a call must be slow to count as slow. A machine may stop a thread once.
const SLOW_RUNS: usize = 3;

/// Trials of one mode.
pub(super) struct InstanceSweep<'a> {
    harness: &'a Harness,
    inputs: Arc<[Vec<RecordBatch>]>,
    mode: Mode,
    trials: u64,
    injections: u64,
}

impl<'a> InstanceSweep<'a> {
    pub(super) fn new(harness: &'a Harness, mode: Mode) -> Self {
        let inputs = harness.inputs.as_slice().into();
        Self { harness, inputs, mode, trials: 0, injections: 0 }
    }

    pub(super) fn report(&self) -> ModeReport {
        ModeReport { mode: self.mode, trials: self.trials, injections: self.injections }
    }

    /// Runs the mode's trials on `num_tasks` tasks.
    pub(super) fn run(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        let seeds = self.harness.seeds.clone();
        match self.mode {
            Mode::Plain => {
                self.try_once(Instance::Plain, num_tasks)?;
            }
            Mode::TinyBatches => {
                for rows in [1, 3] {
                    self.try_once(Instance::TinyBatches { rows }, num_tasks)?;
                }
            }
            Mode::Selections => {
                self.try_once(Instance::Selections, num_tasks)?;
            }
            Mode::Blocking => {
                for seed in seeds {
                    // All calls block, or one in two or three, so that the calls between two blocks
                    // differ.
                    let calls = 1 + (seed % 3) as usize;
                    self.try_once(Instance::Blocking { calls, seed }, num_tasks)?;
                }
            }
            Mode::Seeded => self.try_seeds(num_tasks)?,
            Mode::Memory => self.try_limits(num_tasks)?,
            Mode::Spill => {
                for seed in seeds {
                    self.try_once(Instance::Spill { seed }, num_tasks)?;
                }
            }
            Mode::EarlyEnd => {
                self.sweep(num_tasks, |step| Instance::EarlyEnd { rows: step as usize })?;
            }
            Mode::Cancel => self.sweep_fault(Fault::Cancel, num_tasks)?,
            Mode::Error => self.sweep_fault(Fault::Error, num_tasks)?,
            Mode::Panic => self.sweep_fault(Fault::Panic, num_tasks)?,
            Mode::DroppedTask => self.sweep_fault(Fault::DropTask, num_tasks)?,
        }
        Ok(())
    }

    /// Runs the seeds. Seeds that all lead to the same schedule count as not run.
    fn try_seeds(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        let injections_before = self.injections;
        let mut fingerprints = HashSet::new();
        for seed in self.harness.seeds.clone() {
            let instance = Instance::Seeded { seed };
            let trial = self.try_once(instance, num_tasks)?;
            self.check_slow_calls(instance, num_tasks, trial.slow_calls())?;
            fingerprints.extend(trial.executor().schedule().map(|schedule| schedule.fingerprint));
        }
        let seeds = self.harness.seeds.end.saturating_sub(self.harness.seeds.start);
        if seeds > 1 {
            self.injections = injections_before + fingerprints.len() as u64 - 1;
        }
        Ok(())
    }

    /// Fails if one of the operators with `slow` calls is slow in further runs of the same trial.
    fn check_slow_calls(
        &mut self,
        instance: Instance,
        num_tasks: usize,
        mut slow: BTreeMap<String, Duration>,
    ) -> Result<(), HarnessFailure> {
        for _ in 1..SLOW_RUNS {
            if slow.is_empty() {
                return Ok(());
            }
            let again = self.try_once(instance, num_tasks)?.slow_calls();
            slow.retain(|operator, _| again.contains_key(operator));
        }
        let Some((operator, elapsed)) = slow.pop_first() else { return Ok(()) };
        Err(self.failure(
            self.mode,
            num_tasks,
            format!(
                "a call of {operator} takes {elapsed:.0?}, in which the query can neither be \
                 cancelled nor yield: return `Yield` when `task.should_yield()`, or wait at a gate \
                 for another thread"
            ),
        ))
    }

    /// Runs memory limits from 0 to just below the peak reservation without a limit.
    fn try_limits(&mut self, num_tasks: usize) -> Result<(), HarnessFailure> {
        let trial = self.prepare(Instance::Plain, num_tasks)?;
        let peak = self.observe(&trial, Instance::Plain, num_tasks)?.peak_memory_bytes;
        if peak == 0 {
            return Ok(());
        }
        for limit_bytes in [0, peak / 4, peak / 2, peak - peak / 4, peak - 1] {
            self.try_once(Instance::Memory { limit_bytes }, num_tasks)?;
        }
        Ok(())
    }

    fn sweep_fault(&mut self, fault: Fault, num_tasks: usize) -> Result<(), HarnessFailure> {
        self.sweep(num_tasks, |step| Instance::Fault { fault, step })
    }

    /// Runs the instances of step 0, 1, 2, … until a run ends before it reaches the step.
    fn sweep(
        &mut self,
        num_tasks: usize,
        instance: impl Fn(u64) -> Instance,
    ) -> Result<(), HarnessFailure> {
        for step in (0..MAX_STEPS).step_by(self.harness.stride as usize) {
            if self.try_once(instance(step), num_tasks)?.injections() == 0 {
                return Ok(());
            }
        }
        Err(self.failure(self.mode, num_tasks, format!("no end within {MAX_STEPS} steps")))
    }

    fn try_once(&mut self, instance: Instance, num_tasks: usize) -> Result<Trial, HarnessFailure> {
        let trial = self.prepare(instance, num_tasks)?;
        self.observe(&trial, instance, num_tasks)?;
        self.trials += 1;
        self.injections += trial.injections();
        Ok(trial)
    }

    fn prepare(&self, instance: Instance, num_tasks: usize) -> Result<Trial, HarnessFailure> {
        let trial = instance.trial();
        let trial = trial.map(|trial| match &self.harness.expected {
            Some(Expected::Error(text)) => trial.expecting_error(text),
            _ => trial,
        });
        trial.map_err(|error| self.failure(self.mode, num_tasks, error.to_string()))
    }

    /// Runs a trial and checks its error or its rows.
    fn observe(
        &self,
        trial: &Trial,
        instance: Instance,
        num_tasks: usize,
    ) -> Result<RunOutcome, HarnessFailure> {
        self.outcome(trial, &self.inputs, num_tasks).map_err(|message| {
            let smallest = self.smallest_inputs(instance, num_tasks);
            let message = match smallest {
                Some(inputs) => format!("{message}\nsmallest inputs found: {inputs}"),
                None => message,
            };
            self.failure(trial, num_tasks, message)
        })
    }

    fn outcome(
        &self,
        trial: &Trial,
        inputs: &Arc<[Vec<RecordBatch>]>,
        num_tasks: usize,
    ) -> Result<RunOutcome, String> {
        let case = Case::new(trial, inputs.clone(), num_tasks)
            .with_sink_tasks(self.harness.sink_tasks.unwrap_or(num_tasks));
        let outcome = run::run(trial, &case, &self.harness.build, self.harness.hang_after)?;
        let Some(expected) = &self.harness.expected else {
            return Err("no expected rows: call `expect_rows`".into());
        };
        match (&outcome.error, expected) {
            (Some(error), _) if trial.allows(error) => {}
            (Some(error @ Error::Stalled { .. }), _) if self.mode == Mode::EarlyEnd => {
                return Err(format!(
                    "the query does not end when its result has enough rows: a consumer that is \
                     dropped must make its producers' `closed` gates ready: {error}"
                ));
            }
            (Some(error), _) => return Err(format!("the run failed: {error}")),
            // Nobody reads the rows of a sink that is dropped.
            (None, _) if outcome.collected && self.mode == Mode::DroppedTask => {}
            // A result that wants no more rows may not meet the error.
            (None, Expected::Error(_)) if self.mode == Mode::EarlyEnd => {}
            (None, expected) if self.mode == Mode::EarlyEnd && trial.injections() > 0 => {
                expected.check_part(inputs, num_tasks, &outcome.rows)?;
            }
            (None, expected) => {
                expected.check(inputs, num_tasks, &outcome.rows).map_err(|message| {
                    match self.mode == Mode::DroppedTask && trial.injections() > 0 {
                        true => format!(
                            "a task was dropped before it had finished, but its consumers read \
                             its rows as if they were complete: {message}"
                        ),
                        false => message,
                    }
                })?;
            }
        }
        Ok(outcome)
    }

    /// Describes smaller inputs that fail in the same trial, if their expected rows are known.
    fn smallest_inputs(&self, instance: Instance, num_tasks: usize) -> Option<String> {
        self.harness.expected.as_ref().filter(|expected| expected.is_for_all_inputs())?;
        let inputs = shrink::shrink(self.inputs.to_vec(), |inputs| {
            let inputs = inputs.to_vec().into();
            // The test's own functions may panic over inputs that it did not choose.
            let fails = AssertUnwindSafe(|| {
                let trial = self.prepare(instance, num_tasks);
                trial.is_ok_and(|trial| self.outcome(&trial, &inputs, num_tasks).is_err())
            });
            catch_unwind(fails).unwrap_or(false)
        });
        Some(shrink::describe(&inputs))
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
