//! The operator on a join's right side: builds the table together with the other probe tasks, looks
//! its batches up, and drains the table and what is in files.

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
    compute::{filter, filter_record_batch},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Setup, Slots, Start, TaskContext},
};
use gatework_shared_state::{
    Gate,
    join::{Build, Drain, ProbeSource},
};
use parking_lot::Mutex;

use super::{
    config::Shared,
    divide::{Offered, Prepared, Preparing},
    drain::Drained,
    probing::{NextPairs, Probing},
    table::{Joined, Table},
    unit::{Next, UnitJoin},
};
use crate::{
    OrFail, compact,
    keys::{KeyEncoder, NullKeys},
    runtime_filter::FilterProducer,
    spilling::{Units, unit_of},
};

/// The operator on a join's right side.
#[derive(Debug)]
pub struct HashJoinProbe {
    shared: Arc<Shared>,
    slots: Slots<ProbeSource<Offered, Joined>>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
}

impl HashJoinProbe {
    pub(super) fn new(
        shared: Arc<Shared>,
        slots: Slots<ProbeSource<Offered, Joined>>,
        filter: Arc<Mutex<Option<FilterProducer>>>,
    ) -> Self {
        Self { shared, slots, filter }
    }
}

impl Operator for HashJoinProbe {
    fn name(&self) -> &str {
        "hash join probe"
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalProbe {
            shared: self.shared.clone(),
            source: self.slots.take(&setup)?,
            filter: self.filter.clone(),
            setup,
            preparing: None,
            joined: None,
            table: None,
            probing: None,
            away: None,
            drain_units: None,
            draining: None,
            unit: None,
        }))
    }
}

struct LocalProbe {
    shared: Arc<Shared>,
    source: ProbeSource<Offered, Joined>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
    setup: Setup,
    preparing: Option<Box<Preparing>>,
    joined: Option<Arc<Joined>>,
    /// Of `joined`, until the probe has ended.
    table: Option<Arc<Table>>,
    probing: Option<Probing>,
    /// Rows whose matches are in files, if any are.
    away: Option<Units>,
    /// After the probe: how many units there are to drain.
    drain_units: Option<usize>,
    /// The table's one that is being drained.
    draining: Option<(Arc<Table>, Drained)>,
    /// The one in files that is being joined.
    unit: Option<UnitJoin>,
}

impl LocalProbe {
    /// Makes the table that was asked for; the gate of what is not in its file yet.
    fn prepare(&mut self) -> Result<Option<Gate>> {
        let Some(preparing) = &mut self.preparing else { return Ok(None) };
        match preparing.go_on()? {
            Prepared::Blocked(gate) => return Ok(Some(gate)),
            Prepared::Table(joined, units) => {
                self.setup.metrics().add("build rows", joined.rows() as u64);
                self.source.prepared(joined, units);
            }
        }
        self.preparing = None;
        Ok(None)
    }

    fn build(&mut self, joined: &Joined, unit: usize, task: &TaskContext) -> Result<()> {
        let table = joined.table()?;
        table.build(unit, task)?;
        if self.source.built() {
            table.finish()?;
            if let Some(producer) = self.filter.lock().take() {
                self.shared.publish(joined, producer)?;
            }
            self.source.publish();
        }
        Ok(())
    }

    fn begin(&mut self, batch: Batch) -> Result<()> {
        let sequence = batch.sequence();
        let mut data = compact(batch)?;
        let mut columns = self.shared.right_keys(&data)?;
        if self.shared.config.null_aware {
            self.shared.probe_saw_rows.store(true, Ordering::Relaxed);
            if columns.iter().any(|column| column.logical_null_count() > 0) {
                self.shared.probe_saw_null.store(true, Ordering::Relaxed);
            }
        }
        if let Some(stays) = self.send_away(&data, &columns)? {
            if stays.true_count() == 0 {
                return Ok(());
            }
            data = filter_record_batch(&data, &stays).or_fail()?;
            for column in &mut columns {
                *column = filter(column, &stays).or_fail()?;
            }
        }
        let Some(table) = &self.table else {
            return Err(Error::Setup("a batch came before the join's table".into()));
        };
        self.probing = Some(self.shared.probe(table, data, sequence, &columns)?);
        Ok(())
    }

    /// Puts the rows aside whose matches are in files; which ones are left, if not all.
    fn send_away(&mut self, data: &RecordBatch, keys: &[ArrayRef]) -> Result<Option<BooleanArray>> {
        let (Some(away), Some(joined)) = (&mut self.away, &self.joined) else { return Ok(None) };
        let mut hashes = Vec::new();
        self.shared.encoder.encode(keys).or_fail()?.hash_into(&mut hashes);
        let mut goes = BooleanBuffer::collect_bool(hashes.len(), |row| {
            joined.away.contains(unit_of(hashes[row], 0))
        });
        if self.shared.null_keys == NullKeys::AreSkipped
            && let Some(valid) = KeyEncoder::without_nulls(keys)
        {
            goes = &goes & valid.inner();
        }
        if goes.count_set_bits() == 0 {
            return Ok(None);
        }
        let stays = BooleanArray::new(!&goes, None);
        let goes = BooleanArray::new(goes, None);
        let mut bits = goes.values().iter();
        hashes.retain(|_| bits.next() == Some(true));
        let goes = filter_record_batch(&self.shared.keyed(data, keys)?, &goes).or_fail()?;
        away.add(goes, &hashes, None)?;
        Ok(Some(stays))
    }

    /// The next output of the batch at hand.
    fn advance(&mut self, task: &TaskContext) -> Result<OperatorResult> {
        let (Some(table), Some(probing)) = (&self.table, &mut self.probing) else {
            return Ok(OperatorResult::NeedInput);
        };
        match self.shared.next_pairs(table, probing, task)? {
            NextPairs::Batch(pairs) => return Ok(OperatorResult::HaveMore(pairs)),
            NextPairs::Breath(gate) => return Ok(OperatorResult::Blocked(gate.into())),
            NextPairs::End => {}
        }
        match self.probing.take() {
            Some(probing) => self.shared.rest(probing),
            None => Ok(OperatorResult::NeedInput),
        }
    }

    /// Says that this task's input has ended, once; the gate of what is not in its file yet.
    fn end_probe(&mut self) -> Result<Option<Gate>> {
        let Some(joined) = &self.joined else { return Ok(None) };
        if self.drain_units.is_some() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        if let Some(away) = &mut self.away {
            if let Some(gate) = away.settle_all(true)? {
                return Ok(Some(gate));
            }
            parts = self.away.take().map(|away| away.take().1).unwrap_or_default();
        }
        self.table = None;
        let units = joined.end_probe(parts);
        self.drain_units = Some(units);
        self.source.end_probe(units);
        Ok(None)
    }

    /// Begins with the next unit to drain.
    fn drain(&mut self, joined: &Joined, unit: usize) -> Result<()> {
        if let Some(table) = joined.drained_table(unit)? {
            let drained = self.shared.drain_unit(&table, unit);
            self.draining = Some((table, drained));
        } else if let Some((build, probe)) = joined.take_unit(unit) {
            let (shared, setup) = (self.shared.clone(), self.setup.clone());
            self.unit = Some(UnitJoin::new(shared, setup, build, probe));
        }
        Ok(())
    }

    /// The next rows of the unit of the table that is being drained.
    fn drained(&mut self) -> Result<Option<Batch>> {
        let Some((table, drained)) = &mut self.draining else { return Ok(None) };
        let batch = self.shared.next_drained(table, drained)?;
        if batch.is_none() {
            self.draining = None;
        }
        Ok(batch.map(Batch::new))
    }
}

impl Drop for LocalProbe {
    fn drop(&mut self) {
        // Nobody wants this task's rows any more, but perhaps those of others.
        if let Some(preparing) = self.preparing.take() {
            self.source.pass_on(vec![Offered::Begun(preparing)]);
        }
    }
}

impl LocalOperator for LocalProbe {
    fn abort(&mut self) {
        self.preparing = None;
    }

    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        loop {
            task.check()?;
            if let Some(gate) = self.prepare()? {
                return Ok(Start::Blocked(gate.into()));
            }
            match self.source.build() {
                Build::Prepare(offered) => {
                    let (shared, setup) = (self.shared.clone(), self.setup.clone());
                    self.preparing = Some(Preparing::new(shared, setup, offered));
                }
                Build::Unit(joined, unit) => {
                    self.build(&joined, unit, task)?;
                    if let Some(gate) = task.breath() {
                        return Ok(Start::Blocked(gate.into()));
                    }
                }
                Build::Blocked(gate) => return Ok(Start::Blocked(gate.into())),
                Build::Aborted => return Err(Error::ProducerAborted),
                Build::Ready(joined) => {
                    let nothing = joined.rows() == 0 && self.shared.empty_build_is_empty_result();
                    self.table = Some(joined.table()?);
                    if !joined.away.is_empty() {
                        self.away = Some(Units::new(self.setup.clone(), 0, 0));
                    }
                    self.joined = Some(joined);
                    return Ok(if nothing { Start::Finished } else { Start::Ready });
                }
            }
        }
    }

    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.begin(batch)?;
        }
        if let Some(away) = &mut self.away
            && let Some(gate) = away.settle_all(false)?
        {
            return Ok(OperatorResult::Blocked(gate.into()));
        }
        self.advance(task)
    }

    fn finish(&mut self, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(gate) = self.end_probe()? {
            return Ok(OperatorResult::Blocked(gate.into()));
        }
        if self.drain_units.is_none_or(|units| units == 0) {
            return Ok(OperatorResult::Finished);
        }
        loop {
            if let Some(batch) = self.drained()? {
                return Ok(OperatorResult::HaveMore(batch));
            }
            if let Some(unit) = &mut self.unit {
                match unit.next(task)? {
                    Next::Batch(batch) => return Ok(OperatorResult::HaveMore(batch)),
                    Next::Blocked(gate) => return Ok(OperatorResult::Blocked(gate.into())),
                    Next::End => self.unit = None,
                }
            }
            match self.source.drain() {
                Drain::Unit(joined, unit) => self.drain(&joined, unit)?,
                Drain::Blocked(gate) => return Ok(OperatorResult::Blocked(gate.into())),
                Drain::Finished => return Ok(OperatorResult::Finished),
                Drain::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
