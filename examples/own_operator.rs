//! A user-defined breaker (N:1) that sums a column: operators, shared state and unit test.
//! `cargo run --release --example own_operator`; `cargo test --release --example own_operator`

use arrow::{array::AsArray, compute::sum, datatypes::Int64Type};
use gatework::operators::{apply_selection, harness::*};
use gatework::runtime::{Error, Result, pipeline::*};
use gatework::shared_state::{ManyToOne, Wakeups, sync::Mutex};
use std::{mem::replace, sync::Arc};

/// The shared state: gates, the total (`None` after an aborted sink), the number of open sinks.
#[derive(Debug)]
struct Total(ManyToOne, Mutex<(Option<i64>, usize)>);

impl Total {
    fn producer_done(&self, sum: Option<i64>) {
        let mut wakeups = Wakeups::new(); // Declared before the lock, so that wakers run after it.
        let (total, remaining_sinks) = &mut *self.1.lock();
        *total = total.zip(sum).map(|(total, sum)| total + sum);
        *remaining_sinks -= 1;
        if *remaining_sinks == 0 || total.is_none() {
            self.0.set_always_ready_all(&mut wakeups);
        }
    }
}

/// One task's producer token and its sum. Aborts the total if it is dropped unfinished.
#[derive(Debug)]
struct Adder(Option<Arc<Total>>, i64);

impl LocalSink for Adder {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.1 +=
                sum(apply_selection(batch)?.column(0).as_primitive::<Int64Type>()).unwrap_or(0);
        }
        Ok(SinkResult::NeedInput)
    }
    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        self.0.take().inspect(|total| total.producer_done(Some(self.1)));
        Ok(FinishResult::Done)
    }
}
impl Drop for Adder {
    fn drop(&mut self) {
        self.0.take().inspect(|total| total.producer_done(None));
    }
}

/// The consumer token of the total, and whether the total was read.
#[derive(Debug)]
struct Reader(Arc<Total>, bool);

impl LocalSource for Reader {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        Ok(match *self.0.1.lock() {
            (None, _) => return Err(Error::ProducerAborted),
            (_, 1..) => SourceResult::Blocked(self.0.0.source().clone().into()),
            (_, 0) if replace(&mut self.1, true) => SourceResult::Finished,
            (Some(total), 0) => SourceResult::Batch(numbers(total..total + 1, 1).remove(0).into()),
        })
    }
}

/// The sink or source of a pipeline; it hands each task its local state.
#[derive(Debug)]
struct SumOperator<T>(PerTask<T>);

impl Sink for SumOperator<Adder> {
    fn name(&self) -> &str {
        "sum sink"
    }
    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        Ok(Box::new(self.0.take(&context)?))
    }
}
impl Source for SumOperator<Reader> {
    fn name(&self) -> &str {
        "sum source"
    }
    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        Ok(Box::new(self.0.take(&context)?))
    }
}

fn sum_of_column(case: &Case) -> (SumOperator<Adder>, SumOperator<Reader>, usize) {
    let sinks = case.num_tasks();
    let total = Arc::new(Total(ManyToOne::new("sum", sinks), Mutex::new((Some(0), sinks))));
    let adders: Vec<_> = (0..sinks).map(|_| Adder(Some(total.clone()), 0)).collect();
    (SumOperator(PerTask::new(adders)), SumOperator(PerTask::new([Reader(total, false)])), 1)
}

#[test]
fn adds_up_in_every_mode() {
    main();
}

fn main() {
    let harness = Harness::breaker(sum_of_column).input(numbers(0..100, 8));
    eprintln!("{}", harness.expect_rows(&numbers(4950..4951, 1)).check(Mode::without_memory()));
}
