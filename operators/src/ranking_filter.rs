//! Ranking filter: drops rows that cannot be among the first of their window partition.
//!
//! Above it, rows are sorted and numbered, and only those up to a number `n` are kept:
//! `row_number() OVER (PARTITION BY p ORDER BY o) <= n`. Each task keeps the `n` least order keys
//! that it has seen of each partition. A row with a greater key has `n` rows before it, so its
//! number is greater than `n`, and so is that of every row behind it; no row that is kept depends
//! on it. The filter only has to be right about the rows that it drops: it compares the first 16
//! bytes of encoded keys, knows the rows of its own task only, and stops where it drops too little,
//! would need too much memory, or gets none. (Presto's TopNRanking and Doris' partition top-n, as a
//! filter before the exchange and the sort.)

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions},
    buffer::BooleanBuffer,
    compute::filter_record_batch,
    datatypes::DataType,
};
use arrow_row::{RowConverter, Rows, SortField};
use datafusion_common::Result as DataFusionResult;
use datafusion_physical_expr::{PhysicalExpr, PhysicalSortExpr, utils::collect_columns};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorMetrics,
        OperatorResult, Reservation,
    },
};

use crate::{
    ResultExt,
    keys::{GroupValues, KeyEncoder, KeyNulls, is_text},
    remap_columns,
    selection::refine,
    slices::Slices,
    sort::first_bytes,
};

#[cfg(test)]
mod tests;

/// Greatest `n` of a ranking filter: a new key is compared with `n` others at most.
pub const MAX_RANKING_ROWS: usize = 1 << 10;

/// Rows of a task after which the filter stops, unless it dropped a quarter of them.
const TRIAL_ROWS: usize = if cfg!(test) { 200 } else { 1 << 19 };
/// Maximum number of keys that a task keeps, at 16 bytes each.
const MAX_KEYS: usize = if cfg!(test) { 500 } else { 1 << 20 };

/// Which rows count as one when rows are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankedBy {
    /// Each row counts: `row_number` and `rank`.
    Rows,
    /// Rows with the same order keys count as one: `dense_rank`.
    Keys,
}

/// What a [`RankingFilter`] keeps: the first `rows` of each window partition.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// Partition keys; none if all rows are one partition.
    pub partition_by: Vec<Arc<dyn PhysicalExpr>>,
    /// Order keys, at least one.
    pub order_by: Vec<PhysicalSortExpr>,
    /// The number up to which rows are kept, from 1 to [`MAX_RANKING_ROWS`].
    pub rows: usize,
    /// What is numbered.
    pub by: RankedBy,
}

/// Operator that drops rows behind the first of their window partition; it may keep others.
#[derive(Debug)]
pub struct RankingFilter {
    plan: Arc<RankingPlan>,
}

#[derive(Debug)]
struct RankingPlan {
    /// The ranking, whose expressions are over `columns`.
    ranking: Ranking,
    /// Columns of the input that the keys are computed from.
    columns: Vec<usize>,
}

/// Returns whether two values of this type are in one window partition if and only if their encoded
/// keys are equal. Floats are not: a window tells -0 from 0, encoded keys do not.
pub fn can_partition_by(kind: &DataType) -> bool {
    let kind = match kind {
        DataType::Dictionary(_, values) => values.as_ref(),
        kind => kind,
    };
    kind.is_integer()
        || kind.is_decimal()
        || is_text(kind)
        || matches!(
            kind,
            DataType::Boolean
                | DataType::Date32
                | DataType::Date64
                | DataType::Time32(_)
                | DataType::Time64(_)
                | DataType::Timestamp(..)
        )
}

impl RankingFilter {
    /// Creates a filter on the input's columns. The types of the partition keys must be such as
    /// [`can_partition_by`] allows.
    ///
    /// # Errors
    /// If an expression refers to no column of the input.
    pub fn new(ranking: Ranking) -> DataFusionResult<Self> {
        let partition_keys = ranking.partition_by.iter();
        let keys = partition_keys.chain(ranking.order_by.iter().map(|key| &key.expr));
        let columns = keys.flat_map(collect_columns).map(|column| column.index());
        let mut columns: Vec<usize> = columns.collect();
        columns.sort_unstable();
        columns.dedup();
        let remap = |expr: &Arc<dyn PhysicalExpr>| remap_columns(expr.clone(), &columns);
        let partition_by =
            ranking.partition_by.iter().map(remap).collect::<DataFusionResult<_>>()?;
        let order_key = |key: &PhysicalSortExpr| -> DataFusionResult<_> {
            Ok(PhysicalSortExpr { expr: remap(&key.expr)?, options: key.options })
        };
        let order_by = ranking.order_by.iter().map(order_key).collect::<DataFusionResult<_>>()?;
        let ranking = Ranking { partition_by, order_by, ..ranking };
        Ok(Self { plan: Arc::new(RankingPlan { ranking, columns }) })
    }
}

impl Operator for RankingFilter {
    fn name(&self) -> &str {
        "ranking filter"
    }

    fn take_dictionaries(&self, output: &[usize]) -> Vec<usize> {
        output.iter().copied().filter(|column| !self.plan.columns.contains(column)).collect()
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalRankingFilter {
            plan: self.plan.clone(),
            metrics: context.metrics().clone(),
            memory: context.reservation(),
            state: State::Unstarted,
            slices: Slices::default(),
        }))
    }
}

struct LocalRankingFilter {
    plan: Arc<RankingPlan>,
    metrics: Arc<OperatorMetrics>,
    memory: Reservation,
    state: State,
    slices: Slices,
}

enum State {
    Unstarted,
    Filtering(Box<FirstKeys>),
    /// All rows pass.
    Stopped,
}

impl LocalOperator for LocalRankingFilter {
    fn execute(&mut self, input: Option<Batch>, task: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.slices.begin(batch, &self.plan.columns);
        }
        while let Some(batch) = self.slices.next() {
            let passed = self.pass(batch)?;
            if passed.num_rows() > 0 {
                return Ok(self.slices.operator_result(passed));
            }
            if self.slices.should_yield(task)? {
                return Ok(OperatorResult::Yield);
            }
        }
        Ok(OperatorResult::NeedInput)
    }
}

impl LocalRankingFilter {
    fn stop(&mut self) {
        self.state = State::Stopped;
        drop(self.memory.take());
    }

    /// Returns the rows of `batch` that may be among the first.
    fn pass(&mut self, batch: Batch) -> Result<Batch> {
        if matches!(self.state, State::Stopped) {
            return Ok(batch);
        }
        let keys = self.plan.key_columns(&batch)?;
        let first_keys = match &mut self.state {
            State::Filtering(first_keys) => first_keys,
            unstarted => {
                *unstarted = State::Filtering(Box::new(FirstKeys::new(&self.plan.ranking, &keys)?));
                let State::Filtering(first_keys) = unstarted else { return Ok(batch) };
                first_keys
            }
        };
        let Some(passes) = first_keys.add(&keys)? else {
            self.stop();
            return Ok(batch);
        };
        let dropped = passes.len() - passes.count_set_bits();
        self.metrics.add("rows_behind_ranking", dropped as u64);
        let bytes = first_keys.bytes();
        if !first_keys.is_effective(passes.len(), dropped) || self.memory.resize(bytes).is_err() {
            self.stop();
        }
        if dropped == 0 {
            return Ok(batch);
        }
        let sequence = batch.sequence();
        let (data, selection) = batch.into_parts();
        let passes = match selection {
            Some(selection) => refine(&selection, &passes),
            None => passes,
        };
        Ok(Batch::with_selection(data, passes).with_sequence(sequence))
    }
}

/// Values of the partition keys and the order keys.
struct KeyColumns {
    rows: usize,
    partition_by: Vec<ArrayRef>,
    order_by: Vec<ArrayRef>,
}

impl RankingPlan {
    /// Evaluates the keys of the selected rows.
    fn key_columns(&self, batch: &Batch) -> Result<KeyColumns> {
        let columns = self.columns.iter().map(|column| batch.data().column(*column).clone());
        let schema = batch.data().schema().project(&self.columns).query_err()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_physical_rows()));
        let data = RecordBatch::try_new_with_options(Arc::new(schema), columns.collect(), &options)
            .query_err()?;
        let data = match batch.selection() {
            Some(selection) => {
                filter_record_batch(&data, &BooleanArray::new(selection.clone(), None))
                    .query_err()?
            }
            None => data,
        };
        let evaluate = |expr: &Arc<dyn PhysicalExpr>| {
            expr.evaluate(&data).and_then(|value| value.into_array(data.num_rows())).query_err()
        };
        let Ranking { partition_by, order_by, .. } = &self.ranking;
        Ok(KeyColumns {
            rows: data.num_rows(),
            partition_by: partition_by.iter().map(evaluate).collect::<Result<_>>()?,
            order_by: order_by.iter().map(|key| evaluate(&key.expr)).collect::<Result<_>>()?,
        })
    }
}

/// The least order keys of each window partition that a task has seen.
struct FirstKeys {
    rows: usize,
    by: RankedBy,
    partitions: Option<(KeyEncoder, GroupValues)>,
    order: RowConverter,
    encoded: Rows,
    /// The partition of each row of the batch.
    groups: Vec<usize>,
    /// For each partition the greatest of its `rows` least keys; the maximum while there are fewer.
    limits: Vec<u128>,
    /// For each partition the number of its keys in `keys`.
    counts: Vec<u32>,
    /// `rows` keys per partition, as a heap with the greatest first.
    keys: Vec<u128>,
    rows_in_trial: usize,
    dropped_in_trial: usize,
}

impl FirstKeys {
    fn new(ranking: &Ranking, columns: &KeyColumns) -> Result<Self> {
        let types = columns.partition_by.iter().map(|column| (column.data_type().clone(), true));
        let types: Vec<_> = types.collect();
        let partitions = match types.is_empty() {
            true => None,
            false => {
                let encoder = KeyEncoder::new(&types, KeyNulls::Equal).query_err()?;
                let groups = GroupValues::new(&encoder);
                Some((encoder, groups))
            }
        };
        let fields = columns.order_by.iter().zip(&ranking.order_by).map(|(column, key)| {
            SortField::new_with_options(column.data_type().clone(), key.options)
        });
        let order = RowConverter::new(fields.collect()).query_err()?;
        Ok(Self {
            rows: ranking.rows,
            by: ranking.by,
            partitions,
            encoded: order.empty_rows(0, 0),
            order,
            groups: Vec::new(),
            limits: Vec::new(),
            counts: Vec::new(),
            keys: Vec::new(),
            rows_in_trial: 0,
            dropped_in_trial: 0,
        })
    }

    /// Adds the keys of rows. Returns which rows may be among the first of their partition; `None`
    /// if there are too many partitions.
    fn add(&mut self, columns: &KeyColumns) -> Result<Option<BooleanBuffer>> {
        let total = match &mut self.partitions {
            Some((encoder, table)) => {
                let keys = encoder.encode(&columns.partition_by).query_err()?;
                table.assign(&keys, &mut self.groups);
                table.len()
            }
            None => {
                self.groups.clear();
                self.groups.resize(columns.rows, 0);
                1
            }
        };
        if total.saturating_mul(self.rows) > MAX_KEYS {
            return Ok(None);
        }
        self.limits.resize(total, u128::MAX);
        self.counts.resize(total, 0);
        self.keys.resize(total * self.rows, 0);
        self.encoded.clear();
        self.order.append(&mut self.encoded, &columns.order_by).query_err()?;
        let passes = (0..columns.rows).map(|row| {
            let (group, key) = (self.groups[row], first_bytes(self.encoded.row(row).data()));
            if key > self.limits[group] {
                return false;
            }
            self.insert(group, key);
            true
        });
        Ok(Some(passes.collect::<Vec<_>>().into()))
    }

    /// Adds a key that is not behind the limit of its partition.
    fn insert(&mut self, group: usize, key: u128) {
        let count = self.counts[group] as usize;
        let heap = &mut self.keys[group * self.rows..(group + 1) * self.rows];
        if count == heap.len() && key == self.limits[group] {
            return;
        }
        if self.by == RankedBy::Keys && heap[..count].contains(&key) {
            return;
        }
        if count < heap.len() {
            heap[count] = key;
            sift_up(heap, count);
            self.counts[group] += 1;
            if count + 1 < heap.len() {
                return;
            }
        } else {
            heap[0] = key;
            sift_down(heap);
        }
        self.limits[group] = heap[0];
    }

    /// Counts the rows of a batch. Returns whether enough of the last ones were dropped.
    fn is_effective(&mut self, rows: usize, dropped: usize) -> bool {
        self.rows_in_trial += rows;
        self.dropped_in_trial += dropped;
        if self.rows_in_trial < TRIAL_ROWS {
            return true;
        }
        let is_effective = self.dropped_in_trial >= self.rows_in_trial / 4;
        (self.rows_in_trial, self.dropped_in_trial) = (0, 0);
        is_effective
    }

    fn bytes(&self) -> usize {
        let table = self.partitions.as_ref().map_or(0, |(_, table)| table.bytes());
        let keys = (self.keys.capacity() + self.limits.capacity()) * size_of::<u128>();
        let per_row = self.groups.capacity() * size_of::<usize>() + self.encoded.size();
        table + keys + self.counts.capacity() * size_of::<u32>() + per_row
    }
}

/// Restores the heap after a key was put at `place`, its end.
fn sift_up(heap: &mut [u128], mut place: usize) {
    while place > 0 {
        let parent = (place - 1) / 2;
        if heap[parent] >= heap[place] {
            return;
        }
        heap.swap(parent, place);
        place = parent;
    }
}

/// Restores the heap after its first key was replaced.
fn sift_down(heap: &mut [u128]) {
    let mut place = 0;
    loop {
        let children = 2 * place + 1..heap.len().min(2 * place + 3);
        let Some(greatest) = children.max_by_key(|child| heap[*child]) else { return };
        if heap[place] >= heap[greatest] {
            return;
        }
        heap.swap(place, greatest);
        place = greatest;
    }
}
