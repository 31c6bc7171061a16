//! Hash aggregate: every sink task aggregates into a table of its own, cut into hash partitions at
//! the end; source tasks merge the partitions, one at a time each. N:N, no exchange in front.
//!
//! Local tables are bounded: one that holds too many groups is emptied into partial states, which
//! are partitioned at once and merged later with everything else. With one sink task there is
//! nothing to merge, and its table goes to the source as it is. What does not fit into memory goes to
//! files (`spiller.rs`). Without grouping there is one group,
//! and DataFusion's row accumulators are used (`ungrouped.rs`).
//!
//! A partial aggregate needs none of that (`partial.rs`).
//!
//! Aggregate semantics are DataFusion's: its accumulators update, merge and evaluate.

mod config;
mod group_cache;
mod group_emitter;
mod groups;
mod partial;
mod sink;
mod source;
mod spiller;
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

/// Sink and source of an aggregate between `sinks` and `sources` tasks.
///
/// # Errors
/// If a group key cannot be compared.
pub fn new(
    config: AggregateConfig,
    sinks: usize,
    sources: usize,
) -> Result<(AggregateSink, AggregateSource)> {
    let shared = Arc::new(config.prepare(sinks)?);
    let (producers, consumers) = aggregate::new("aggregate", sinks, sources, shared.partitions);
    Ok((
        AggregateSink::new(shared.clone(), PerTask::new(producers)),
        AggregateSource::new(shared, PerTask::new(consumers)),
    ))
}
