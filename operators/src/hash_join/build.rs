//! The sink of a join's left side.

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
        Batch, FinishResult, GiveBack, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext,
    },
};
use gatework_shared_state::{Gate, join::BuildSink};

use super::{
    collected::Collected,
    config::Shared,
    divide::{Divider, Offered, Part},
    table::{Bounds, Joined, merge_bounds},
};
use crate::{OrFail, compact, compact::to_keep, keys::KeyEncoder, spilling::UnitSet};

/// The sink of a join's left side.
#[derive(Debug)]
pub struct HashJoinBuild {
    shared: Arc<Shared>,
    slots: Slots<BuildSink<Offered, Joined>>,
}

impl HashJoinBuild {
    pub(super) fn new(shared: Arc<Shared>, slots: Slots<BuildSink<Offered, Joined>>) -> Self {
        Self { shared, slots }
    }
}

impl Sink for HashJoinBuild {
    fn name(&self) -> &str {
        "hash join build"
    }

    fn holds_memory(&self) -> bool {
        true
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        let no_bounds = (ScalarValue::Null, ScalarValue::Null);
        let keys = self.shared.config.on.len();
        Ok(Box::new(LocalBuild {
            closed: sink.closed().clone(),
            sink: Some(sink),
            bounds: self.shared.note_bounds.then(|| vec![no_bounds; keys]),
            has_null: false,
            rows: Rows::All(Box::new(Collected::new(&self.shared, setup.reservation()))),
            refused: false,
            giving: false,
            shared: self.shared.clone(),
            setup,
        }))
    }
}

/// The rows that came.
enum Rows {
    All(Box<Collected>),
    /// They do not fit.
    Divided(Box<Divider>),
    /// They are published.
    Gone,
}

struct LocalBuild {
    shared: Arc<Shared>,
    sink: Option<BuildSink<Offered, Joined>>,
    closed: Gate,
    bounds: Option<Bounds>,
    has_null: bool,
    rows: Rows,
    /// What is there has not been reserved.
    refused: bool,
    /// More units are being sent away because somebody asked for memory.
    giving: bool,
    setup: Setup,
}

impl LocalBuild {
    fn add(&mut self, batch: Batch) -> Result<()> {
        let shared = &self.shared;
        let data = compact(batch)?;
        let keys = shared.left_keys(&data)?;
        self.has_null |= KeyEncoder::without_nulls(&keys).is_some();
        self.bounds = merge_bounds(self.bounds.take(), bounds_of(&keys));
        let kept = to_keep(data.project(&shared.kept).or_fail()?)?;
        match &mut self.rows {
            Rows::All(rows) => rows.push(shared, kept, &keys)?,
            Rows::Divided(divider) => divider.add(&kept, keys)?,
            Rows::Gone => {}
        }
        match self.reserve() {
            // What did not fit has been collected all the same.
            Err(Error::OutOfMemory { .. }) => self.refused = true,
            other => other?,
        }
        Ok(())
    }

    /// Reserves what the table of the rows takes, if they are not divided, which is done by need.
    fn reserve(&mut self) -> Result<()> {
        let can_spill = self.shared.can_spill(&self.setup);
        let Rows::All(rows) = &mut self.rows else { return Ok(()) };
        rows.reserve(&self.shared, if can_spill { self.setup.overdraft() } else { 0 })
    }

    /// If memory was refused: has another one give some back, and answers where to wait for that, or sends
    /// units away.
    fn relieve(&mut self) -> Result<Option<Gate>> {
        if !mem::take(&mut self.refused) {
            return Ok(None);
        }
        let error = match self.reserve() {
            Err(error @ Error::OutOfMemory { .. }) => error,
            other => return other.map(|()| None),
        };
        let held = if let Rows::All(rows) = &self.rows { rows.reservation.bytes() } else { 0 };
        if let Some(gate) = self.setup.ask_for_memory(held) {
            self.refused = true;
            return Ok(Some(gate));
        }
        if !self.shared.can_spill(&self.setup) {
            return Err(error);
        }
        self.shared.send_more_away(UnitSet::default());
        Ok(None)
    }

    /// The gate to wait at before more rows are taken.
    fn waits(&mut self) -> Result<Option<Gate>> {
        if let Some(gate) = self.relieve()? {
            return Ok(Some(gate));
        }
        self.follow();
        let gate = match &mut self.rows {
            Rows::Divided(divider) => divider.settle(false)?,
            _ => None,
        };
        if self.shared.can_spill(&self.setup) {
            self.setup.could_give_back(match &mut self.rows {
                Rows::All(rows) => rows.reservation.bytes(),
                Rows::Divided(divider) => divider.units().reserved(),
                Rows::Gone => 0,
            });
        }
        Ok(gate)
    }

    /// Divides the rows once any task had to.
    fn follow(&mut self) {
        if self.shared.away().is_empty() || !matches!(self.rows, Rows::All(_)) {
            return;
        }
        if let Rows::All(rows) = mem::replace(&mut self.rows, Rows::Gone) {
            let (shared, setup) = (self.shared.clone(), self.setup.clone());
            self.rows = Rows::Divided(Box::new(Divider::new(shared, setup, *rows, Vec::new())));
        }
    }
}

impl LocalSink for LocalBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            self.add(batch)?;
        }
        Ok(match self.waits()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn give_back(&mut self, _task: &TaskContext) -> Result<GiveBack> {
        if !self.shared.can_spill(&self.setup) {
            return Ok(GiveBack::Nothing);
        }
        if !mem::replace(&mut self.giving, true) {
            self.shared.send_more_away(self.shared.away());
            self.follow();
        }
        let Rows::Divided(divider) = &mut self.rows else { return Ok(GiveBack::Nothing) };
        if let Some(gate) = divider.settle(false)? {
            return Ok(GiveBack::Blocked(gate.into()));
        }
        self.giving = false;
        let units = divider.units();
        self.setup.could_give_back(units.reserved());
        Ok(if units.is_writing()? { GiveBack::Begun } else { GiveBack::Nothing })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        if self.closed.is_ready() {
            self.refused = false;
        }
        if let Some(gate) = self.relieve()? {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        self.follow();
        let away_set = self.shared.away();
        if let Rows::Divided(divider) = &mut self.rows
            && let Some(gate) = divider.settle(true)?
        {
            return Ok(FinishResult::Blocked(gate.into()));
        }
        let (rows, away, away_set) = match mem::replace(&mut self.rows, Rows::Gone) {
            Rows::All(rows) => (*rows, Vec::new(), UnitSet::default()),
            Rows::Divided(divider) => {
                let (rows, away) = divider.take()?;
                (rows, away, away_set)
            }
            Rows::Gone => return Ok(FinishResult::Done),
        };
        if let Some(sink) = self.sink.take() {
            let (bounds, has_null) = (self.bounds.take(), self.has_null);
            let part = Part { rows, away, away_set, bounds, has_null };
            sink.publish(Offered::Part(Box::new(part)));
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
        if key.logical_null_count() == key.len() {
            return Some((ScalarValue::Null, ScalarValue::Null));
        }
        Some((min_batch(key).ok()?, max_batch(key).ok()?))
    };
    keys.iter().map(bounds).collect()
}
