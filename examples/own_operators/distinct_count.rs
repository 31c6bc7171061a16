//! A breaker, N:1, that reserves its memory: the number of different numbers.

use std::{collections::HashSet, mem::take};

use arrow::{array::AsArray, datatypes::Int64Type};
use gatework::operators::{harness::Report, prelude::*};

/// Bytes that a number takes in a set, with its free slots.
const BYTES: usize = 20;

/// The numbers of each task, and their memory.
type Sets = Vec<(HashSet<i64>, Reservation)>;

/// The numbers of one task.
struct Distinct {
    numbers: HashSet<i64>,
    memory: Reservation,
    producer: Option<BreakerProducer<Sets>>,
}

impl BreakerState for Distinct {
    fn add(&mut self, batch: Batch, _: &DriverContext) -> PipelineResult<SinkResult> {
        let rows = apply_selection(batch)?;
        self.numbers.extend(rows.column(0).as_primitive::<Int64Type>().iter().flatten());
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(BYTES * self.numbers.capacity())
    }

    fn publish(&mut self, _wanted: bool, _: &DriverContext) -> PipelineResult<Option<Gate>> {
        let set = (take(&mut self.numbers), self.memory.take());
        if let Some(producer) = self.producer.take() {
            producer.publish(|sets| sets.push(set));
        }
        Ok(None)
    }
}

struct Count(BreakerConsumer<Sets>);

impl LocalSource for Count {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let sets = match self.0.claim(|sets| (!sets.is_empty()).then(|| take(sets))) {
            ClaimResult::Work(sets) => sets,
            ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
            ClaimResult::Finished => return Ok(SourceResult::Finished),
            ClaimResult::Aborted => return Err(PipelineError::ProducerAborted),
        };
        // Not in `publish`, where the other tasks would wait for it.
        let all: HashSet<_> = sets.iter().flat_map(|(numbers, _)| numbers).collect();
        Ok(SourceResult::Batch(numbers([all.len() as i64], 1).remove(0).into()))
    }
}

fn distinct_count(case: &Case) -> (impl Sink + use<>, impl Source + use<>, usize) {
    let (producers, consumers) = breaker::new("distinct", case.num_tasks(), 1, Sets::new());
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
