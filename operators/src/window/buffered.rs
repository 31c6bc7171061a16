//! Large window partition whose end some expression reads: buffered as it arrives, emitted once it
//! has ended.
//!
//! While rows arrive, each expression takes from them the state or columns that it needs of the
//! whole partition ([`EvalStrategy`]). The rows themselves are read again only when they are
//! emitted, batch by batch, so they may be spilled in between.

use std::{collections::VecDeque, fmt, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion_common::{ScalarValue, internal_err};
use datafusion_expr::{
    Accumulator,
    window_state::{PartitionBatchState, WindowAggState},
};
use datafusion_physical_expr::window::{
    PartitionBatches, PartitionWindowAggStates, PlainAggregateWindowExpr, WindowEvalContext,
    WindowExpr,
};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, BufferReader, BufferedBatch, DriverContext, OperatorContext, Reservation,
        SpillInput, SpilledBatches,
    },
};

use super::{
    EvalStrategy, RESULT_BYTES, STATE_BYTES, Steps, WindowPlan, bytes,
    emitter::{ExprResult, PartitionEmitter},
    eval_strategy::is_unfiltered_aggregate,
    framed,
    streaming::KEY,
};
use crate::{ResultExt, compact::compact_views, concat::concat_batches, spill::gc_batch_views};

/// Rows of a window partition, and the expressions' state over them.
pub(super) struct BufferedPartition {
    plan: Arc<WindowPlan>,
    /// Schema of the rows; all columns are nullable, whatever a batch says.
    schema: SchemaRef,
    rows: usize,
    /// Spilled rows, which come first, and the bytes they took in memory.
    spilled: Vec<BufferedBatch>,
    spilled_bytes: usize,
    /// Rows in memory, which follow the spilled ones and any rows that are being written.
    in_memory: Vec<RecordBatch>,
    in_memory_bytes: usize,
    /// Aggregate of each `PartitionTotal` expression, and the bytes of all aggregates. The bytes
    /// are cached, because computing them may traverse all kept values.
    totals: Vec<Option<Total>>,
    total_bytes: usize,
    columns: BufferedColumns,
}

/// Aggregate over all rows so far.
enum Total {
    Unfiltered(Arc<dyn WindowExpr>, Box<dyn Accumulator>),
    Filtered(Filtered),
}

/// Aggregate with a filter that only its expression can read.
struct Filtered {
    expression: Arc<dyn WindowExpr>,
    partition: PartitionBatches,
    states: PartitionWindowAggStates,
    /// True if the accumulator keeps values. Its size is not accessible, so the bytes of the values
    /// so far are the estimate.
    keeps_values: bool,
    value_bytes: usize,
}

/// Columns for expressions that read all rows at once.
struct BufferedColumns {
    /// Indices of these columns; `None` if the rows are needed whole.
    needed: Option<Vec<usize>>,
    /// Rows in which all other columns are NULL.
    rows: Vec<RecordBatch>,
    bytes: usize,
    /// Bytes per row of the results, and of one result while it is computed.
    row_bytes: usize,
}

/// Bytes of one row's result while results are computed one by one: a `ScalarValue`.
const SCALAR_BYTES: usize = size_of::<ScalarValue>();

impl BufferedPartition {
    /// Creates a window partition without rows.
    pub(super) fn new(plan: &Arc<WindowPlan>, rows: &Schema) -> Result<Self> {
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let fields: Vec<Field> = rows.fields().iter().map(nullable).collect();
        let schema = Arc::new(Schema::new(fields));
        let total = |(expression, strategy): (&Arc<dyn WindowExpr>, &EvalStrategy)| {
            matches!(strategy, EvalStrategy::PartitionTotal)
                .then(|| Total::new(expression, &schema))
                .transpose()
        };
        Ok(Self {
            totals: plan
                .expressions
                .iter()
                .zip(&plan.strategies)
                .map(total)
                .collect::<Result<_>>()?,
            total_bytes: 0,
            schema,
            rows: 0,
            spilled: Vec::new(),
            spilled_bytes: 0,
            in_memory: Vec::new(),
            in_memory_bytes: 0,
            columns: BufferedColumns::new(&plan.strategies),
            plan: plan.clone(),
        })
    }

    /// Adds the next rows.
    pub(super) fn add(&mut self, batches: &[RecordBatch], task: &DriverContext) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        let rows = compact_views(concat_batches(batches)?)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let columns = rows.columns().to_vec();
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        let rows = rows.query_err()?;
        for total in self.totals.iter_mut().flatten() {
            let mut steps = Steps(VecDeque::from([rows.clone()]));
            while !steps.is_empty() {
                task.check_cancelled()?;
                steps.next(0).iter().try_for_each(|rows| total.add(rows))?;
            }
        }
        self.total_bytes = self.totals.iter().flatten().map(Total::bytes).sum();
        self.columns.add(&rows)?;
        self.rows += rows.num_rows();
        self.in_memory_bytes += bytes(&rows);
        self.in_memory.push(rows);
        Ok(())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the bytes of all rows, in memory and spilled.
    pub(super) fn row_bytes(&self) -> usize {
        self.spilled_bytes + self.in_memory_bytes
    }

    /// Returns the bytes to reserve: rows in memory, and the results as if they were already
    /// computed.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.columns.bytes_with_results(self.rows, self.in_memory_bytes);
        self.in_memory_bytes + self.total_bytes + columns
    }

    /// Returns the bytes of the rows that can be spilled.
    pub(super) fn reclaimable_bytes(&self) -> usize {
        if self.columns.needed.is_some() { self.in_memory_bytes } else { 0 }
    }

    /// Takes the rows in memory as batches to spill, with the row count of each batch.
    pub(super) fn take_in_memory(&mut self) -> (SpillInput, Vec<usize>) {
        let in_memory = std::mem::take(&mut self.in_memory);
        self.spilled_bytes += std::mem::take(&mut self.in_memory_bytes);
        let max_rows = self.plan.batch_size;
        let slices = move |rows: RecordBatch| {
            let starts = (0..rows.num_rows()).step_by(max_rows);
            starts.map(move |start| rows.slice(start, max_rows.min(rows.num_rows() - start)))
        };
        let rows =
            in_memory.iter().cloned().flat_map(slices).map(|slice| slice.num_rows()).collect();
        (Box::new(in_memory.into_iter().flat_map(slices).map(|slice| gc_batch_views(&slice))), rows)
    }

    /// Adds the spilled batches in `file`, with their row counts.
    pub(super) fn add_spilled(&mut self, file: &Arc<dyn SpilledBatches>, rows: Vec<usize>) {
        let batch = |(index, rows)| BufferedBatch::spilled(file.clone(), index, rows, 0);
        self.spilled.extend(rows.into_iter().enumerate().map(batch));
    }

    /// Converts the ended partition into an emitter of its rows and results, for which `memory` is
    /// reserved.
    pub(super) fn into_emitter(
        mut self,
        memory: Reservation,
        context: &OperatorContext,
        task: &DriverContext,
    ) -> Result<PartitionEmitter> {
        let whole = self.columns.whole(&self.in_memory)?;
        let mut results = Vec::with_capacity(self.totals.len());
        let plan = &self.plan;
        let expressions = plan.expressions.iter().zip(&plan.kernels);
        for (((expression, kernel), strategy), total) in
            expressions.zip(&plan.strategies).zip(&mut self.totals)
        {
            task.check_cancelled()?;
            results.push(match (strategy, total) {
                (EvalStrategy::Streaming, _) => ExprResult::Streaming,
                (EvalStrategy::PartitionTotal, Some(total)) => ExprResult::Total(total.value()?),
                (EvalStrategy::PartitionColumns { .. }, _) => ExprResult::Column(framed::evaluate(
                    expression,
                    kernel.as_deref(),
                    &whole,
                    task,
                )?),
                (EvalStrategy::PartitionTotal, None) => {
                    return internal_err!("a partition total has no accumulator").query_err();
                }
            });
        }
        let in_memory =
            self.in_memory.into_iter().map(|rows| BufferedBatch::from(Batch::new(rows)));
        let mut emitter = PartitionEmitter {
            batches: self.spilled.into_iter().chain(in_memory).collect(),
            in_memory_bytes: self.in_memory_bytes,
            reader: BufferReader::new(context),
            fetched: Steps::default(),
            streaming: None,
            result_bytes: results.iter().map(ExprResult::bytes).sum(),
            results,
            current: None,
            emitted_rows: 0,
            plan: self.plan,
            memory,
            min_spill_bytes: context.min_spill_bytes().max(STATE_BYTES),
        };
        emitter.reserve()?;
        Ok(emitter)
    }
}

impl fmt::Debug for BufferedPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedPartition").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Total {
    fn new(expression: &Arc<dyn WindowExpr>, schema: &SchemaRef) -> Result<Self> {
        let plain = expression.as_any().downcast_ref::<PlainAggregateWindowExpr>();
        let Some(aggregate) = plain.map(PlainAggregateWindowExpr::get_aggregate_expr) else {
            return internal_err!("{} is not an aggregate", expression.name()).query_err();
        };
        if is_unfiltered_aggregate(expression) {
            let accumulator = aggregate.create_accumulator().query_err()?;
            return Ok(Self::Unfiltered(expression.clone(), accumulator));
        }
        let mut partition = PartitionBatches::default();
        partition.insert(KEY, PartitionBatchState::new(schema.clone()));
        let state = aggregate.state_fields().query_err()?;
        Ok(Self::Filtered(Filtered {
            expression: expression.clone(),
            partition,
            states: PartitionWindowAggStates::default(),
            keeps_values: state.iter().any(|field| field.data_type().is_nested()),
            value_bytes: 0,
        }))
    }

    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        match self {
            Self::Unfiltered(expression, accumulator) => {
                let values = expression.evaluate_args(rows).query_err()?;
                accumulator.update_batch(&values).query_err()
            }
            Self::Filtered(filtered) => filtered.add(rows),
        }
    }

    fn value(&mut self) -> Result<ScalarValue> {
        match self {
            Self::Unfiltered(_, accumulator) => accumulator.evaluate().query_err(),
            Self::Filtered(filtered) => filtered.value(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Unfiltered(_, accumulator) => accumulator.size(),
            Self::Filtered(filtered) => filtered.bytes(),
        }
    }
}

impl Filtered {
    /// Adds rows as if they were the last ones, then resets that state. Of DataFusion's state, only
    /// the accumulator carries over.
    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        for of in self.states.values_mut() {
            of.state = WindowAggState::new(of.state.out_col.data_type()).query_err()?;
        }
        for part in self.partition.values_mut() {
            part.record_batch = rows.clone();
            part.is_end = true;
        }
        let context = WindowEvalContext::default();
        self.expression
            .evaluate_stateful(&self.partition, &mut self.states, &context)
            .query_err()?;
        for part in self.partition.values_mut() {
            part.record_batch = RecordBatch::new_empty(rows.schema());
        }
        // The result is the same for each row, so one value is kept.
        for of in self.states.values_mut() {
            let result = ScalarValue::try_from_array(&of.state.out_col, 0).query_err()?;
            of.state.out_col = result.to_array().query_err()?;
        }
        if self.keeps_values {
            self.value_bytes += self.argument_bytes(rows)?;
        }
        Ok(())
    }

    /// Returns the bytes of the arguments, or of all of `rows` if an argument is volatile.
    fn argument_bytes(&self, rows: &RecordBatch) -> Result<usize> {
        if self.expression.expressions().iter().any(is_volatile) {
            return Ok(bytes(rows));
        }
        let values = self.expression.evaluate_args(rows).query_err()?;
        Ok(values.iter().map(|of| of.get_array_memory_size()).sum())
    }

    fn value(&self) -> Result<ScalarValue> {
        let mut results = self.states.values().map(|of| &of.state.out_col);
        match results.next() {
            Some(result) => ScalarValue::try_from_array(result, 0).query_err(),
            None => internal_err!("a window partition has no rows").query_err(),
        }
    }

    fn bytes(&self) -> usize {
        let results = self.states.values().map(|of| of.state.out_col.get_array_memory_size());
        results.sum::<usize>() + self.value_bytes
    }
}

impl BufferedColumns {
    fn new(strategies: &[EvalStrategy]) -> Self {
        let mut needed = Some(Vec::new());
        let (mut row_bytes, mut scalar_bytes) = (0, 0);
        for strategy in strategies {
            let EvalStrategy::PartitionColumns { columns, by_frame } = strategy else { continue };
            row_bytes += RESULT_BYTES;
            if *by_frame {
                scalar_bytes = SCALAR_BYTES;
            }
            match (columns, &mut needed) {
                (Some(columns), Some(needed)) => needed.extend(columns),
                _ => needed = None,
            }
        }
        Self { needed, rows: Vec::new(), bytes: 0, row_bytes: row_bytes + scalar_bytes }
    }

    /// Returns true if no expression reads all rows at once.
    fn is_empty(&self) -> bool {
        self.row_bytes == 0
    }

    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let Some(needed) = self.needed.as_ref().filter(|_| !self.is_empty()) else {
            return Ok(());
        };
        let schema = rows.schema();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (index, field) in schema.fields().iter().enumerate() {
            if needed.contains(&index) {
                fields.push(field.clone());
                columns.push(rows.column(index).clone());
                self.bytes += rows.column(index).get_array_memory_size();
            } else {
                fields.push(Arc::new(Field::new(field.name(), DataType::Null, true)));
                columns.push(new_null_array(&DataType::Null, rows.num_rows()));
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let schema = Arc::new(Schema::new(fields));
        self.rows.push(RecordBatch::try_new_with_options(schema, columns, &options).query_err()?);
        Ok(())
    }

    /// Returns the bytes of the columns read of `rows` rows, of one copy of them, and of their
    /// results.
    fn bytes_with_results(&self, rows: usize, in_memory_bytes: usize) -> usize {
        if self.is_empty() {
            return 0;
        }
        let looked_at = if self.needed.is_some() { self.bytes } else { in_memory_bytes };
        2 * looked_at + rows * self.row_bytes
    }

    /// Returns all columns read, concatenated.
    fn whole(&mut self, in_memory: &[RecordBatch]) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let rows = if self.needed.is_some() { &rows } else { in_memory };
        if rows.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
        }
        concat_batches(rows)
    }
}
