//! The operator on a join's right side: builds the table together with the other probe tasks, looks
//! its batches up, and drains the table.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::AsArray;
use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array},
    buffer::BooleanBuffer,
    compute::filter,
};
use datafusion_common::JoinType;
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, IsNullExpr, lit},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, LocalOperator, Operator, OperatorMetrics, OperatorResult, Setup, Slots, Start,
        TaskContext,
    },
};
use gatework_shared_state::join::{Build, Drain, ProbeSource};
use parking_lot::Mutex;

use super::{
    config::Shared,
    lookup::{Cursor, InTable, Pairs, ProbeKeys},
    output::{Rows, assemble},
    table::{Part, Table},
};
use crate::{OrFail, compact, keys::NullKeys, runtime_filter::FilterProducer};

/// The operator on a join's right side.
#[derive(Debug)]
pub struct HashJoinProbe {
    shared: Arc<Shared>,
    slots: Slots<ProbeSource<Part, Table>>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
}

impl HashJoinProbe {
    pub(super) fn new(
        shared: Arc<Shared>,
        slots: Slots<ProbeSource<Part, Table>>,
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
            source: self.slots.take(setup.instance())?,
            filter: self.filter.clone(),
            metrics: setup.metrics().clone(),
            table: None,
            probing: None,
            draining: None,
        }))
    }
}

/// A probe batch that is being looked up.
struct Probing {
    data: RecordBatch,
    sequence: u64,
    keys: ProbeKeys,
    cursor: Cursor,
    /// All pairs of the batch have been seen.
    done: bool,
    /// Rows that found a match, where that is asked for.
    matched: Option<Vec<bool>>,
}

struct LocalProbe {
    shared: Arc<Shared>,
    source: ProbeSource<Part, Table>,
    filter: Arc<Mutex<Option<FilterProducer>>>,
    metrics: Arc<OperatorMetrics>,
    table: Option<Arc<Table>>,
    probing: Option<Probing>,
    /// Rows of a drain unit to emit.
    draining: Option<RecordBatch>,
}

/// Left rows per drain unit.
const DRAIN_ROWS: usize = 8192;

impl LocalProbe {
    /// Publishes what is known of the finished table's keys.
    fn publish_filter(&self, table: &Arc<Table>) {
        let Some(producer) = self.filter.lock().take() else { return };
        let filter = self.runtime_filter(table, producer.keys());
        producer.publish(filter);
    }

    /// A predicate that is true for every probe row that may match, or that the join must see.
    fn runtime_filter(
        &self,
        table: &Arc<Table>,
        keys: &[Arc<dyn PhysicalExpr>],
    ) -> Option<Arc<dyn PhysicalExpr>> {
        let config = &self.shared.config;
        let nulls_match = self.shared.null_keys == NullKeys::AreValues;
        let keeps_nulls = table.has_null && (nulls_match || config.null_aware);
        if keeps_nulls || self.shared.preserves_right() {
            return None;
        }
        if table.rows() == 0 && !config.null_aware {
            return Some(lit(false));
        }
        let and = |left, right| -> Arc<dyn PhysicalExpr> {
            Arc::new(BinaryExpr::new(left, BinaryOperator::And, right))
        };
        let in_table = InTable::new(
            keys.to_vec(),
            self.shared.encoder.clone(),
            table,
            config.null_aware,
            !nulls_match,
        );
        let mut filter: Arc<dyn PhysicalExpr> = Arc::new(in_table);
        for (key, (low, high)) in keys.iter().zip(table.bounds.iter().flatten()) {
            if low.is_null() || high.is_null() {
                continue;
            }
            let compare = |operator, bound: &datafusion_common::ScalarValue| {
                Arc::new(BinaryExpr::new(key.clone(), operator, lit(bound.clone())))
            };
            let bounds =
                and(compare(BinaryOperator::GtEq, low), compare(BinaryOperator::LtEq, high));
            filter = and(bounds, filter);
        }
        if config.null_aware {
            let null: Arc<dyn PhysicalExpr> = Arc::new(IsNullExpr::new(keys.first()?.clone()));
            filter = Arc::new(BinaryExpr::new(null, BinaryOperator::Or, filter));
        }
        Some(filter)
    }

    fn begin(&mut self, batch: Batch) -> Result<()> {
        let sequence = batch.sequence();
        let data = compact(batch)?;
        let (config, rows) = (&self.shared.config, data.num_rows());
        let columns = config
            .on
            .iter()
            .map(|(_, right)| right.evaluate(&data)?.into_array_of_size(rows))
            .collect::<Result<Vec<ArrayRef>, _>>()
            .or_fail()?;
        let Some(table) = &self.table else {
            return Err(Error::Setup("a batch came before the join's table".into()));
        };
        if config.null_aware {
            table.probe_saw_rows.store(true, Ordering::Relaxed);
            if columns.iter().any(|column| column.null_count() > 0) {
                table.probe_saw_null.store(true, Ordering::Relaxed);
            }
        }
        let skip_nulls = self.shared.null_keys == NullKeys::AreSkipped;
        let encoder = &self.shared.encoder;
        let keys = ProbeKeys::new(encoder, &columns, skip_nulls, table.index()).or_fail()?;
        let matched = self.shared.marks_right().then(|| vec![false; rows]);
        let cursor = Cursor::default();
        self.probing = Some(Probing { data, sequence, keys, cursor, done: false, matched });
        Ok(())
    }

    /// The next output of the batch at hand.
    fn advance(&mut self, task: &TaskContext) -> Result<OperatorResult> {
        let shared = self.shared.clone();
        let (Some(table), Some(probing)) = (self.table.clone(), &mut self.probing) else {
            return Ok(OperatorResult::NeedInput);
        };
        while !probing.done {
            task.check()?;
            let mut pairs = Pairs::default();
            let limit = shared.config.batch_rows;
            let first_only = shared.first_match_suffices();
            probing.done = probing.keys.find(
                table.index(),
                &mut probing.cursor,
                first_only,
                limit,
                &mut pairs,
            );
            let pairs = shared.keep_matches(&table, &probing.data, pairs)?;
            if shared.marks_left() {
                pairs.left.values().iter().for_each(|row| table.mark(*row));
            }
            if let Some(matched) = &mut probing.matched {
                pairs.right.values().iter().for_each(|row| matched[*row as usize] = true);
            }
            if shared.emits_pairs() && !pairs.left.is_empty() {
                let batch = shared.pairs_batch(&table, &probing.data, &pairs)?;
                return Ok(OperatorResult::HaveMore(Batch::new(batch).at(probing.sequence)));
            }
        }
        let Some(probing) = self.probing.take() else { return Ok(OperatorResult::NeedInput) };
        match probing.matched {
            None => Ok(OperatorResult::NeedInput),
            Some(matched) => shared.rest_of_batch(&probing.data, matched, probing.sequence),
        }
    }

    /// The rows of drain unit `unit`, or `None`.
    fn drain_unit(&self, table: &Table, unit: usize) -> Result<Option<RecordBatch>> {
        let shared = &self.shared;
        let first = unit * DRAIN_ROWS;
        let last = (first + DRAIN_ROWS).min(table.rows());
        let null_aware = shared.config.null_aware;
        if null_aware && table.probe_saw_null.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let no_null_keys = null_aware && table.probe_saw_rows.load(Ordering::Relaxed);
        let wanted = |row: &usize| match shared.config.join_type {
            JoinType::LeftSemi => table.is_marked(*row),
            JoinType::LeftMark => true,
            _ => !(table.is_marked(*row) || no_null_keys && table.has_null_key(*row)),
        };
        let rows: Vec<usize> = (first..last).filter(wanted).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let mark = BooleanArray::from_iter(rows.iter().map(|row| Some(table.is_marked(*row))));
        let numbers = UInt32Array::from_iter_values(rows.iter().map(|row| *row as u32));
        let left = Rows::At(table.payload()?, &numbers);
        let (schema, columns) = (&shared.config.schema, &shared.output);
        Ok(Some(assemble(schema, columns, &left, &Rows::Null, Some(&mark), rows.len())?))
    }
}

/// Pairs that passed the residual filter.
struct Matches {
    left: UInt32Array,
    right: UInt32Array,
}

impl Shared {
    fn keep_matches(&self, table: &Table, data: &RecordBatch, pairs: Pairs) -> Result<Matches> {
        let left = UInt32Array::from(pairs.left);
        let right = UInt32Array::from(pairs.right);
        let Some(residual) = &self.filter else { return Ok(Matches { left, right }) };
        if left.is_empty() {
            return Ok(Matches { left, right });
        }
        let keep = residual.evaluate(table.payload()?, data, &left, &right)?;
        let keep = BooleanArray::new(keep, None);
        Ok(Matches {
            left: filter(&left, &keep).or_fail()?.as_primitive().clone(),
            right: filter(&right, &keep).or_fail()?.as_primitive().clone(),
        })
    }

    fn pairs_batch(
        &self,
        table: &Table,
        data: &RecordBatch,
        pairs: &Matches,
    ) -> Result<RecordBatch> {
        let rows = pairs.left.len();
        let numbers = pairs.right.values();
        // Every probe row matched exactly once, as with a foreign key: nothing to gather.
        let whole = rows == data.num_rows() && numbers.iter().zip(0_u32..).all(|(n, i)| *n == i);
        let right = if whole { Rows::All(data) } else { Rows::At(data, &pairs.right) };
        let left = Rows::At(table.payload()?, &pairs.left);
        assemble(&self.config.schema, &self.output, &left, &right, None, rows)
    }

    /// What a probe batch gives after all its pairs: by which of its rows found a match.
    fn rest_of_batch(
        &self,
        data: &RecordBatch,
        matched: Vec<bool>,
        sequence: u64,
    ) -> Result<OperatorResult> {
        let matched = BooleanBuffer::from(matched);
        let selection = match self.config.join_type {
            JoinType::RightSemi => matched,
            JoinType::RightMark => {
                let mark = BooleanArray::new(matched, None);
                let (left, right) = (Rows::Null, Rows::All(data));
                let (schema, rows) = (&self.config.schema, data.num_rows());
                let batch = assemble(schema, &self.output, &left, &right, Some(&mark), rows)?;
                return Ok(OperatorResult::Batch(Batch::new(batch).at(sequence)));
            }
            _ => !&matched,
        };
        let rows = selection.count_set_bits();
        if rows == 0 {
            return Ok(OperatorResult::NeedInput);
        }
        let (schema, left) = (&self.config.schema, Rows::Null);
        // Rows are selected, not gathered: all columns of the batch, and NULLs for the left side.
        let rows = data.num_rows();
        let batch = assemble(schema, &self.output, &left, &Rows::All(data), None, rows)?;
        Ok(OperatorResult::Batch(Batch::with_selection(batch, selection).at(sequence)))
    }
}

impl LocalOperator for LocalProbe {
    fn start(&mut self, task: &TaskContext) -> Result<Start> {
        loop {
            task.check()?;
            match self.source.build() {
                Build::Prepare(parts) => {
                    let (table, units) = Table::prepare(&self.shared, parts)?;
                    self.metrics.add("build rows", table.rows() as u64);
                    self.source.prepared(table, units);
                }
                Build::Unit(table, unit) => {
                    table.build(unit)?;
                    if self.source.built() {
                        table.finish()?;
                        self.publish_filter(&table);
                        self.source.publish();
                    }
                }
                Build::Blocked(gate) => return Ok(Start::Blocked(gate.into())),
                Build::Aborted => return Err(Error::ProducerAborted),
                Build::Ready(table) => {
                    let nothing = table.rows() == 0 && self.shared.empty_build_is_empty_result();
                    self.table = Some(table);
                    return Ok(if nothing { Start::Finished } else { Start::Ready });
                }
            }
        }
    }

    fn execute(&mut self, input: Option<Batch>, task: &TaskContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.begin(batch)?;
        }
        self.advance(task)
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<OperatorResult> {
        let Some(table) = &self.table else { return Ok(OperatorResult::Finished) };
        let units = if self.shared.marks_left() { table.rows().div_ceil(DRAIN_ROWS) } else { 0 };
        self.source.end_probe(units);
        if units == 0 {
            return Ok(OperatorResult::Finished);
        }
        loop {
            if let Some(batch) = self.draining.take() {
                return Ok(OperatorResult::HaveMore(Batch::new(batch)));
            }
            match self.source.drain() {
                Drain::Unit(table, unit) => self.draining = self.drain_unit(&table, unit)?,
                Drain::Blocked(gate) => return Ok(OperatorResult::Blocked(gate.into())),
                Drain::Finished => return Ok(OperatorResult::Finished),
                Drain::Aborted => return Err(Error::ProducerAborted),
            }
        }
    }
}
