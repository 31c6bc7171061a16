//! Sort and top-N: every sink task sorts what it gets into one run, sources merge the runs.
//!
//! Sort keys are arrow rows, whose bytes compare as the sort does, so runs are sorted and merged by
//! comparing bytes. With a `fetch` a task keeps no more than that many rows for long, and drops rows
//! behind the best boundary that any task knows (`run.rs`).
//!
//! A task that gets no memory sorts what it has and spills it as a run of its own; of such runs the merge
//! holds a batch each, and one that is read ahead.

mod merge;
mod order;
mod ordered_exchange;
mod run;

#[cfg(test)]
mod tests;

pub use merge::SortMerge;
pub use ordered_exchange::OrderedExchange;
use run::Boundary;
pub use run::SortRuns;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use arrow_row::{RowConverter, SortField};
use datafusion_physical_expr::LexOrdering;
use gatework_runtime::{Error, Result, pipeline::Slots};
use gatework_shared_state::sort;
use parking_lot::RwLock;

use crate::OrFail;

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
struct Shared {
    config: SortConfig,
    converter: RowConverter,
    /// With a `fetch`: the lowest key known to have that many rows at or before it.
    boundary: RwLock<Option<Arc<Boundary>>>,
}

impl Shared {
    fn new(config: SortConfig) -> Result<Self> {
        let fields = config.ordering.iter().map(|key| {
            Ok(SortField::new_with_options(key.expr.data_type(&config.schema)?, key.options))
        });
        let fields = fields.collect::<Result<_, datafusion_common::DataFusionError>>().or_fail()?;
        let converter = RowConverter::new(fields).or_fail()?;
        Ok(Self { config, converter, boundary: RwLock::new(None) })
    }

    /// The sort keys of `rows`.
    fn key_columns(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let keys = self.config.ordering.iter();
        keys.map(|key| key.expr.evaluate(rows)?.into_array_of_size(rows.num_rows()))
            .collect::<Result<_, _>>()
            .or_fail()
    }
}

/// Sink and source of a sort with `sinks` sink tasks and one source task, whose rows are in order.
///
/// # Errors
/// If a sort key cannot be compared.
pub fn new(config: SortConfig, sinks: usize) -> Result<(SortRuns, SortMerge)> {
    let shared = Arc::new(Shared::new(config)?);
    let (sink_tokens, source_tokens) = sort::new("sort", sinks, 1, 1);
    Ok((
        SortRuns::new(shared.clone(), Slots::new(sink_tokens)),
        SortMerge::new(shared, Slots::new(source_tokens)),
    ))
}

/// Sink and source of a sort of each of `tasks` tasks by itself: what sink task *i* gets, source task *i* gives in order.
///
/// # Errors
/// If a sort key cannot be compared, or only the first rows are wanted: tasks share what they know of those.
pub fn each(config: SortConfig, tasks: usize) -> Result<(SortRuns, SortMerge)> {
    if config.fetch.is_some() {
        return Err(Error::Setup("the first rows of each task cannot be sorted apart".into()));
    }
    let shared = Arc::new(Shared::new(config)?);
    let (mut sinks, mut sources) = (Vec::new(), Vec::new());
    for _ in 0..tasks {
        let (mut sink, mut source) = sort::new("sort", 1, 1, 1);
        sinks.append(&mut sink);
        sources.append(&mut source);
    }
    Ok((
        SortRuns::new(shared.clone(), Slots::new(sinks)),
        SortMerge::new(shared, Slots::new(sources)),
    ))
}
