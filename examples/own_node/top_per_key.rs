//! A breaker of one's own: the greatest values per key.

use std::{collections::HashMap, mem::take, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch},
    datatypes::{Int64Type, SchemaRef},
};
use gatework::{operators::prelude::*, sql::nodes::NodeOperators};

/// Bytes of a key in a map.
const KEY_BYTES: usize = 64;

/// The greatest values per key, greatest first.
type Greatest = HashMap<i64, Vec<i64>>;

/// What each task has found, and its memory.
type Found = Vec<(Greatest, Reservation)>;

/// Adds a value if it is one of the `count` greatest of its key.
fn add(greatest: &mut Greatest, key: i64, value: i64, count: usize) {
    let values = greatest.entry(key).or_default();
    let place = values.partition_point(|other| *other >= value);
    if place < count {
        values.insert(place, value);
        values.truncate(count);
    }
}

/// The rows of one task.
struct TopPerKey {
    count: usize,
    greatest: Greatest,
    memory: Reservation,
    producer: Option<BreakerProducer<Found>>,
}

impl BreakerState for TopPerKey {
    fn add(&mut self, batch: Batch, _: &DriverContext) -> PipelineResult<SinkResult> {
        let rows = apply_selection(batch)?;
        let [keys, values] = [0, 1].map(|column| rows.column(column).as_primitive::<Int64Type>());
        // Rows without a key or a value are left out.
        for (key, value) in keys.iter().zip(values).filter_map(|(key, value)| key.zip(value)) {
            add(&mut self.greatest, key, value, self.count);
        }
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        let bytes_per_key = KEY_BYTES + 8 * self.count;
        self.memory.resize(bytes_per_key * self.greatest.capacity())
    }

    fn publish(&mut self, _wanted: bool, _: &DriverContext) -> PipelineResult<Option<Gate>> {
        let found = (take(&mut self.greatest), self.memory.take());
        if let Some(producer) = self.producer.take() {
            producer.publish(|all| all.push(found));
        }
        Ok(None)
    }
}

/// Emits the rows of all tasks, in one batch.
struct Emit {
    consumer: BreakerConsumer<Found>,
    count: usize,
    schema: SchemaRef,
}

impl LocalSource for Emit {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let found = match self.consumer.claim(|all| (!all.is_empty()).then(|| take(all))) {
            ClaimResult::Work(found) => found,
            ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
            ClaimResult::Finished => return Ok(SourceResult::Finished),
            ClaimResult::Aborted => return Err(PipelineError::ProducerAborted),
        };
        let mut greatest = Greatest::new();
        for (key, values) in found.iter().flat_map(|(of_task, _)| of_task) {
            values.iter().for_each(|value| add(&mut greatest, *key, *value, self.count));
        }
        let rows = greatest.into_iter();
        let rows = rows.flat_map(|(key, values)| values.into_iter().map(move |value| (key, value)));
        let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
        let columns = [keys, values].map(|column| Arc::new(Int64Array::from(column)) as ArrayRef);
        let rows = RecordBatch::try_new(self.schema.clone(), columns.to_vec()).query_err()?;
        Ok(SourceResult::Batch(rows.into()))
    }
}

/// Returns the operators of the node: its input has rows of a key and a value.
pub fn operators(count: usize, num_tasks: usize, schema: SchemaRef) -> NodeOperators {
    let (producers, consumers) = breaker::new("top", num_tasks, 1, Found::new());
    let sink = breaker_sink("top per key", producers, move |producer, context| {
        let (closed, memory) = (producer.closed().clone(), context.reservation());
        let (greatest, producer) = (Greatest::new(), Some(producer));
        Ok((TopPerKey { count, greatest, memory, producer }, closed))
    });
    let emit = move |consumer| Emit { consumer, count, schema: schema.clone() };
    let source = PerTask::new("top per key", consumers.into_iter().map(emit));
    NodeOperators::source(source, 1).with_sink(0, sink)
}
