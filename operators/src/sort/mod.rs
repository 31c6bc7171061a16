//! Sort and top-N: every sink task sorts its input into one run, sources merge the runs.
//!
//! Sort keys are arrow rows, whose bytes compare as the sort does, so runs are sorted and merged by
//! comparing bytes. With a `fetch`, a task regularly shrinks its input to that number of rows. It
//! drops rows behind the best threshold that any task has published (`run.rs`). The threshold is a
//! runtime filter of the scans below as well, which get each better one (`threshold.rs`).
//!
//! A volatile sort expression is evaluated once for each row, and its value is carried along as a
//! column.
//!
//! A task whose reservation is denied sorts its input and spills it as a run of its own. The merge
//! buffers one batch of each spilled run, and one prefetched batch.

mod chunks;
mod merge_exchange;
mod prefix;
mod run;
mod sample_sort;
mod source;
mod threshold;

#[cfg(test)]
mod tests;

pub use merge_exchange::MergeExchangeSource;
use prefix::KeyPrefix;
pub(crate) use prefix::first_bytes;
pub use run::SortSink;
pub use source::SortSource;
use threshold::TopNThreshold;

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
};
use arrow_row::{RowConverter, SortField};
use datafusion_physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::Column};
use datafusion_physical_expr_common::physical_expr::is_volatile;
use gatework_runtime::{Error, Result, pipeline::PerTask};
use gatework_shared_state::sort;
use parking_lot::{Mutex, RwLock};

use crate::{ResultExt, runtime_filter::FilterTarget};

/// Configuration of a sort.
#[derive(Debug, Clone)]
pub struct SortConfig {
    /// Sort keys.
    pub ordering: LexOrdering,
    /// Number of first rows to return; `None` for all.
    pub fetch: Option<usize>,
    /// Schema of the rows.
    pub schema: SchemaRef,
    /// Rows per output batch.
    pub batch_rows: usize,
}

/// Prepared sort, shared by all tasks.
struct SortPlan {
    /// Configuration; with carried keys, its schema and ordering include them.
    config: SortConfig,
    carried: Option<Carried>,
    converter: RowConverter,
    /// Prefix of keys that may have nothing in common.
    leading_prefix: Arc<KeyPrefix>,
    /// Prefixes of the runs in memory, each once.
    prefixes: Mutex<Vec<Arc<KeyPrefix>>>,
    /// With a `fetch`: the lowest key known to have at least `fetch` rows at or before it.
    threshold: RwLock<Option<Arc<TopNThreshold>>>,
    /// Filter to which each better threshold is published.
    filter: Option<Arc<dyn FilterTarget>>,
}

impl fmt::Debug for SortPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sort plan of {:?}", self.config)
    }
}

/// Sort keys that must not be evaluated again, as columns behind the others.
#[derive(Debug)]
struct Carried {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Schema of the rows without the carried keys.
    schema: SchemaRef,
}

impl Carried {
    /// Changes `config` to carry its keys along, if one of them is volatile.
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

    /// Creates the plan of rows that arrive sorted, without carried keys.
    fn for_presorted(config: SortConfig) -> Result<Self> {
        let fields = config.ordering.iter().map(|key| {
            Ok(SortField::new_with_options(key.expr.data_type(&config.schema)?, key.options))
        });
        let fields =
            fields.collect::<Result<_, datafusion_common::DataFusionError>>().query_err()?;
        let converter = RowConverter::new(fields).query_err()?;
        let leading_prefix = Arc::new(KeyPrefix::leading());
        Ok(Self {
            config,
            carried: None,
            converter,
            prefixes: Mutex::new(vec![leading_prefix.clone()]),
            leading_prefix,
            threshold: RwLock::new(None),
            filter: None,
        })
    }

    /// Makes `threshold`, which is the last of `fetch` rows, the threshold of all tasks if it is
    /// better than the known one.
    fn publish(&self, threshold: TopNThreshold) -> Result<()> {
        let predicate = match &self.filter {
            Some(filter) => {
                threshold.predicate(&self.config.ordering, filter.keys()).query_err()?
            }
            None => None,
        };
        let mut known = self.threshold.write();
        if known.as_ref().is_some_and(|known| known.key <= threshold.key) {
            return Ok(());
        }
        *known = Some(Arc::new(threshold));
        if let Some((filter, predicate)) = self.filter.as_ref().zip(predicate)
            && let Err(error) = filter.publish(Some(predicate))
        {
            tracing::debug!(%error, "a top-n's threshold could not be used as a filter");
        }
        Ok(())
    }

    /// Returns the instance of a prefix that all runs share which have an equal one.
    fn share_prefix(&self, prefix: Arc<KeyPrefix>) -> Arc<KeyPrefix> {
        let mut prefixes = self.prefixes.lock();
        if let Some(shared) = prefixes.iter().find(|shared| **shared == prefix) {
            return shared.clone();
        }
        prefixes.push(prefix.clone());
        prefix
    }

    /// Returns `rows` with the carried keys appended, if there are any.
    fn with_carried(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let Some(carried) = &self.carried else { return Ok(rows) };
        let count = rows.num_rows();
        let evaluate = |key: &Arc<dyn PhysicalExpr>| key.evaluate(&rows)?.into_array_of_size(count);
        let keys = carried.keys.iter().map(evaluate);
        let keys = keys.collect::<datafusion_common::Result<Vec<ArrayRef>>>().query_err()?;
        let columns = rows.columns().iter().cloned().chain(keys).collect();
        RecordBatch::try_new(self.config.schema.clone(), columns).query_err()
    }

    /// Returns `rows` without the carried keys.
    fn without_carried(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let Some(carried) = &self.carried else { return Ok(rows) };
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let columns = rows.columns()[..carried.schema.fields().len()].to_vec();
        RecordBatch::try_new_with_options(carried.schema.clone(), columns, &options).query_err()
    }

    /// Evaluates the sort keys of `rows`.
    fn key_columns(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let keys = self.config.ordering.iter();
        keys.map(|key| key.expr.evaluate(rows)?.into_array_of_size(rows.num_rows()))
            .collect::<Result<_, _>>()
            .query_err()
    }
}

/// Creates sink and source of a sort with `sinks` sink tasks and one source task, which returns the
/// rows in order.
///
/// # Errors
/// If a sort key cannot be compared.
pub fn new(config: SortConfig, sinks: usize) -> Result<(SortSink, SortSource)> {
    new_with_filter(config, sinks, None)
}

/// Creates a sort as [`new`] does. With a `fetch`, each better threshold is published to `filter`,
/// so that the scans below drop the rows behind it.
///
/// # Errors
/// As [`new`].
pub fn new_with_filter(
    config: SortConfig,
    sinks: usize,
    filter: Option<Arc<dyn FilterTarget>>,
) -> Result<(SortSink, SortSource)> {
    let plan = Arc::new(SortPlan { filter, ..SortPlan::new(config)? });
    let (sink_tokens, source_tokens) = sort::new("sort", sinks, 1, 1);
    Ok((
        SortSink::new(plan.clone(), PerTask::new("sort sink", sink_tokens)),
        SortSource::new(plan, PerTask::new("sort source", source_tokens)),
    ))
}

/// Creates sink and source of a separate sort per task: source task *i* returns the rows of sink
/// task *i* in order.
///
/// # Errors
/// If a sort key cannot be compared, or `config` has a `fetch`, whose threshold all tasks would
/// share.
pub fn new_per_task(config: SortConfig, tasks: usize) -> Result<(SortSink, SortSource)> {
    if config.fetch.is_some() {
        return Err(Error::InvalidConfiguration(
            "a sort per task cannot have a fetch limit".into(),
        ));
    }
    let plan = Arc::new(SortPlan::new(config)?);
    let (mut sinks, mut sources) = (Vec::new(), Vec::new());
    for _ in 0..tasks {
        let (mut sink, mut source) = sort::new("sort", 1, 1, 1);
        sinks.append(&mut sink);
        sources.append(&mut source);
    }
    Ok((
        SortSink::new(plan.clone(), PerTask::new("sort sink", sinks)),
        SortSource::new(plan, PerTask::new("sort source", sources)),
    ))
}
