//! Sort and top-N: every sink task sorts what it gets into one run, sources merge the runs.
//!
//! Sort keys are arrow rows, whose bytes compare as the sort does, so runs are sorted and merged by
//! comparing bytes. With a `fetch` a task keeps no more than that many rows for long, and drops rows
//! behind the best boundary that any task knows (`run.rs`).
//!
//! A volatile sort expression is evaluated once for each row, and its value is carried along as a
//! column.
//!
//! A task that gets no memory sorts what it has and spills it as a run of its own; of such runs the merge
//! holds a batch each, and one that is read ahead.

mod chunks;
mod merge_exchange;
mod run;
mod sample_sort;
mod source;

#[cfg(test)]
mod tests;

pub use merge_exchange::MergeExchangeSource;
pub use run::SortSink;
use run::TopNThreshold;
pub use source::SortSource;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
};
use arrow_row::{RowConverter, SortField};
use datafusion_physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::Column};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Error, Result, pipeline::PerTask};
use gatework_shared_state::sort;
use parking_lot::RwLock;

use crate::ResultExt;

/// A sort.
#[derive(Debug, Clone)]
pub struct SortConfig {
    /// The sort keys.
    pub ordering: LexOrdering,
    /// How many rows of the order are wanted; `None` for all.
    pub fetch: Option<usize>,
    /// The columns.
    pub schema: SchemaRef,
    /// Rows per output batch.
    pub batch_rows: usize,
}

/// What all tasks of a sort share.
#[derive(Debug)]
struct SortPlan {
    /// If keys are carried along, of the rows with them.
    config: SortConfig,
    carried: Option<Carried>,
    converter: RowConverter,
    /// With a `fetch`: the lowest key known to have that many rows at or before it.
    threshold: RwLock<Option<Arc<TopNThreshold>>>,
}

/// Sort keys that cannot be evaluated again, as columns behind the others.
#[derive(Debug)]
struct Carried {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Of the rows without them.
    schema: SchemaRef,
}

impl Carried {
    /// Has the keys of `config` carried along, if one of them is volatile.
    fn take_from(config: &mut SortConfig) -> datafusion_common::Result<Option<Self>> {
        if !config.ordering.iter().any(|key| is_volatile(&key.expr)) {
            return Ok(None);
        }
        let (schema, ordering) = (config.schema.clone(), config.ordering.clone());
        let mut fields: Vec<Field> =
            schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        let mut columns = Vec::new();
        for (index, key) in ordering.iter().enumerate() {
            let name = format!("sort key {index}");
            let column = Arc::new(Column::new(&name, fields.len()));
            columns.push(PhysicalSortExpr::new(column, key.options));
            fields.push(Field::new(name, key.expr.data_type(&schema)?, true));
        }
        if let Some(carried) = LexOrdering::new(columns) {
            config.ordering = carried;
        }
        config.schema = Arc::new(Schema::new(fields));
        let keys = ordering.iter().map(|key| key.expr.clone()).collect();
        Ok(Some(Self { keys, schema }))
    }
}

impl SortPlan {
    fn new(mut config: SortConfig) -> Result<Self> {
        let carried = Carried::take_from(&mut config).query_err()?;
        Ok(Self { carried, ..Self::for_presorted(config)? })
    }

    /// Of rows that come in order, whose keys nobody carried along.
    fn for_presorted(config: SortConfig) -> Result<Self> {
        let fields = config.ordering.iter().map(|key| {
            Ok(SortField::new_with_options(key.expr.data_type(&config.schema)?, key.options))
        });
        let fields =
            fields.collect::<Result<_, datafusion_common::DataFusionError>>().query_err()?;
        let converter = RowConverter::new(fields).query_err()?;
        Ok(Self { config, carried: None, converter, threshold: RwLock::new(None) })
    }

    /// `rows` with the keys that are carried along, if any are.
    fn with_carried(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let Some(carried) = &self.carried else { return Ok(rows) };
        let count = rows.num_rows();
        let evaluate = |key: &Arc<dyn PhysicalExpr>| key.evaluate(&rows)?.into_array_of_size(count);
        let keys = carried.keys.iter().map(evaluate);
        let keys = keys.collect::<datafusion_common::Result<Vec<ArrayRef>>>().query_err()?;
        let columns = rows.columns().iter().cloned().chain(keys).collect();
        RecordBatch::try_new(self.config.schema.clone(), columns).query_err()
    }

    /// `rows` without these.
    fn without_carried(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let Some(carried) = &self.carried else { return Ok(rows) };
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let columns = rows.columns()[..carried.schema.fields().len()].to_vec();
        RecordBatch::try_new_with_options(carried.schema.clone(), columns, &options).query_err()
    }

    /// The sort keys of `rows`.
    fn key_columns(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let keys = self.config.ordering.iter();
        keys.map(|key| key.expr.evaluate(rows)?.into_array_of_size(rows.num_rows()))
            .collect::<Result<_, _>>()
            .query_err()
    }
}

/// Sink and source of a sort with `sinks` sink tasks and one source task, whose rows are in order.
///
/// # Errors
/// If a sort key cannot be compared.
pub fn new(config: SortConfig, sinks: usize) -> Result<(SortSink, SortSource)> {
    let shared = Arc::new(SortPlan::new(config)?);
    let (sink_tokens, source_tokens) = sort::new("sort", sinks, 1, 1);
    Ok((
        SortSink::new(shared.clone(), PerTask::new(sink_tokens)),
        SortSource::new(shared, PerTask::new(source_tokens)),
    ))
}

/// Sink and source of a sort of each of `tasks` tasks by itself: what sink task *i* gets, source task *i* gives in order.
///
/// # Errors
/// If a sort key cannot be compared, or only the first rows are wanted: tasks share what they know of those.
pub fn new_per_task(config: SortConfig, tasks: usize) -> Result<(SortSink, SortSource)> {
    if config.fetch.is_some() {
        return Err(Error::InvalidConfiguration(
            "a sort per task cannot have a fetch limit".into(),
        ));
    }
    let shared = Arc::new(SortPlan::new(config)?);
    let (mut sinks, mut sources) = (Vec::new(), Vec::new());
    for _ in 0..tasks {
        let (mut sink, mut source) = sort::new("sort", 1, 1, 1);
        sinks.append(&mut sink);
        sources.append(&mut source);
    }
    Ok((
        SortSink::new(shared.clone(), PerTask::new(sinks)),
        SortSource::new(shared, PerTask::new(sources)),
    ))
}
