//! Buggy operators that ignore selections, take long in a call, or fail where they should not; and
//! what the harness can expect beside rows.

use std::{fs, sync::Arc, thread, time::Duration};

use arrow::{array::RecordBatch, compute::concat_batches};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalOperator, LocalSink, LocalSource, OperatorContext,
        OperatorResult, PerTask, SinkResult, SourceResult,
    },
};
use parking_lot::Mutex;

use super::{
    Made,
    buggy_operators::{boxed, find},
};
use crate::{
    apply_selection,
    harness::{Harness, Mode, contexts, huge_texts, numbers, numbers_with_nulls, skewed_numbers},
};

/// Operator that passes on all rows of a batch, selected or not.
struct IgnoresSelections;

impl LocalOperator for IgnoresSelections {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(input.map_or(OperatorResult::NeedInput, |batch| {
            OperatorResult::Batch(Batch::new(batch.data().clone()))
        }))
    }
}

#[test]
fn an_operator_that_ignores_selections() {
    let make = || |_: OperatorContext| boxed(IgnoresSelections);
    assert_eq!(find(make, 2, &[Mode::Plain, Mode::TinyBatches]), None);
    let finding = find(make, 1, &[Mode::Selections]).expect("rows are doubled");
    assert!(finding.message.contains("48 of 96 are unexpected"), "{finding}");
}

/// Operator that blocks its thread, or computes, in one call.
struct TakesLong {
    sleeps: bool,
}

impl LocalOperator for TakesLong {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        if batch.sequence() == 0 {
            if self.sleeps {
                thread::sleep(Duration::from_millis(200));
            }
            let started = processor_time();
            while !self.sleeps && processor_time() < started + Duration::from_millis(200) {
                std::hint::spin_loop();
            }
        }
        Ok(OperatorResult::Batch(batch))
    }
}

/// The time for which this thread has run, however busy the machine is.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
#[cfg(target_os = "linux")]
fn an_operator_with_a_call_of_200_ms() {
    for sleeps in [false, true] {
        let make = move || move |_: OperatorContext| boxed(TakesLong { sleeps });
        let finding = find(make, 1, &[Mode::Seeded]).expect("a call is slow");
        assert!(finding.message.contains("a call of made takes"), "{finding}");
    }
}

/// Source of one row per task.
struct OneRow(Option<RecordBatch>);

impl LocalSource for OneRow {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        let batch = self.0.take().map(Batch::new);
        Ok(batch.map_or(SourceResult::Finished, SourceResult::Batch))
    }
}

#[test]
fn rows_that_depend_on_the_number_of_tasks() {
    let rows = |tasks: usize| numbers(0..tasks as i64, 1);
    Harness::source(move |case| {
        let rows = rows(case.num_tasks());
        PerTask::new("one row", rows.into_iter().map(|row| OneRow(Some(row))))
    })
    .expect_rows_of_tasks(rows)
    .num_tasks(2..=3)
    .check(Mode::without_memory());
}

/// Operator that refuses a number.
struct Refuses;

impl LocalOperator for Refuses {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let rows = apply_selection(batch)?;
        match super::rows_of(std::slice::from_ref(&rows)).unwrap().contains(&vec![47_i64.into()]) {
            true => Err(Error::operator("47 is refused")),
            false => Ok(OperatorResult::Batch(rows.into())),
        }
    }
}

#[test]
fn an_error_that_is_expected() {
    let harness = |input| {
        Harness::operator(|_case| Made(|_: OperatorContext| boxed(Refuses)))
            .input(input)
            .expect_error("47 is refused")
    };
    harness(numbers(0..48, 4)).check(Mode::without_memory());
    let finding = harness(numbers(0..47, 4)).run(&[Mode::Plain]).expect_err("no error");
    assert!(finding.message.contains("did not fail with '47 is refused'"), "{finding}");
}

/// Sink that keeps its rows until its end, and then adds them to those of all tasks.
struct Keeps {
    own: Vec<Batch>,
    all: Arc<Mutex<Vec<RecordBatch>>>,
    /// Number of batches after which the sink forgets the earlier ones.
    forgets_after: usize,
}

impl LocalSink for Keeps {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        if self.own.len() >= self.forgets_after {
            self.own.clear();
        }
        self.own.extend(batch);
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        for batch in self.own.drain(..) {
            self.all.lock().push(apply_selection(batch)?);
        }
        Ok(FinishResult::Done)
    }
}

fn keeps(forgets_after: usize, input: Vec<RecordBatch>) -> Harness {
    Harness::sink(move |case| {
        let all = Arc::new(Mutex::new(Vec::new()));
        let keep = |_| Keeps { own: Vec::new(), all: all.clone(), forgets_after };
        let sink = PerTask::new("keep", (0..case.num_tasks()).map(keep));
        (sink, move || std::mem::take(&mut *all.lock()))
    })
    .input(input)
    .expect_model(|inputs| inputs[0].clone())
}

/// A model that cannot do without rows does not hide the failure.
#[test]
fn a_model_that_panics_over_smaller_inputs() {
    let finding = Harness::operator(|_case| Made(|_: OperatorContext| boxed(Refuses)))
        .input(numbers(40..48, 4))
        .expect_model(|inputs| vec![concat_batches(&inputs[0][0].schema(), &inputs[0]).unwrap()])
        .run(&[Mode::Plain])
        .expect_err("47 is refused");
    assert!(
        finding.message.contains("smallest inputs found: input 0, 1 batches: (47)"),
        "{finding}"
    );
}

/// Inputs without batches and with NULLs, in all modes that can do something with them.
#[test]
fn inputs_without_batches_and_with_nulls() {
    keeps(usize::MAX, Vec::new()).check(&[Mode::Plain, Mode::TinyBatches, Mode::Selections]);
    keeps(usize::MAX, Vec::new()).check(&[Mode::EarlyEnd]);
    keeps(usize::MAX, numbers_with_nulls(40, 4)).check(Mode::without_memory());
}

#[test]
fn a_sink_at_the_end_of_its_graph() {
    keeps(usize::MAX, numbers(0..40, 4)).check(Mode::without_memory());
    keeps(usize::MAX, skewed_numbers(40, 4)).check(Mode::with_rows());
    keeps(usize::MAX, huge_texts(12, 4, 1 << 16)).check(Mode::with_rows());
}

#[test]
fn what_fails_is_shrunk() {
    let finding =
        keeps(3, numbers(0..40, 4)).num_tasks(1..=1).run(&[Mode::Plain]).expect_err("rows lost");
    assert!(finding.message.contains("rows are missing"), "{finding}");
    // Four morsels of one row each.
    assert!(finding.message.contains("smallest inputs found: input 0, 4 batches: ("), "{finding}");
}

#[test]
fn a_local_state_that_a_unit_test_calls_itself() {
    let (context, task) = contexts().unwrap();
    assert_eq!((context.task_index(), context.num_tasks()), (0, 1));
    let mut local = boxed(IgnoresSelections);
    let rows = numbers(0..8, 8).remove(0);
    let OperatorResult::Batch(batch) = local.execute(Some(rows.clone().into()), &task).unwrap()
    else {
        panic!("no rows");
    };
    assert_eq!(concat_batches(&rows.schema(), [batch.data()]).unwrap(), rows);
}
