//! A breaker, N:1, that reserves its memory: the number of different numbers.

use std::{collections::HashSet, mem::take};

use arrow::{array::AsArray, datatypes::Int64Type};
use gatework::operators::{harness::Report, prelude::*};

/// Bytes that a number takes in a set, with its free slots.
const BYTES: usize = 20;

/// What the tasks share: all numbers, their memory, and whether they were counted.
#[derive(Default)]
struct All {
    numbers: HashSet<i64>,
    memory: Vec<Reservation>,
    counted: bool,
}

/// The numbers of one task.
struct Distinct {
    numbers: HashSet<i64>,
    memory: Reservation,
    producer: Option<BreakerProducer<All>>,
}

impl BreakerState for Distinct {
    fn add(&mut self, batch: Batch, _: &DriverContext) -> PipelineResult<SinkResult> {
        let rows = apply_selection(batch)?;
        self.numbers.extend(rows.column(0).as_primitive::<Int64Type>().values());
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(BYTES * self.numbers.capacity())
    }

    fn publish(&mut self, _wanted: bool, _: &DriverContext) -> PipelineResult<Option<Gate>> {
        let (numbers, memory) = (take(&mut self.numbers), self.memory.take());
        if let Some(producer) = self.producer.take() {
            producer.publish(|all| {
                all.numbers.extend(numbers);
                all.memory.push(memory);
            });
        }
        Ok(None)
    }
}

struct Count(BreakerConsumer<All>);

impl LocalSource for Count {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let count = |all: &mut All| {
            (!std::mem::replace(&mut all.counted, true)).then_some(all.numbers.len() as i64)
        };
        Ok(match self.0.claim(count) {
            ClaimResult::Work(n) => SourceResult::Batch(numbers(n..n + 1, 1).remove(0).into()),
            ClaimResult::Blocked(gate) => SourceResult::Blocked(gate.into()),
            ClaimResult::Finished => SourceResult::Finished,
            ClaimResult::Aborted => return Err(PipelineError::ProducerAborted),
        })
    }
}

fn distinct_count(case: &Case) -> (impl Sink + use<>, impl Source + use<>, usize) {
    let (producers, consumers) = breaker::new("distinct", case.num_tasks(), 1, All::default());
    let sink = breaker_sink("distinct", producers, |producer, context| {
        let (closed, memory) = (producer.closed().clone(), context.reservation());
        Ok((Distinct { numbers: HashSet::new(), memory, producer: Some(producer) }, closed))
    });
    (sink, PerTask::new("count", consumers.into_iter().map(Count)), 1)
}

/// Runs the operator in every mode that affects it.
pub fn test() -> Report {
    Harness::breaker(distinct_count)
        .input(skewed_numbers(200, 8))
        .expect_rows(&numbers(21..22, 1))
        .check(Mode::without_spill())
}
