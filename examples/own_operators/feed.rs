//! A source that is fed from outside: any thread pushes batches, and tasks read them. The thread
//! stops when nobody reads any more. It does not wait for its readers; `broadcast.rs` has room.

use std::{collections::VecDeque, thread};

use arrow::array::RecordBatch;
use gatework::operators::{harness::Report, prelude::*};

/// The batches that no task has read yet, and how the feeding thread ended.
struct Feed {
    filled: Gate,
    batches: StateLock<(VecDeque<RecordBatch>, Option<ProducerEnd>)>,
}

impl SharedState for Feed {
    fn producer_ended(&self, end: ProducerEnd, _left: usize) {
        let mut batches = self.batches.lock();
        batches.1 = Some(end);
        batches.set_always_ready(&self.filled);
    }
}

struct Reader(Consumer<Feed>);

impl LocalSource for Reader {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let mut batches = self.0.batches.lock();
        match (batches.0.pop_front(), batches.1) {
            (Some(batch), _) => Ok(SourceResult::Batch(batch.into())),
            (None, Some(end)) => SourceResult::after(end),
            (None, None) => Ok(SourceResult::Blocked(batches.block(&self.0.filled).into())),
        }
    }
}

fn fed(case: &Case) -> impl Source + use<> {
    let filled = Dependency::blocked("feed", DependencyKind::External);
    let feed = Feed { filled, batches: StateLock::default() };
    let (mut producers, consumers) = tokens("feed", feed, 1, case.num_tasks());
    let (producer, batches) = (producers.remove(0), case.batches(0));
    thread::spawn(move || {
        let is_read = |_: &RecordBatch| !producer.closed().is_ready();
        for batch in batches.into_iter().take_while(is_read) {
            let mut batches = producer.batches.lock();
            batches.0.push_back(batch);
            batches.set_ready(&producer.filled);
        }
        producer.finish();
    });
    PerTask::new("feed", consumers.into_iter().map(Reader))
}

/// Runs the operator in every mode that affects it.
pub fn test() -> Report {
    let numbers = numbers(0..60, 8);
    Harness::source(fed).input(numbers.clone()).expect_rows(&numbers).check(Mode::without_memory())
}
