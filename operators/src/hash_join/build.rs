//! The sink of a join's left side.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef},
    datatypes::DataType,
};
use datafusion_common::ScalarValue;
use datafusion_functions_aggregate_common::min_max::{max_batch, min_batch};
use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{Gate, join::BuildSink};

use super::{
    config::Shared,
    table::{Part, Table, merge_bounds},
};
use crate::{
    OrFail, compact,
    keys::{KeyEncoder, NullKeys},
};

/// The sink of a join's left side.
#[derive(Debug)]
pub struct HashJoinBuild {
    shared: Arc<Shared>,
    slots: Slots<BuildSink<Part, Table>>,
}

impl HashJoinBuild {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<BuildSink<Part, Table>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for HashJoinBuild {
    fn name(&self) -> &str {
        "hash join build"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(setup.instance())?;
        let no_bounds = (ScalarValue::Null, ScalarValue::Null);
        let part = Part {
            keys: self.shared.encoder.no_keys(),
            hashes: Vec::new(),
            valid: Vec::new(),
            batches: Vec::new(),
            bounds: self.shared.note_bounds.then(|| vec![no_bounds; self.shared.config.on.len()]),
            has_null: false,
            reservation: setup.reservation(),
        };
        Ok(Box::new(LocalBuild {
            shared: self.shared.clone(),
            closed: sink.closed().clone(),
            sink: Some(sink),
            part: Some(part),
            scratch: Vec::new(),
        }))
    }
}

struct LocalBuild {
    shared: Arc<Shared>,
    sink: Option<BuildSink<Part, Table>>,
    closed: Gate,
    part: Option<Part>,
    scratch: Vec<u64>,
}

impl LocalSink for LocalBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        let (Some(batch), Some(part)) = (batch, &mut self.part) else {
            return Ok(SinkResult::NeedInput);
        };
        let shared = &self.shared;
        let data = compact(batch)?;
        let rows = data.num_rows();
        let keys = shared
            .config
            .on
            .iter()
            .map(|(left, _)| left.evaluate(&data)?.into_array_of_size(rows))
            .collect::<Result<Vec<ArrayRef>, _>>()
            .or_fail()?;
        let valid = KeyEncoder::without_nulls(&keys);
        part.has_null |= valid.is_some();
        part.bounds = merge_bounds(part.bounds.take(), bounds_of(&keys));
        let encoded = shared.encoder.encode(&keys).or_fail()?;
        let mut bytes = encoded.bytes();
        if encoded.are_costly() {
            encoded.hash_into(&mut self.scratch);
            part.hashes.extend_from_slice(&self.scratch);
            bytes += 8 * rows;
        }
        part.keys.append(&encoded);
        let valid = valid.filter(|_| shared.null_keys == NullKeys::AreSkipped);
        part.valid.push((rows, valid));
        let kept = data.project(&shared.kept).or_fail()?;
        bytes += Batch::new(kept.clone()).bytes();
        part.batches.push(kept);
        part.reservation.grow(bytes)?;
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if let (Some(sink), Some(part)) = (self.sink.take(), self.part.take()) {
            sink.publish(part);
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

/// The bounds of each key; `None` if one has no useful order. Floats have none here, because -0, +0
/// and NaN compare in another way in predicates than in joins.
fn bounds_of(keys: &[ArrayRef]) -> Option<Vec<(ScalarValue, ScalarValue)>> {
    let bounds = |key: &ArrayRef| {
        let kind = key.data_type();
        let ordered = kind.is_integer()
            || matches!(
                kind,
                DataType::Date32
                    | DataType::Date64
                    | DataType::Timestamp(..)
                    | DataType::Decimal128(..)
                    | DataType::Utf8
                    | DataType::LargeUtf8
                    | DataType::Utf8View
            );
        if !ordered {
            return None;
        }
        if key.null_count() == key.len() {
            return Some((ScalarValue::Null, ScalarValue::Null));
        }
        Some((min_batch(key).ok()?, max_batch(key).ok()?))
    };
    keys.iter().map(bounds).collect()
}
