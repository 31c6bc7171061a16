//! Small operators for tests: numbers in one column.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arrow_array::{Array, Int64Array, RecordBatch};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Field, Schema};
use gatework_shared_state::{
    ClaimResult, Dependency, DependencyKind, Gate, PopResult, PushResult,
    aggregate::{AggregateConsumer, AggregateProducer},
    exchange::{ExchangeConsumer, ExchangeProducer},
    result::ResultProducer,
};

use crate::{
    Error, Result,
    pipeline::{
        Batch, BufferedBatch, DriverContext, FinishResult, LocalOperator, LocalSink, LocalSource,
        Operator, OperatorContext, OperatorResult, PerTask, Reservation, Sink, SinkResult, Source,
        SourceResult, StartResult,
    },
};

/// Creates a batch of one column.
pub(super) fn batch(values: impl IntoIterator<Item = i64>) -> Batch {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let column = Int64Array::from_iter_values(values);
    Batch::new(RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap())
}

/// Returns the selected rows of a batch.
pub(super) fn values(batch: &Batch) -> Vec<i64> {
    let column = batch.data().column(0);
    let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
    let selected = |row: &usize| batch.selection().is_none_or(|bits| bits.value(*row));
    (0..column.len()).filter(selected).map(|row| column.value(row)).collect()
}

/// Creates a blocked gate, with a name that tests find in dumps.
pub(super) fn gate(name: &'static str) -> Gate {
    Dependency::blocked(name, DependencyKind::External)
}

type Make<L> = Box<dyn Fn(OperatorContext) -> Result<Box<L>> + Send + Sync>;

/// A source, operator or sink whose local states a closure creates.
pub(super) struct Made<L: ?Sized> {
    name: &'static str,
    make: Make<L>,
}

impl<L: ?Sized> Made<L> {
    pub(super) fn new(
        name: &'static str,
        make: impl Fn(OperatorContext) -> Result<Box<L>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { name, make: Box::new(make) })
    }
}

impl<L: ?Sized> fmt::Debug for Made<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Source for Made<dyn LocalSource> {
    fn name(&self) -> &str {
        self.name
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSource>> {
        (self.make)(context)
    }
}

impl Operator for Made<dyn LocalOperator> {
    fn name(&self) -> &str {
        self.name
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        (self.make)(context)
    }
}

impl Sink for Made<dyn LocalSink> {
    fn name(&self) -> &str {
        self.name
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        (self.make)(context)
    }
}

impl<F: FnMut(&DriverContext) -> Result<SourceResult> + Send> LocalSource for F {
    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        self(task)
    }
}

/// Creates a source whose tasks are closures created by `make`.
pub(super) fn source<F>(
    name: &'static str,
    make: impl Fn(OperatorContext) -> F + Send + Sync + 'static,
) -> Arc<dyn Source>
where
    F: FnMut(&DriverContext) -> Result<SourceResult> + Send + 'static,
{
    Made::<dyn LocalSource>::new(name, move |context| Ok(Box::new(make(context))))
}

/// Each task emits the numbers from 0 to `end`, in batches of `step`.
pub(super) fn numbers(end: i64, step: i64) -> Arc<dyn Source> {
    source("numbers", move |_| {
        let mut next = 0;
        move |_: &DriverContext| {
            if next == end {
                return Ok(SourceResult::Finished);
            }
            let from = next;
            next = (next + step).min(end);
            Ok(SourceResult::Batch(batch(from..next)))
        }
    })
}

/// Emits ones without end.
pub(super) fn endless() -> Arc<dyn Source> {
    source("endless", |_| |_: &DriverContext| Ok(SourceResult::Batch(batch([1]))))
}

/// Emits nothing and finishes when `gate` is ready.
pub(super) fn waiting(gate: &Gate) -> Arc<dyn Source> {
    let gate = gate.clone();
    source("waiting", move |_| {
        let gate = gate.clone();
        move |_: &DriverContext| {
            Ok(match gate.is_ready() {
                true => SourceResult::Finished,
                false => SourceResult::Blocked(gate.clone().into()),
            })
        }
    })
}

struct Repeat {
    times: usize,
    left: usize,
    input: Option<Batch>,
}

impl LocalOperator for Repeat {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        if let Some(input) = input {
            self.left = self.times;
            self.input = Some(input);
        }
        let Some(input) = self.input.clone() else { return Ok(OperatorResult::NeedInput) };
        self.left -= 1;
        if self.left == 0 {
            self.input = None;
            return Ok(OperatorResult::Batch(input));
        }
        Ok(OperatorResult::HaveMoreOutput(input))
    }
}

/// Emits every batch `times` times.
pub(super) fn repeat(times: usize) -> Arc<dyn Operator> {
    Made::<dyn LocalOperator>::new("repeat", move |_| {
        Ok(Box::new(Repeat { times, left: 0, input: None }))
    })
}

struct Multiples(i64);

impl LocalOperator for Multiples {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        let (data, selection) = input.expect("a filter is called with input").into_parts();
        assert!(selection.is_none());
        let all = values(&Batch::new(data.clone()));
        let bits: BooleanBuffer = all.iter().map(|value| value % self.0 == 0).collect();
        Ok(OperatorResult::Batch(Batch::with_selection(data, bits)))
    }
}

/// Selects the multiples of `of`; batches are often empty.
pub(super) fn multiples(of: i64) -> Arc<dyn Operator> {
    Made::<dyn LocalOperator>::new("multiples", move |_| Ok(Box::new(Multiples(of))))
}

struct Hoard {
    rows: VecDeque<i64>,
    memory: Reservation,
}

impl LocalOperator for Hoard {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        let input = input.expect("hoard is called with input");
        self.memory.grow(8 * input.num_rows())?;
        self.rows.extend(values(&input));
        Ok(OperatorResult::NeedInput)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<OperatorResult> {
        let two: Vec<i64> = self.rows.drain(..self.rows.len().min(2)).collect();
        if two.is_empty() {
            return Ok(OperatorResult::Finished);
        }
        self.memory.resize(8 * self.rows.len())?;
        Ok(OperatorResult::HaveMoreOutput(batch(two)))
    }
}

/// Buffers all rows, with a reservation, until its input ends; then emits two rows at a time.
pub(super) fn hoard() -> Arc<dyn Operator> {
    Made::<dyn LocalOperator>::new("hoard", |context| {
        Ok(Box::new(Hoard { rows: VecDeque::new(), memory: context.reservation() }))
    })
}

struct Limit {
    left: Arc<AtomicI64>,
    reached: Gate,
}

impl LocalOperator for Limit {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        let rows = values(&input.expect("limit is called with input"));
        let before = self.left.fetch_sub(rows.len() as i64, Ordering::SeqCst).max(0) as usize;
        if before <= rows.len() {
            self.reached.set_always_ready();
        }
        Ok(match before {
            0 => OperatorResult::Finished,
            _ => OperatorResult::Batch(batch(rows.into_iter().take(before))),
        })
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.reached.clone())
    }
}

/// Emits `rows` rows in total over all tasks.
pub(super) fn limit(rows: i64) -> Arc<dyn Operator> {
    let (left, reached) = (Arc::new(AtomicI64::new(rows)), gate("limit reached"));
    if rows == 0 {
        reached.set_always_ready();
    }
    Made::<dyn LocalOperator>::new("limit", move |_| {
        Ok(Box::new(Limit { left: left.clone(), reached: reached.clone() }))
    })
}

struct Until(Gate);

impl LocalOperator for Until {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        Ok(match input {
            _ if self.0.is_ready() => OperatorResult::Finished,
            Some(batch) => OperatorResult::Batch(batch),
            None => OperatorResult::NeedInput,
        })
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.0.clone())
    }
}

/// Passes batches on until `gate` is ready.
pub(super) fn until(gate: &Gate) -> Arc<dyn Operator> {
    let gate = gate.clone();
    Made::<dyn LocalOperator>::new("until", move |_| Ok(Box::new(Until(gate.clone()))))
}

struct EmptyBuild(Option<Gate>);

impl LocalOperator for EmptyBuild {
    fn start(&mut self, _: &DriverContext) -> Result<StartResult> {
        Ok(match self.0.take() {
            Some(gate) if !gate.is_ready() => {
                self.0 = Some(gate.clone());
                StartResult::Blocked(gate.into())
            }
            _ => StartResult::Finished,
        })
    }

    fn execute(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        panic!("an empty build side needs no input");
    }
}

/// A probe whose build side is complete when `gate` is ready, and is empty.
pub(super) fn empty_build(gate: Option<Gate>) -> Arc<dyn Operator> {
    Made::<dyn LocalOperator>::new("empty build", move |_| Ok(Box::new(EmptyBuild(gate.clone()))))
}

fn to_sink_result(result: PushResult) -> SinkResult {
    match result {
        PushResult::Accepted => SinkResult::NeedInput,
        PushResult::Backpressure(gate) => SinkResult::Blocked(gate.into()),
        PushResult::Closed => SinkResult::Finished,
    }
}

struct ToExchange(Option<ExchangeProducer<Batch>>);

impl LocalSink for ToExchange {
    fn sink(&mut self, batch_in: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        let producer = self.0.as_mut().expect("not finished");
        let channels = producer.channels() as i64;
        if let Some(batch_in) = batch_in {
            let rows = values(&batch_in);
            for channel in 0..channels {
                let mut channel_rows =
                    rows.iter().filter(|row| *row % channels == channel).peekable();
                if channel_rows.peek().is_some() {
                    producer.push(channel as usize, batch(channel_rows.copied()));
                }
            }
        }
        Ok(to_sink_result(producer.poll_capacity()))
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        self.0.take().expect("finished once").finish();
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        self.0.as_ref().map(|producer| producer.closed().clone())
    }
}

/// Sends rows to channels by hash.
pub(super) fn to_exchange(producers: Vec<ExchangeProducer<Batch>>) -> Arc<dyn Sink> {
    let per_task = PerTask::new("sink", producers);
    Made::<dyn LocalSink>::new("to exchange", move |context| {
        Ok(Box::new(ToExchange(Some(per_task.take(&context)?))))
    })
}

fn to_source_result(result: PopResult<Batch>) -> Result<SourceResult> {
    match result {
        PopResult::Item(batch) => Ok(SourceResult::Batch(batch)),
        PopResult::Blocked(gate) => Ok(SourceResult::Blocked(gate.into())),
        PopResult::Finished => Ok(SourceResult::Finished),
        PopResult::Aborted => Err(Error::ProducerAborted),
    }
}

pub(super) fn from_exchange(consumers: Vec<ExchangeConsumer<Batch>>) -> Arc<dyn Source> {
    let per_task = PerTask::new("source", consumers);
    Made::<dyn LocalSource>::new("from exchange", move |context| {
        let mut consumer = per_task.take(&context)?;
        Ok(Box::new(move |_: &DriverContext| to_source_result(consumer.take())))
    })
}

struct ToSum(Option<AggregateProducer<i64>>, i64);

impl LocalSink for ToSum {
    fn sink(&mut self, batch: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        self.1 += batch.iter().flat_map(values).sum::<i64>();
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        // One partition for even sums, one for odd sums, so that both sources have work.
        let mut partitions = vec![Vec::new(), Vec::new()];
        partitions[(self.1 % 2) as usize].push(self.1);
        self.0.take().expect("finished once").publish(partitions);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        self.0.as_ref().map(|producer| producer.closed().clone())
    }
}

/// Publishes its sum in one of two partitions.
pub(super) fn to_sum(producers: Vec<AggregateProducer<i64>>) -> Arc<dyn Sink> {
    let per_task = PerTask::new("sink", producers);
    Made::<dyn LocalSink>::new("to sum", move |context| {
        Ok(Box::new(ToSum(Some(per_task.take(&context)?), 0)))
    })
}

pub(super) fn from_sum(consumers: Vec<AggregateConsumer<i64>>) -> Arc<dyn Source> {
    let per_task = PerTask::new("source", consumers);
    Made::<dyn LocalSource>::new("from sum", move |context| {
        let consumer = per_task.take(&context)?;
        Ok(Box::new(move |_: &DriverContext| match consumer.claim() {
            ClaimResult::Work((_, chunks)) => Ok(SourceResult::Batch(batch(chunks))),
            ClaimResult::Blocked(gate) => Ok(SourceResult::Blocked(gate.into())),
            ClaimResult::Finished => Ok(SourceResult::Finished),
            ClaimResult::Aborted => Err(Error::ProducerAborted),
        }))
    })
}

struct ToResult(Option<ResultProducer<BufferedBatch>>);

impl LocalSink for ToResult {
    fn sink(&mut self, batch_in: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
        let producer = self.0.as_mut().expect("not finished");
        let partitions = producer.partitions() as i64;
        for row in batch_in.iter().flat_map(values) {
            producer.push((row % partitions) as usize, batch([row]).into());
        }
        Ok(to_sink_result(producer.poll_capacity()))
    }

    fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
        self.0.take().expect("finished once").finish();
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        self.0.as_ref().map(|producer| producer.closed().clone())
    }
}

/// Sends each row as a batch to the partition given by its remainder.
pub(super) fn to_result(producers: Vec<ResultProducer<BufferedBatch>>) -> Arc<dyn Sink> {
    let per_task = PerTask::new("sink", producers);
    Made::<dyn LocalSink>::new("to result", move |context| {
        Ok(Box::new(ToResult(Some(per_task.take(&context)?))))
    })
}
