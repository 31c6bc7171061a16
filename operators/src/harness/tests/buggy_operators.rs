//! Buggy operators, each caught by the mode that is made for it.

use std::{sync::Arc, thread};

use arrow::compute::concat_batches;
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalOperator, OperatorContext, OperatorResult, StartResult},
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

use super::{Made, pass};
use crate::{
    ResultExt, apply_selection,
    harness::{Harness, HarnessFailure, Mode, numbers},
};

type Slot = Arc<Mutex<Option<Batch>>>;

/// Runs an operator that must pass on 48 rows in 12 batches. `make` creates its tasks' shared
/// state.
pub(super) fn find<F>(
    make: impl Fn() -> F + 'static,
    num_tasks: usize,
    modes: &[Mode],
) -> Option<HarnessFailure>
where
    F: Fn(OperatorContext) -> Box<dyn LocalOperator> + Send + Sync + 'static,
{
    let rows = numbers(0..48, 4);
    Harness::operator(move |_case| Made(make()))
        .input(rows.clone())
        .expect_rows(&rows)
        .num_tasks(num_tasks..=num_tasks)
        .seeds(0..20)
        .run(modes)
        .err()
}

pub(super) fn boxed(local: impl LocalOperator + 'static) -> Box<dyn LocalOperator> {
    Box::new(local)
}

/// Operator that hands each batch to a thread and mistakes any wake-up for its return.
struct TrustsWakeups {
    slot: Slot,
}

impl LocalOperator for TrustsWakeups {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else {
            return Ok(self
                .slot
                .lock()
                .take()
                .map_or(OperatorResult::NeedInput, OperatorResult::Batch));
        };
        let gate = Dependency::blocked("returned", DependencyKind::External);
        let (slot, opened) = (self.slot.clone(), gate.clone());
        thread::spawn(move || {
            *slot.lock() = Some(batch);
            opened.set_ready();
        });
        Ok(OperatorResult::Blocked(gate.into()))
    }
}

#[test]
fn an_operator_that_drops_a_row_when_it_is_woken_too_soon() {
    let make = || |_: OperatorContext| boxed(TrustsWakeups { slot: Slot::default() });
    assert_eq!(find(make, 1, &[Mode::Plain]), None);
    let finding = find(make, 1, &[Mode::Blocking]).expect("a row is dropped");
    assert!(finding.message.contains("rows are missing"), "{finding}");
    assert!(finding.to_string().starts_with("blocking (one in"), "{finding}");
    assert!(finding.to_string().contains("seed "), "{finding}");
}

/// Operator that keeps its batch between two calls in a slot that all tasks share.
struct SharesScratch {
    scratch: Slot,
}

impl LocalOperator for SharesScratch {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else {
            let kept = self.scratch.lock().take();
            return Ok(kept.map_or(OperatorResult::NeedInput, OperatorResult::Batch));
        };
        *self.scratch.lock() = Some(batch);
        let gate = Dependency::ready("yield", DependencyKind::External);
        Ok(OperatorResult::Blocked(gate.into()))
    }
}

#[test]
fn an_operator_whose_tasks_get_in_each_others_way() {
    let make = || {
        let scratch = Slot::default();
        move |_: OperatorContext| boxed(SharesScratch { scratch: scratch.clone() })
    };
    assert_eq!(find(make, 1, &[Mode::Plain, Mode::Blocking]), None, "a single task is right");
    let finding = find(make, 2, &[Mode::Seeded]).expect("a row is dropped");
    assert!(finding.message.contains("rows are missing"), "{finding}");
}

/// Operator whose task 0 waits for task 1 to start, but blocks the gate after task 1 may have made
/// it ready.
struct LosesWakeup {
    gate: Gate,
    task_index: usize,
}

impl LocalOperator for LosesWakeup {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        if self.task_index == 1 {
            self.gate.set_ready();
        }
        Ok(if self.gate.is_ready() {
            StartResult::Ready
        } else {
            StartResult::Blocked(self.gate.clone().into())
        })
    }

    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
    }
}

#[test]
fn an_operator_that_loses_a_wake_up() {
    let make = || {
        let gate = Dependency::blocked("task 1 has started", DependencyKind::Start);
        move |context: OperatorContext| {
            if context.task_index() == 0 {
                gate.block();
            }
            boxed(LosesWakeup { gate: gate.clone(), task_index: context.task_index() })
        }
    };
    let finding = find(make, 2, &[Mode::Seeded]).expect("task 0 waits forever");
    assert!(finding.message.contains("the query has stalled"), "{finding}");
    assert!(finding.message.contains("waits for task 1 has started"), "{finding}");
}

/// Operator that returns its collected rows each time `finish` is called.
#[derive(Default)]
struct FinishesTwice {
    collected: Vec<Batch>,
    calls: usize,
}

impl LocalOperator for FinishesTwice {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        self.collected.extend(input);
        Ok(OperatorResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        self.calls += 1;
        let Some(first) = self.collected.first().filter(|_| self.calls <= 2) else {
            return Ok(OperatorResult::Finished);
        };
        let schema = first.data().schema();
        let batches = self.collected.iter().map(Batch::data);
        Ok(OperatorResult::HaveMoreOutput(Batch::new(
            concat_batches(&schema, batches).query_err()?,
        )))
    }
}

#[test]
fn an_operator_that_finishes_twice() {
    let make = || |_: OperatorContext| boxed(FinishesTwice::default());
    let finding = find(make, 1, &[Mode::Plain]).expect("rows are doubled");
    assert!(finding.message.contains("48 of 96 are unexpected"), "{finding}");
}

/// Operator that drops the first row of each batch with fewer than four rows.
struct CountsOnSize;

impl LocalOperator for CountsOnSize {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let data = apply_selection(batch)?;
        let first = usize::from(data.num_rows() < 4);
        let rest = data.slice(first, data.num_rows() - first);
        Ok(OperatorResult::Batch(Batch::new(rest)))
    }
}

#[test]
fn an_operator_that_counts_on_the_size_of_batches() {
    let make = || |_: OperatorContext| boxed(CountsOnSize);
    assert_eq!(find(make, 2, &[Mode::Plain]), None);
    let finding = find(make, 2, &[Mode::TinyBatches]).expect("rows are dropped");
    assert_eq!((finding.mode, finding.num_tasks), (Mode::TinyBatches, 2));
}

#[test]
fn a_graph_without_a_result() {
    let finding = Harness::graph(|_case| Ok(gatework_runtime::pipeline::Graph::new()))
        .run(&[Mode::Plain])
        .expect_err("the graph has no result");
    assert!(finding.message.contains("case.result"), "{finding}");
}

#[test]
fn an_error_that_nobody_threw() {
    let finding = Harness::operator(pass)
        .input(numbers(0..4, 4))
        .expect_with(|_| Err("by the check".into()))
        .run(&[Mode::Plain])
        .expect_err("the check fails");
    assert_eq!(finding.to_string(), "plain with 1 tasks: by the check");
}
