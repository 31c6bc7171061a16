//! Buggy operators that leave something behind: memory, a blocked gate, rows that did not fit.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalOperator, LocalSink, LocalSource, OperatorContext,
        OperatorResult, Reservation, Sink, SinkResult, Source, SourceResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

use super::buggy_operators::{boxed, find};
use crate::harness::{Harness, Mode, numbers};

type MakeLocal = dyn Fn(OperatorContext) -> Box<dyn LocalOperator> + Send + Sync;

/// Operator that reserves memory for each batch. It drops batches that do not fit, or leaks its
/// reservation.
struct Careless {
    reservation: Option<Reservation>,
    drops: bool,
}

impl LocalOperator for Careless {
    fn execute(&mut self, input: Option<Batch>, _task: &DriverContext) -> Result<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        if let Some(reservation) = &mut self.reservation
            && let Err(error) = reservation.grow(100)
        {
            return if self.drops { Ok(OperatorResult::NeedInput) } else { Err(error.into()) };
        }
        Ok(OperatorResult::Batch(batch))
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<OperatorResult> {
        Ok(OperatorResult::Finished)
    }

    fn abort(&mut self) {
        std::mem::forget(self.reservation.take());
    }
}

fn careless(drops: bool) -> impl Fn() -> Box<MakeLocal> {
    move || {
        Box::new(move |context: OperatorContext| {
            boxed(Careless { reservation: Some(context.reservation()), drops })
        })
    }
}

#[test]
fn an_operator_that_drops_what_does_not_fit_into_memory() {
    assert_eq!(find(careless(true), 2, Mode::with_rows()), None);
    let finding = find(careless(true), 2, &[Mode::Memory]).expect("rows are dropped");
    assert!(finding.message.contains("rows are missing"), "{finding}");
    assert!(finding.trial.ends_with("bytes)"), "{finding}");
}

#[test]
fn an_operator_that_keeps_memory_after_the_end() {
    for mode in [Mode::Memory, Mode::Cancel, Mode::Error, Mode::Panic] {
        let finding = find(careless(false), 2, &[mode]).expect("memory is not released");
        assert!(finding.message.contains("bytes are reserved after the end"), "{finding}");
    }
}

/// Breaker whose source waits for a gate that only a finished sink makes ready.
#[derive(Debug)]
struct ForgetsAbort {
    gate: Gate,
    rows: Arc<Mutex<Vec<Batch>>>,
    finished: Arc<AtomicBool>,
}

#[derive(Debug)]
struct ForgetsAbortSink(Arc<ForgetsAbort>);

#[derive(Debug)]
struct ForgetsAbortSource(Arc<ForgetsAbort>);

struct Local(Arc<ForgetsAbort>);

impl Sink for ForgetsAbortSink {
    fn name(&self) -> &str {
        "forgets abort sink"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(Local(self.0.clone())))
    }
}

impl Source for ForgetsAbortSource {
    fn name(&self) -> &str {
        "forgets abort source"
    }

    fn local(&self, _context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(Local(self.0.clone())))
    }
}

impl LocalSink for Local {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        self.0.rows.lock().extend(batch);
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        self.0.finished.store(true, Ordering::Release);
        self.0.gate.set_ready();
        Ok(FinishResult::Done)
    }
}

impl LocalSource for Local {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        if !self.0.finished.load(Ordering::Acquire) {
            return Ok(SourceResult::Blocked(self.0.gate.clone().into()));
        }
        Ok(self.0.rows.lock().pop().map_or(SourceResult::Finished, SourceResult::Batch))
    }
}

#[test]
fn a_breaker_that_leaves_its_gate_shut_when_it_is_aborted() {
    let rows = numbers(0..20, 4);
    let harness = || {
        Harness::breaker(|_case| {
            let state = Arc::new(ForgetsAbort {
                gate: Dependency::blocked("collected", DependencyKind::Source),
                rows: Arc::default(),
                finished: Arc::default(),
            });
            (ForgetsAbortSink(state.clone()), ForgetsAbortSource(state), 1)
        })
        .input(rows.clone())
        .expect_rows(&rows)
        .num_tasks(1..=1)
    };
    harness().check(Mode::with_rows());
    let finding = harness().run(&[Mode::Error]).expect_err("the gate stays blocked");
    assert!(finding.message.contains("gate 'collected' (Source) is still blocked"), "{finding}");
}
