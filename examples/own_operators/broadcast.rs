//! A broadcast, 1:N, with room and early end: each consumer reads all batches at its own pace. The
//! producer waits while the slowest is far behind, and ends when no consumer is left.

use gatework::operators::{harness::Report, prelude::*};

/// Batches that the slowest consumer may be behind.
const ROOM: usize = 2;

#[derive(Default)]
struct Inner {
    /// Batches that a consumer has not read, and the number of those before them.
    batches: std::collections::VecDeque<Batch>,
    first: usize,
    /// Number of batches that each consumer has read; `None` once it was dropped.
    read: Vec<Option<usize>>,
    end: Option<ProducerEnd>,
}

struct Broadcast {
    gates: OneToMany,
    inner: StateLock<Inner>,
}

impl Broadcast {
    /// Drops the batches that all consumers have read.
    fn release(&self, inner: &mut StateGuard<'_, Inner>) {
        let slowest = inner.read.iter().flatten().copied().min().unwrap_or(usize::MAX);
        while inner.first < slowest && inner.batches.pop_front().is_some() {
            inner.first += 1;
        }
        if inner.batches.len() <= ROOM {
            inner.set_ready(self.gates.sink());
        }
    }
}

impl SharedState for Broadcast {
    fn producer_ended(&self, end: ProducerEnd, _left: usize) {
        let mut inner = self.inner.lock();
        inner.end = Some(end);
        self.gates.set_always_ready_all(inner.parts().1);
    }

    fn consumer_ended(&self, index: usize, _left: usize) {
        let mut inner = self.inner.lock();
        inner.read[index] = None;
        self.release(&mut inner);
    }
}

struct Sender(Option<Producer<Broadcast>>);

impl LocalSink for Sender {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> PipelineResult<SinkResult> {
        let Some(state) = &self.0 else { return Ok(SinkResult::Finished) };
        let mut inner = state.inner.lock();
        if let Some(batch) = batch {
            inner.batches.push_back(batch);
            state.gates.sources().iter().for_each(|gate| inner.set_ready(gate));
        }
        Ok(match inner.batches.len() > ROOM {
            true => SinkResult::Blocked(inner.block(state.gates.sink()).into()),
            false => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _: &DriverContext) -> PipelineResult<FinishResult> {
        self.0.take().into_iter().for_each(Producer::finish);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        self.0.as_ref().map(|producer| producer.closed().clone())
    }
}

struct Receiver(Consumer<Broadcast>);

impl LocalSource for Receiver {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let (state, index) = (&self.0, self.0.index());
        let mut inner = state.inner.lock();
        let read = inner.read[index].unwrap_or(0);
        let Some(batch) = inner.batches.get(read - inner.first).cloned() else {
            return match inner.end {
                Some(end) => SourceResult::after(end),
                None => Ok(SourceResult::Blocked(inner.block(state.gates.source(index)).into())),
            };
        };
        inner.read[index] = Some(read + 1);
        state.release(&mut inner);
        Ok(SourceResult::Batch(batch))
    }
}

fn broadcast(case: &Case) -> (impl Sink + use<>, impl Source + use<>, usize) {
    let tasks = case.num_tasks();
    let inner = StateLock::new(Inner { read: vec![Some(0); tasks], ..Inner::default() });
    let state = Broadcast { gates: OneToMany::new("broadcast", tasks), inner };
    let (producers, consumers) = tokens("broadcast", state, 1, tasks);
    let sink = PerTask::new("broadcast", producers.into_iter().map(|one| Sender(Some(one))));
    (sink, PerTask::new("receive", consumers.into_iter().map(Receiver)), tasks)
}

/// Runs the operator in every mode that affects it.
pub fn test() -> Report {
    Harness::breaker(broadcast)
        .sink_tasks(1)
        .input(numbers(0..60, 8))
        .expect_rows_of_tasks(|tasks| numbers((0..60).cycle().take(60 * tasks), 8))
        .check(Mode::without_memory())
}
