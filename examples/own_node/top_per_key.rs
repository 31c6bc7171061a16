//! A breaker of one's own: the greatest values per key.

use std::{collections::HashMap, mem::take, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch},
    datatypes::{Int64Type, SchemaRef},
};
use gatework::{operators::prelude::*, sql::nodes::NodeOperators};

/// Bytes of a key in a map.
const KEY_BYTES: usize = 64;

/// The greatest values per key, greatest first, and the memory reserved for them.
#[derive(Default)]
struct Greatest {
    values: HashMap<i64, Vec<i64>>,
    memory: Vec<Reservation>,
}

impl Greatest {
    /// Adds a value if it is one of the `count` greatest of its key.
    fn add(&mut self, key: i64, value: i64, count: usize) {
        let values = self.values.entry(key).or_default();
        let place = values.partition_point(|other| *other >= value);
        if place < count {
            values.insert(place, value);
            values.truncate(count);
        }
    }
}

/// The rows of one task.
struct TopPerKey {
    count: usize,
    greatest: Greatest,
    memory: Reservation,
    producer: Option<BreakerProducer<Greatest>>,
}

impl BreakerState for TopPerKey {
    fn add(&mut self, batch: Batch, _: &DriverContext) -> PipelineResult<SinkResult> {
        let rows = apply_selection(batch)?;
        let [keys, values] = [0, 1].map(|column| rows.column(column).as_primitive::<Int64Type>());
        for (key, value) in keys.values().iter().zip(values.values()) {
            self.greatest.add(*key, *value, self.count);
        }
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        let bytes_per_key = KEY_BYTES + 8 * self.count;
        self.memory.resize(bytes_per_key * self.greatest.values.capacity())
    }

    fn publish(&mut self, _wanted: bool, _: &DriverContext) -> PipelineResult<Option<Gate>> {
        let (values, memory) = (take(&mut self.greatest.values), self.memory.take());
        let count = self.count;
        if let Some(producer) = self.producer.take() {
            producer.publish(|all| {
                for (key, values) in values {
                    values.into_iter().for_each(|value| all.add(key, value, count));
                }
                all.memory.push(memory);
            });
        }
        Ok(None)
    }
}

/// Emits the rows of all tasks, in one batch.
struct Emit(BreakerConsumer<Greatest>, SchemaRef);

impl LocalSource for Emit {
    fn next(&mut self, _: &DriverContext) -> PipelineResult<SourceResult> {
        let take_all = |all: &mut Greatest| (!all.values.is_empty()).then(|| take(all));
        let all = match self.0.claim(take_all) {
            ClaimResult::Work(all) => all,
            ClaimResult::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
            ClaimResult::Finished => return Ok(SourceResult::Finished),
            ClaimResult::Aborted => return Err(PipelineError::ProducerAborted),
        };
        let rows = all.values.into_iter();
        let rows = rows.flat_map(|(key, values)| values.into_iter().map(move |value| (key, value)));
        let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
        let columns = [keys, values].map(|column| Arc::new(Int64Array::from(column)) as ArrayRef);
        let rows = RecordBatch::try_new(self.1.clone(), columns.to_vec()).query_err()?;
        Ok(SourceResult::Batch(rows.into()))
    }
}

/// Returns the operators of the node: its input has rows of a key and a value.
pub fn operators(count: usize, num_tasks: usize, schema: SchemaRef) -> NodeOperators {
    let (producers, consumers) = breaker::new("top", num_tasks, 1, Greatest::default());
    let sink = breaker_sink("top per key", producers, move |producer, context| {
        let (closed, memory) = (producer.closed().clone(), context.reservation());
        let (greatest, producer) = (Greatest::default(), Some(producer));
        Ok((TopPerKey { count, greatest, memory, producer }, closed))
    });
    let emit = move |consumer| Emit(consumer, schema.clone());
    let source = PerTask::new("top per key", consumers.into_iter().map(emit));
    NodeOperators::source(source, 1).with_sink(0, sink)
}
