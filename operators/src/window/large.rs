//! A large window partition whose end some expression looks at: collected as it comes, given once it has ended.
//!
//! While rows come, each expression takes from them what it needs of all of them ([`Way`]). The rows themselves are
//! looked at again only when they are given, one batch after the other, so they may be in files meanwhile.

use std::{collections::VecDeque, fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
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
    Error, Result,
    pipeline::{Batch, Fetch, Held, Reservation, Setup, Spilled, Taken, TaskContext, ToSpill},
};
use gatework_shared_state::{Gate, Payload, Take};

use super::{
    Plan, RESULT_BYTES, STATE_BYTES, Steps, Way, bytes, framed,
    long::{KEY, Long},
    way::is_unfiltered_aggregate,
};
use crate::{
    OrFail,
    compact::to_keep,
    concat::concat_rows,
    spilling::{own_buffers, resize},
};

/// The rows of a window partition, and what expressions know of them.
pub(super) struct Large {
    plan: Arc<Plan>,
    /// Of the rows, whatever a batch says of its NULLs.
    schema: SchemaRef,
    rows: usize,
    /// The first rows, in files, and what they took in memory.
    away: Vec<Held>,
    away_bytes: usize,
    /// Those that follow, but for some that may be on their way to a file.
    here: Vec<RecordBatch>,
    here_bytes: usize,
    /// Of each expression that has one, and what they take: to ask may be to go through all that they keep.
    totals: Vec<Option<Total>>,
    total_bytes: usize,
    columns: Columns,
}

/// An aggregate over all rows so far.
enum Total {
    Of(Arc<dyn WindowExpr>, Box<dyn Accumulator>),
    Filtered(Filtered),
}

/// An aggregate with a filter that only its expression knows.
struct Filtered {
    expression: Arc<dyn WindowExpr>,
    partition: PartitionBatches,
    states: PartitionWindowAggStates,
    /// Its accumulator keeps values, whose bytes so far are an estimate of its size, which cannot be seen.
    keeps_values: bool,
    value_bytes: usize,
}

/// What expressions look at that look at all rows at once.
struct Columns {
    /// Where these columns are; `None`: the rows are needed as they are.
    needed: Option<Vec<usize>>,
    /// Rows with nothing but NULLs in all other columns.
    rows: Vec<RecordBatch>,
    bytes: usize,
    /// What results take for a row, and one while it is made.
    row_bytes: usize,
}

/// Bytes of a result for a row while results are made one by one: a `ScalarValue`.
const SCALAR_BYTES: usize = size_of::<ScalarValue>();

impl Large {
    /// A window partition without rows.
    pub(super) fn new(plan: &Arc<Plan>, rows: &Schema) -> Result<Self> {
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let fields: Vec<Field> = rows.fields().iter().map(nullable).collect();
        let schema = Arc::new(Schema::new(fields));
        let total = |(expression, way): (&Arc<dyn WindowExpr>, &Way)| {
            matches!(way, Way::Total).then(|| Total::new(expression, &schema)).transpose()
        };
        Ok(Self {
            totals: plan.expressions.iter().zip(&plan.ways).map(total).collect::<Result<_>>()?,
            total_bytes: 0,
            schema,
            rows: 0,
            away: Vec::new(),
            away_bytes: 0,
            here: Vec::new(),
            here_bytes: 0,
            columns: Columns::new(&plan.ways),
            plan: plan.clone(),
        })
    }

    /// Adds the next rows.
    pub(super) fn add(&mut self, batches: &[RecordBatch], task: &TaskContext) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        let rows = to_keep(concat_rows(batches)?)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let columns = rows.columns().to_vec();
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        let rows = rows.or_fail()?;
        for total in self.totals.iter_mut().flatten() {
            let mut steps = Steps(VecDeque::from([rows.clone()]));
            while !steps.is_empty() {
                task.check()?;
                steps.next(0).iter().try_for_each(|rows| total.add(rows))?;
            }
        }
        self.total_bytes = self.totals.iter().flatten().map(Total::bytes).sum();
        self.columns.add(&rows)?;
        self.rows += rows.num_rows();
        self.here_bytes += bytes(&rows);
        self.here.push(rows);
        Ok(())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of all rows, wherever they are.
    pub(super) fn row_bytes(&self) -> usize {
        self.away_bytes + self.here_bytes
    }

    /// Bytes that are to be reserved: for rows in memory, and for results, as if they were there.
    pub(super) fn bytes(&self) -> usize {
        let columns = self.columns.bytes_with_results(self.rows, self.here_bytes);
        self.here_bytes + self.total_bytes + columns
    }

    /// Bytes of rows that could go to a file.
    pub(super) fn could_give_back(&self) -> usize {
        if self.columns.needed.is_some() { self.here_bytes } else { 0 }
    }

    /// The rows in memory, in batches to be written, with how many rows there are in each.
    pub(super) fn take_here(&mut self) -> (ToSpill, Vec<usize>) {
        let here = std::mem::take(&mut self.here);
        self.away_bytes += std::mem::take(&mut self.here_bytes);
        let most = self.plan.batch_size;
        let slices = move |rows: RecordBatch| {
            let starts = (0..rows.num_rows()).step_by(most);
            starts.map(move |start| rows.slice(start, most.min(rows.num_rows() - start)))
        };
        let rows = here.iter().cloned().flat_map(slices).map(|slice| slice.num_rows()).collect();
        (Box::new(here.into_iter().flat_map(slices).map(|slice| own_buffers(&slice))), rows)
    }

    /// Those are in `file`.
    pub(super) fn was_put_away(&mut self, file: &Arc<dyn Spilled>, rows: Vec<usize>) {
        let held = |(number, rows)| Held::away(file.clone(), number, rows, 0);
        self.away.extend(rows.into_iter().enumerate().map(held));
    }

    /// After its end: gives the rows with their results, for which `memory` is reserved.
    pub(super) fn give(
        mut self,
        memory: Reservation,
        setup: &Setup,
        task: &TaskContext,
    ) -> Result<Giving> {
        let whole = self.columns.whole(&self.here)?;
        let mut results = Vec::with_capacity(self.totals.len());
        for ((expression, way), total) in
            self.plan.expressions.iter().zip(&self.plan.ways).zip(&mut self.totals)
        {
            task.check()?;
            results.push(match (way, total) {
                (Way::Piecewise, _) => Given::Piecewise,
                (Way::Total, Some(total)) => Given::Total(total.value()?),
                (Way::Columns { .. }, _) => {
                    Given::Column(framed::evaluate(expression, &whole, task)?)
                }
                (Way::Total, None) => return internal_err!("a total without a state").or_fail(),
            });
        }
        let here = self.here.into_iter().map(|rows| Held::from(Batch::new(rows)));
        let mut giving = Giving {
            batches: self.away.into_iter().chain(here).collect(),
            here_bytes: self.here_bytes,
            fetch: Fetch::new(setup),
            fetched: Steps::default(),
            long: None,
            result_bytes: results.iter().map(Given::bytes).sum(),
            results,
            now: None,
            given: 0,
            plan: self.plan,
            memory,
            overdraft: setup.overdraft().max(STATE_BYTES),
        };
        giving.reserve()?;
        Ok(giving)
    }
}

impl fmt::Debug for Large {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Large").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Total {
    fn new(expression: &Arc<dyn WindowExpr>, schema: &SchemaRef) -> Result<Self> {
        let plain = expression.as_any().downcast_ref::<PlainAggregateWindowExpr>();
        let Some(aggregate) = plain.map(PlainAggregateWindowExpr::get_aggregate_expr) else {
            return internal_err!("{} is no aggregate", expression.name()).or_fail();
        };
        if is_unfiltered_aggregate(expression) {
            let accumulator = aggregate.create_accumulator().or_fail()?;
            return Ok(Self::Of(expression.clone(), accumulator));
        }
        let mut partition = PartitionBatches::default();
        partition.insert(KEY, PartitionBatchState::new(schema.clone()));
        let state = aggregate.state_fields().or_fail()?;
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
            Self::Of(expression, accumulator) => {
                let values = expression.evaluate_args(rows).or_fail()?;
                accumulator.update_batch(&values).or_fail()
            }
            Self::Filtered(filtered) => filtered.add(rows),
        }
    }

    fn value(&mut self) -> Result<ScalarValue> {
        match self {
            Self::Of(_, accumulator) => accumulator.evaluate().or_fail(),
            Self::Filtered(filtered) => filtered.value(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Of(_, accumulator) => accumulator.size(),
            Self::Filtered(filtered) => filtered.bytes(),
        }
    }
}

impl Filtered {
    /// Adds rows as if they were the last ones, and forgets that they were: of what DataFusion keeps, only the
    /// accumulator goes on.
    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        for of in self.states.values_mut() {
            of.state = WindowAggState::new(of.state.out_col.data_type()).or_fail()?;
        }
        for part in self.partition.values_mut() {
            part.record_batch = rows.clone();
            part.is_end = true;
        }
        let context = WindowEvalContext::default();
        self.expression.evaluate_stateful(&self.partition, &mut self.states, &context).or_fail()?;
        for part in self.partition.values_mut() {
            part.record_batch = RecordBatch::new_empty(rows.schema());
        }
        // The same for each row.
        for of in self.states.values_mut() {
            let result = ScalarValue::try_from_array(&of.state.out_col, 0).or_fail()?;
            of.state.out_col = result.to_array().or_fail()?;
        }
        if self.keeps_values {
            self.value_bytes += self.argument_bytes(rows)?;
        }
        Ok(())
    }

    /// The bytes of the arguments; of all of `rows`, if those cannot be evaluated again.
    fn argument_bytes(&self, rows: &RecordBatch) -> Result<usize> {
        if self.expression.expressions().iter().any(is_volatile) {
            return Ok(bytes(rows));
        }
        let values = self.expression.evaluate_args(rows).or_fail()?;
        Ok(values.iter().map(|of| of.get_array_memory_size()).sum())
    }

    fn value(&self) -> Result<ScalarValue> {
        let mut results = self.states.values().map(|of| &of.state.out_col);
        match results.next() {
            Some(result) => ScalarValue::try_from_array(result, 0).or_fail(),
            None => internal_err!("a window partition without rows").or_fail(),
        }
    }

    fn bytes(&self) -> usize {
        let results = self.states.values().map(|of| of.state.out_col.get_array_memory_size());
        results.sum::<usize>() + self.value_bytes
    }
}

impl Columns {
    fn new(ways: &[Way]) -> Self {
        let mut needed = Some(Vec::new());
        let (mut row_bytes, mut making) = (0, 0);
        for way in ways {
            let Way::Columns { columns, by_frame } = way else { continue };
            row_bytes += RESULT_BYTES;
            if *by_frame {
                making = SCALAR_BYTES;
            }
            match (columns, &mut needed) {
                (Some(columns), Some(needed)) => needed.extend(columns),
                _ => needed = None,
            }
        }
        Self { needed, rows: Vec::new(), bytes: 0, row_bytes: row_bytes + making }
    }

    /// Whether no expression looks at all rows at once.
    fn is_nothing(&self) -> bool {
        self.row_bytes == 0
    }

    fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let Some(needed) = self.needed.as_ref().filter(|_| !self.is_nothing()) else {
            return Ok(());
        };
        let schema = rows.schema();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (place, field) in schema.fields().iter().enumerate() {
            if needed.contains(&place) {
                fields.push(field.clone());
                columns.push(rows.column(place).clone());
                self.bytes += rows.column(place).get_array_memory_size();
            } else {
                fields.push(Arc::new(Field::new(field.name(), DataType::Null, true)));
                columns.push(new_null_array(&DataType::Null, rows.num_rows()));
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let schema = Arc::new(Schema::new(fields));
        self.rows.push(RecordBatch::try_new_with_options(schema, columns, &options).or_fail()?);
        Ok(())
    }

    /// Bytes of what is looked at of `rows` rows, of one copy of it, and of results that are numbers or values of it.
    fn bytes_with_results(&self, rows: usize, here_bytes: usize) -> usize {
        if self.is_nothing() {
            return 0;
        }
        let looked_at = if self.needed.is_some() { self.bytes } else { here_bytes };
        2 * looked_at + rows * self.row_bytes
    }

    /// All that is looked at, as one.
    fn whole(&mut self, here: &[RecordBatch]) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let rows = if self.needed.is_some() { &rows } else { here };
        if rows.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
        }
        concat_rows(rows)
    }
}

/// A window partition that has ended, on its way out.
pub(super) struct Giving {
    plan: Arc<Plan>,
    batches: VecDeque<Held>,
    here_bytes: usize,
    fetch: Fetch,
    /// Rows of a batch that have not been passed.
    fetched: Steps,
    results: Vec<Given>,
    result_bytes: usize,
    /// Of the expressions that are evaluated while the rows pass.
    long: Option<Long>,
    /// Rows that are being given, and results of those expressions; how many of them have been.
    now: Option<(RecordBatch, Vec<ArrayRef>, usize)>,
    /// Of all rows.
    given: usize,
    memory: Reservation,
    overdraft: usize,
}

/// An expression's results.
enum Given {
    /// They come as the rows pass.
    Piecewise,
    /// For each row.
    Total(ScalarValue),
    /// In the order of the rows.
    Column(ArrayRef),
}

impl Given {
    fn bytes(&self) -> usize {
        match self {
            Self::Piecewise => 0,
            Self::Total(value) => value.size(),
            Self::Column(column) => column.get_array_memory_size(),
        }
    }
}

/// What comes next of a window partition on its way out.
pub(super) enum Next {
    /// Rows with their results, a batch at the most.
    Rows(RecordBatch),
    /// A batch is being fetched.
    Blocked(Gate),
    /// All rows have been given.
    End,
}

impl Giving {
    pub(super) fn next(&mut self, task: &TaskContext) -> Result<Next> {
        loop {
            task.check()?;
            if let Some((rows, passed, from)) = self.now.take() {
                let count = self.plan.batch_size.min(rows.num_rows() - from);
                if count > 0 {
                    let output = self.output(&rows.slice(from, count), &passed, from)?;
                    self.now = Some((rows, passed, from + count));
                    return Ok(Next::Rows(output));
                }
            }
            if !self.fetched.is_empty() {
                let kept = self.long.as_ref().map_or(0, Long::kept_rows);
                let rows = self.fetched.next(kept.max(self.plan.batch_size));
                self.now = Some(self.pass(concat_rows(&rows)?)?);
                self.reserve()?;
                if let Some(gate) = task.breath().filter(|_| self.gives_nothing()) {
                    return Ok(Next::Blocked(gate));
                }
                continue;
            }
            let mut taken_bytes = 0;
            let batches = &mut self.batches;
            let take = || match batches.pop_front() {
                Some(held) => {
                    taken_bytes = held.bytes();
                    Take::Item(held)
                }
                None => Take::Finished,
            };
            match self.fetch.next(take)? {
                Taken::Batch(batch) => {
                    self.here_bytes = self.here_bytes.saturating_sub(taken_bytes);
                    self.fetched = Steps(VecDeque::from([batch.into_parts().0]));
                }
                Taken::Blocked(gate) => return Ok(Next::Blocked(gate)),
                Taken::Finished | Taken::Aborted => return Ok(Next::End),
            }
        }
    }

    /// Whether no rows are at hand.
    fn gives_nothing(&self) -> bool {
        self.now.as_ref().is_none_or(|(rows, _, from)| *from == rows.num_rows())
    }

    /// The rows that all piecewise expressions have results for, after these.
    fn pass(&mut self, rows: RecordBatch) -> Result<(RecordBatch, Vec<ArrayRef>, usize)> {
        if !self.results.iter().any(|given| matches!(given, Given::Piecewise)) {
            return Ok((rows, Vec::new(), 0));
        }
        let last = self.batches.is_empty() && self.fetched.is_empty();
        let plan = &self.plan;
        let long = self.long.get_or_insert_with(|| Long::new(plan.piecewise(), &rows.schema()));
        let (rows, results) = long.add(&[rows], last)?;
        Ok((rows, results, 0))
    }

    /// `rows`, with the results that passed, from place `from` of those on.
    fn output(
        &mut self,
        rows: &RecordBatch,
        passed: &[ArrayRef],
        from: usize,
    ) -> Result<RecordBatch> {
        let count = rows.num_rows();
        let mut passed = passed.iter();
        let mut columns = Vec::with_capacity(self.results.len());
        for given in &self.results {
            columns.push(match given {
                Given::Piecewise => match passed.next() {
                    Some(column) => column.slice(from, count),
                    None => return internal_err!("a window expression has no result").or_fail(),
                },
                Given::Total(value) => value.to_array_of_size(count).or_fail()?,
                Given::Column(column) => column.slice(self.given, count),
            });
        }
        self.given += count;
        self.plan.output(rows, columns)
    }

    /// Gives back what has been given. The last rows of the partition may not have been reserved, since it had ended.
    fn reserve(&mut self) -> Result<()> {
        let kept = self.result_bytes + self.long.as_ref().map_or(0, Long::bytes);
        match self.memory.resize(self.here_bytes + kept) {
            Err(Error::OutOfMemory { .. }) if self.memory.bytes() >= kept => Ok(()),
            Err(Error::OutOfMemory { .. }) => resize(&mut self.memory, kept, self.overdraft),
            other => other,
        }
    }
}
