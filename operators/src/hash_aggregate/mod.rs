//! Hash aggregate: every sink task aggregates into a table of its own, cut into hash partitions at
//! the end; source tasks merge the partitions, one at a time each. N:N, no exchange in front.
//!
//! Local tables are bounded: one that holds too many groups is emptied into partial states, which
//! are partitioned at once and merged later with everything else. With one sink task there is
//! nothing to merge, and its table goes to the source as it is. What does not fit into memory goes to
//! files (`overflow.rs`). Without grouping there is one group,
//! and DataFusion's row accumulators are used (`ungrouped.rs`).
//!
//! A partial aggregate needs none of that (`partial.rs`).
//!
//! Aggregate semantics are DataFusion's: its accumulators update, merge and evaluate.

mod build;
mod config;
mod emitted;
mod groups;
mod output;
mod overflow;
mod partial;
mod recent;
mod ungrouped;

#[cfg(test)]
mod tests;

pub use build::AggregateBuild;
pub use config::{AggregateCall, AggregateConfig, GroupBy, InputRows, OutputRows};
pub use output::AggregateOutput;
pub use partial::PartialAggregate;

use std::sync::Arc;

use gatework_runtime::{Result, pipeline::Slots};
use gatework_shared_state::aggregate;

/// Sink and source of an aggregate between `sinks` and `sources` tasks.
///
/// # Errors
/// If a group key cannot be compared.
pub fn new(
    config: AggregateConfig,
    sinks: usize,
    sources: usize,
) -> Result<(AggregateBuild, AggregateOutput)> {
    let shared = Arc::new(config.prepare(sinks)?);
    let (sink_tokens, source_tokens) = aggregate::new("aggregate", sinks, sources, shared.units);
    Ok((
        AggregateBuild::new(shared.clone(), Slots::new(sink_tokens)),
        AggregateOutput::new(shared, Slots::new(source_tokens)),
    ))
}
