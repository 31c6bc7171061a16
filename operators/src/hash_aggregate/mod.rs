//! Hash aggregate: every sink task aggregates into its own table, which it partitions by hash at
//! the end. Source tasks merge the partitions; each claims one at a time. N:N tasks, without an
//! exchange in front.
//!
//! Local tables are bounded: a table that reaches its maximum number of groups is emptied into
//! partial states. These are partitioned at once and merged later with all others. Where that
//! merges almost no rows, rows bypass the table (`row_states.rs`). With one sink
//! task nothing needs merging, and its table goes to the source unchanged. Groups that do not fit
//! into memory are spilled (`spiller.rs`). Without grouping there is one group, and DataFusion's
//! row accumulators are used (`ungrouped.rs`).
//!
//! A partial aggregate is a streaming operator, not a breaker (`partial.rs`).
//!
//! Aggregate semantics are DataFusion's: its accumulators update, merge and evaluate.

mod config;
mod dictionary_keys;
mod distinct_count;
mod distinct_values;
mod finest_groups;
mod group_emitter;
mod group_keys;
mod groups;
mod partial;
mod partial_states;
mod row_states;
mod sink;
mod source;
mod spiller;
mod task_groups;
mod ungrouped;

#[cfg(test)]
mod tests;

pub use config::{AggregateCall, AggregateConfig, AggregateInput, AggregateResult, GroupBy};
pub use partial::PartialAggregate;
pub use sink::AggregateSink;
pub use source::AggregateSource;

use std::sync::Arc;

use gatework_runtime::{Result, pipeline::PerTask};
use gatework_shared_state::aggregate;

/// Creates sink and source of an aggregate for `sinks` and `sources` tasks.
///
/// # Errors
/// If a group key cannot be compared.
pub fn new(
    config: AggregateConfig,
    sinks: usize,
    sources: usize,
) -> Result<(AggregateSink, AggregateSource)> {
    let plan = Arc::new(config.prepare(sinks)?);
    let (producers, consumers) = aggregate::new("aggregate", sinks, sources, plan.partitions);
    Ok((
        AggregateSink::new(plan.clone(), PerTask::new("aggregate sink", producers)),
        AggregateSource::new(plan, PerTask::new("aggregate source", consumers)),
    ))
}
