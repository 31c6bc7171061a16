//! A breaker that spills and ends early: it holds all rows back, in memory or on disk, until its
//! input has ended without an error.

use std::{mem::take, sync::Arc};

use arrow::array::RecordBatch;
use gatework::operators::{harness::Report, prelude::*};

/// Rows that are held back.
enum Held {
    InMemory(Vec<RecordBatch>, Reservation),
    Spilled(Arc<dyn SpilledBatches>, usize),
}

/// The rows of one task.
struct Hold {
    rows: Vec<RecordBatch>,
    bytes: usize,
    memory: Reservation,
    writer: SpillWriter<usize>,
    spilled: Vec<Held>,
    producer: Option<BreakerProducer<Vec<Held>>>,
}

impl BreakerState for Hold {
    fn add(&mut self, batch: Batch, _: &DriverContext) -> PipelineResult<SinkResult> {
        let rows = apply_selection(batch)?;
        self.bytes += Batch::new(rows.clone()).bytes();
        self.rows.push(rows);
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(self.bytes)
    }

    fn reclaimable_bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn start_spill(&mut self, _: &DriverContext) -> PipelineResult<SpillStart> {
        if self.rows.is_empty() {
            return Ok(SpillStart::Impossible);
        }
        let (rows, memory) = (take(&mut self.rows), self.memory.take());
        self.bytes = 0;
        let batches = rows.len();
        self.writer.write_batches(rows, vec![memory], batches)?;
        Ok(SpillStart::Writing)
    }

    fn poll_write(&mut self) -> PipelineResult<Option<Gate>> {
        Ok(match self.writer.poll()? {
            WriteState::Idle => None,
            WriteState::Blocked(gate) => Some(gate),
            WriteState::Finished(file, batches) => {
                self.spilled.push(Held::Spilled(file, batches));
                None
            }
        })
    }

    fn publish(&mut self, _wanted: bool, _: &DriverContext) -> PipelineResult<Option<Gate>> {
        self.spilled.push(Held::InMemory(take(&mut self.rows), self.memory.take()));
        let held = take(&mut self.spilled);
        if let Some(producer) = self.producer.take() {
            producer.publish(|all| all.extend(held));
        }
        Ok(None)
    }
}

/// The source of one task: the part that it emits, with its memory, and the part that it reads.
struct Release {
    consumer: BreakerConsumer<Vec<Held>>,
    current: Vec<RecordBatch>,
    memory: Option<Reservation>,
    reader: SpillReader,
}

impl LocalSource for Release {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        loop {
            if let Some(rows) = self.current.pop() {
                return Ok(SourceResult::Batch(rows.into()));
            }
            self.memory = None;
            match self.reader.poll()? {
                ReadState::Batch(rows) => return Ok(SourceResult::Batch(rows.into())),
                ReadState::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                ReadState::End => {}
            }
            match self.consumer.claim(Vec::pop) {
                ClaimResult::Work(Held::InMemory(rows, memory)) => {
                    (self.current, self.memory) = (rows, Some(memory));
                }
                ClaimResult::Work(Held::Spilled(file, batches)) => {
                    self.reader.push(&file, 0..batches);
                }
                ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                ClaimResult::Finished => return Ok(SourceResult::Finished),
                ClaimResult::Aborted => return Err(PipelineError::ProducerAborted),
            }
        }
    }
}

fn hold(case: &Case) -> (impl Sink + use<>, impl Source + use<>, usize) {
    let tasks = case.num_tasks();
    let (producers, consumers) = breaker::new("hold", tasks, tasks, Vec::new());
    let sink = breaker_sink("hold", producers, |producer: BreakerProducer<_>, context| {
        let (closed, memory) = (producer.closed().clone(), context.reservation());
        let (writer, producer) = (SpillWriter::new(context), Some(producer));
        let (rows, bytes, spilled) = (Vec::new(), 0, Vec::new());
        Ok((Hold { rows, bytes, memory, writer, spilled, producer }, closed))
    });
    let source = PerTask::new("release", consumers).with_context(|consumer, context| {
        let reader = SpillReader::new(context);
        Ok(Release { consumer, current: Vec::new(), memory: None, reader })
    });
    (sink, source, tasks)
}

/// Runs the operator in every mode.
pub fn test() -> Report {
    let rows = numbers(0..80, 8);
    Harness::breaker(hold).input(rows.clone()).expect_rows(&rows).check(Mode::all())
}
