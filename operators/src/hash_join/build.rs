//! Sink of a join's build side.

use std::{mem, sync::Arc};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::DataType,
};
use datafusion_common::ScalarValue;
use datafusion_functions_aggregate_common::min_max::{max_batch, min_batch};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, OperatorContext, PerTask, ReclaimResult,
        Sink, SinkResult,
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
    ResultExt, apply_selection, compact::compact_views, keys::KeyEncoder, spill::PartitionSet,
};

/// Sink of a join's build side.
#[derive(Debug)]
pub struct HashJoinBuild {
    shared: Arc<HashJoinPlan>,
    producers: PerTask<BuildProducer<BuildInput, BuildSide>>,
}

impl HashJoinBuild {
    pub(super) fn new(
        shared: Arc<HashJoinPlan>,
        producers: PerTask<BuildProducer<BuildInput, BuildSide>>,
    ) -> Self {
        Self { shared, producers }
    }
}

impl Sink for HashJoinBuild {
    fn name(&self) -> &str {
        "hash join build"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, setup: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&setup)?;
        let no_bounds = (ScalarValue::Null, ScalarValue::Null);
        let keys = self.shared.config.on.len();
        Ok(Box::new(LocalBuild {
            closed: producer.closed().clone(),
            producer: Some(producer),
            bounds: self.shared.record_bounds.then(|| vec![no_bounds; keys]),
            has_null: false,
            state: BuildState::InMemory(Box::new(BuildRows::new(
                &self.shared,
                setup.reservation(),
            ))),
            denied: false,
            reclaiming: false,
            shared: self.shared.clone(),
            setup,
        }))
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
    shared: Arc<HashJoinPlan>,
    producer: Option<BuildProducer<BuildInput, BuildSide>>,
    closed: Gate,
    bounds: Option<Bounds>,
    has_null: bool,
    state: BuildState,
    /// The reservation of the rows in memory was denied.
    denied: bool,
    /// More partitions are being spilled after a reclaim request.
    reclaiming: bool,
    setup: OperatorContext,
}

impl LocalBuild {
    fn add(&mut self, batch: Batch) -> Result<()> {
        let shared = &self.shared;
        let data = apply_selection(batch)?;
        let keys = shared.build_keys(&data)?;
        self.has_null |= KeyEncoder::without_nulls(&keys).is_some();
        self.bounds = merge_bounds(self.bounds.take(), bounds_of(&keys));
        let payload = compact_views(data.project(&shared.payload_columns).query_err()?)?;
        match &mut self.state {
            BuildState::InMemory(rows) => rows.push(shared, payload, &keys)?,
            BuildState::Spilling(spiller) => spiller.add(&payload, keys)?,
            BuildState::Published => {}
        }
        match self.reserve() {
            // The rows are kept, although their reservation was denied.
            Err(Error::OutOfMemory { .. }) => self.denied = true,
            other => other?,
        }
        Ok(())
    }

    /// Reserves the bytes of the rows' table, unless they are being spilled: a spiller reserves for
    /// itself.
    fn reserve(&mut self) -> Result<()> {
        let can_spill = self.shared.can_spill(&self.setup);
        let BuildState::InMemory(rows) = &mut self.state else { return Ok(()) };
        rows.reserve(&self.shared, if can_spill { self.setup.min_spill_bytes() } else { 0 })
    }

    /// Resolves a denied reservation: requests reclaim from another task and returns the gate to
    /// wait at. If no task can release memory, adds spilled partitions.
    fn resolve_denial(&mut self) -> Result<Option<Gate>> {
        if !mem::take(&mut self.denied) {
            return Ok(None);
        }
        let error = match self.reserve() {
            Err(error @ Error::OutOfMemory { .. }) => error,
            other => return other.map(|()| None),
        };
        let reserved =
            if let BuildState::InMemory(rows) = &self.state { rows.reservation.bytes() } else { 0 };
        if let Some(gate) = self.setup.request_reclaim(reserved) {
            self.denied = true;
            return Ok(Some(gate));
        }
        if !self.shared.can_spill(&self.setup) {
            return Err(error);
        }
        self.shared.spill_more_partitions(PartitionSet::default());
        Ok(None)
    }

    /// Returns the gate to wait at before the sink accepts more rows.
    fn poll_memory(&mut self) -> Result<Option<Gate>> {
        if let Some(gate) = self.resolve_denial()? {
            return Ok(Some(gate));
        }
        self.spill_if_needed();
        let gate = match &mut self.state {
            BuildState::Spilling(spiller) => spiller.poll(false)?,
            _ => None,
        };
        if self.shared.can_spill(&self.setup) {
            self.setup.set_reclaimable_bytes(match &mut self.state {
                BuildState::InMemory(rows) => rows.reservation.bytes(),
                BuildState::Spilling(spiller) => spiller.partitions().reserved_bytes(),
                BuildState::Published => 0,
            });
        }
        Ok(gate)
    }

    /// Switches to spilling once any task has added spilled partitions.
    fn spill_if_needed(&mut self) {
        if self.shared.spilled_partitions().is_empty()
            || !matches!(self.state, BuildState::InMemory(_))
        {
            return;
        }
        if let BuildState::InMemory(rows) = mem::replace(&mut self.state, BuildState::Published) {
            let (shared, setup) = (self.shared.clone(), self.setup.clone());
            self.state =
                BuildState::Spilling(Box::new(BuildSpiller::new(shared, setup, *rows, Vec::new())));
        }
    }
}

impl LocalSink for LocalBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.add(batch)?;
        }
        Ok(match self.poll_memory()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn reclaim(&mut self, _task: &DriverContext) -> Result<ReclaimResult> {
        if !self.shared.can_spill(&self.setup) {
            return Ok(ReclaimResult::NothingToReclaim);
        }
        if !mem::replace(&mut self.reclaiming, true) {
            self.shared.spill_more_partitions(self.shared.spilled_partitions());
            self.spill_if_needed();
        }
        let BuildState::Spilling(spiller) = &mut self.state else {
            return Ok(ReclaimResult::NothingToReclaim);
        };
        if let Some(gate) = spiller.poll(false)? {
            return Ok(ReclaimResult::Blocked(gate.into()));
        }
        self.reclaiming = false;
        let partitions = spiller.partitions();
        self.setup.set_reclaimable_bytes(partitions.reserved_bytes());
        Ok(if partitions.is_writing()? {
            ReclaimResult::Started
        } else {
            ReclaimResult::NothingToReclaim
        })
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.denied = false;
        }
        if let Some(gate) = self.resolve_denial()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        self.spill_if_needed();
        let spilled_partitions = self.shared.spilled_partitions();
        if let BuildState::Spilling(spiller) = &mut self.state
            && let Some(gate) = spiller.poll(true)?
        {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        let (rows, spilled, spilled_partitions) =
            match mem::replace(&mut self.state, BuildState::Published) {
                BuildState::InMemory(rows) => (*rows, Vec::new(), PartitionSet::default()),
                BuildState::Spilling(spiller) => {
                    let (rows, spilled) = spiller.take()?;
                    (rows, spilled, spilled_partitions)
                }
                BuildState::Published => return Ok(FinishResult::Done),
            };
        if let Some(producer) = self.producer.take() {
            let (bounds, has_null) = (self.bounds.take(), self.has_null);
            let part = BuildPart { rows, spilled, spilled_partitions, bounds, has_null };
            producer.publish(BuildInput::Part(Box::new(part)));
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
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
