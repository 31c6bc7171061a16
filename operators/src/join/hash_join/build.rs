//! Sink of a join's build side.

use std::{mem, sync::Arc};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::DataType,
};
use datafusion_common::ScalarValue;
use datafusion_functions_aggregate_common::min_max::{max_batch, min_batch};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Sink, SinkResult,
    },
};
use gatework_shared_state::{Gate, join_bridge::BuildProducer};

use super::{
    build_rows::BuildRows,
    build_spill::{BuildInput, BuildPart, BuildSpiller},
    config::HashJoinPlan,
    table::{Bounds, BuildSide, merge_bounds},
};
use crate::{
    ResultExt, apply_selection,
    compact::compact_views,
    keys::KeyEncoder,
    spill::{BreakerSink, BreakerState, PartitionSet, SpillStart},
};

/// Sink of a join's build side.
#[derive(Debug)]
pub struct HashJoinBuild {
    plan: Arc<HashJoinPlan>,
    producers: PerTask<BuildProducer<BuildInput, BuildSide>>,
}

impl HashJoinBuild {
    pub(super) fn new(
        plan: Arc<HashJoinPlan>,
        producers: PerTask<BuildProducer<BuildInput, BuildSide>>,
    ) -> Self {
        Self { plan, producers }
    }
}

impl Sink for HashJoinBuild {
    fn name(&self) -> &str {
        "hash join build"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&context)?;
        let closed = producer.closed().clone();
        let no_bounds = (ScalarValue::Null, ScalarValue::Null);
        let keys = self.plan.config.on.len();
        let local = LocalBuild {
            producer: Some(producer),
            bounds: self.plan.record_bounds.then(|| vec![no_bounds; keys]),
            has_null: false,
            state: BuildState::InMemory(Box::new(BuildRows::new(
                &self.plan,
                context.reservation(),
            ))),
            plan: self.plan.clone(),
            context: context.clone(),
        };
        Ok(Box::new(BreakerSink::new(local, context, closed)))
    }
}

/// State of the rows received.
enum BuildState {
    InMemory(Box<BuildRows>),
    /// They do not fit into memory.
    Spilling(Box<BuildSpiller>),
    /// They are published.
    Published,
}

struct LocalBuild {
    plan: Arc<HashJoinPlan>,
    producer: Option<BuildProducer<BuildInput, BuildSide>>,
    bounds: Option<Bounds>,
    has_null: bool,
    state: BuildState,
    context: OperatorContext,
}

impl LocalBuild {
    /// Switches to spilling once any task has added spilled partitions.
    fn spill_if_needed(&mut self) {
        if self.plan.spilled_partitions().is_empty()
            || !matches!(self.state, BuildState::InMemory(_))
        {
            return;
        }
        if let BuildState::InMemory(rows) = mem::replace(&mut self.state, BuildState::Published) {
            let (plan, context) = (self.plan.clone(), self.context.clone());
            self.state =
                BuildState::Spilling(Box::new(BuildSpiller::new(plan, context, *rows, Vec::new())));
        }
    }
}

impl BreakerState for LocalBuild {
    fn add(&mut self, batch: Batch, _task: &DriverContext) -> Result<SinkResult> {
        let plan = &self.plan;
        let data = apply_selection(batch)?;
        let keys = plan.build_keys(&data)?;
        self.has_null |= KeyEncoder::without_nulls(&keys).is_some();
        self.bounds = merge_bounds(self.bounds.take(), bounds_of(&keys));
        let payload = compact_views(data.project(&plan.payload_columns).query_err()?)?;
        match &mut self.state {
            BuildState::InMemory(rows) => rows.push(plan, payload, &keys)?,
            BuildState::Spilling(spiller) => spiller.add(&payload, keys)?,
            BuildState::Published => {}
        }
        Ok(SinkResult::NeedInput)
    }

    /// Reserves the bytes of the rows' table, unless they are being spilled: a spiller reserves for
    /// itself.
    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        let can_spill = self.plan.can_spill(&self.context);
        let BuildState::InMemory(rows) = &mut self.state else { return Ok(()) };
        rows.reserve(&self.plan, if can_spill { self.context.min_spill_bytes() } else { 0 })
    }

    fn reclaimable_bytes(&self) -> usize {
        match &self.state {
            _ if !self.plan.can_spill(&self.context) => 0,
            BuildState::InMemory(rows) => rows.reservation.bytes(),
            BuildState::Spilling(spiller) => spiller.partitions().reserved_bytes(),
            BuildState::Published => 0,
        }
    }

    /// Adds partitions to the spilled set of all tasks. If another task has added some before,
    /// spilling this task's rows of those comes first.
    fn start_spill(&mut self, _task: &DriverContext) -> Result<SpillStart> {
        if !self.plan.can_spill(&self.context) {
            return Ok(SpillStart::Impossible);
        }
        let (seen, otherwise) = match &self.state {
            BuildState::InMemory(_) => (PartitionSet::default(), SpillStart::Later),
            _ => (self.plan.spilled_partitions(), SpillStart::Impossible),
        };
        self.plan.spill_more_partitions(seen);
        let waits = self.poll_write()?.is_some();
        let BuildState::Spilling(spiller) = &mut self.state else { return Ok(otherwise) };
        let is_writing = waits || spiller.partitions_mut().is_writing()?;
        Ok(if is_writing { SpillStart::Writing } else { otherwise })
    }

    fn poll_write(&mut self) -> Result<Option<Gate>> {
        self.spill_if_needed();
        match &mut self.state {
            BuildState::Spilling(spiller) => spiller.poll(false),
            _ => Ok(None),
        }
    }

    fn publish(&mut self, _wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        self.spill_if_needed();
        let spilled_partitions = self.plan.spilled_partitions();
        if let BuildState::Spilling(spiller) = &mut self.state
            && let Some(gate) = spiller.poll(true)?
        {
            return Ok(Some(gate));
        }
        let (rows, spilled, spilled_partitions) =
            match mem::replace(&mut self.state, BuildState::Published) {
                BuildState::InMemory(rows) => (*rows, Vec::new(), PartitionSet::default()),
                BuildState::Spilling(spiller) => {
                    let (rows, spilled) = spiller.take()?;
                    (rows, spilled, spilled_partitions)
                }
                BuildState::Published => return Ok(None),
            };
        if let Some(producer) = self.producer.take() {
            let (bounds, has_null) = (self.bounds.take(), self.has_null);
            let part = BuildPart { rows, spilled, spilled_partitions, bounds, has_null };
            producer.publish(BuildInput::Part(Box::new(part)));
        }
        Ok(None)
    }
}

/// Returns the bounds of each key; `None` if the type of a key has no useful order. Floats have no
/// bounds, because predicates compare -0, +0 and NaN differently from joins.
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
        if key.logical_null_count() == key.len() {
            return Some((ScalarValue::Null, ScalarValue::Null));
        }
        Some((min_batch(key).ok()?, max_batch(key).ok()?))
    };
    keys.iter().map(bounds).collect()
}
