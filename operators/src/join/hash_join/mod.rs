//! Hash join: N build tasks, one shared table, M probe tasks.
//!
//! The left side is the build side, the right side the probe side. Build tasks encode their keys
//! and keep the columns that are needed later. The last build task only publishes. One probe task
//! allocates the table, and all probe tasks fill it in build morsels (`table.rs`). A probe task
//! then looks up its batches. After its input it takes unmatched-scan morsels, which output build
//! rows by whether they found a match.
//!
//! A build side that does not fit into memory is partitioned. Some partitions are spilled, together
//! with the probe rows that may match them (`build_spill.rs`). Spilled partitions are joined one by
//! one afterwards. A partition that does not fit either is repartitioned, or joined in chunks if it
//! is one key (`spilled_partition.rs`).
//!
//! All ten join types, residual filters, both NULL equalities and the null-aware anti join follow
//! DataFusion 55; results must equal those of its joins. A finished table is published as a runtime
//! filter: key bounds, and membership in the table itself.

mod build;
mod build_keys;
mod build_rows;
mod build_spill;
mod config;
mod index;
mod lookup;
mod probe;
mod probe_batch;
mod rank_index;
mod runtime_filter;
mod spilled_partition;
mod table;
mod unmatched_scan;

#[cfg(test)]
mod tests;

pub use build::HashJoinBuild;
pub use config::HashJoinConfig;
pub use lookup::membership_predicate;
pub use probe::HashJoinProbe;

use std::sync::Arc;

use gatework_runtime::{Result, pipeline::PerTask};
use gatework_shared_state::join_bridge;
use parking_lot::Mutex;

use crate::runtime_filter::FilterProducer;

/// Creates sink and operator of a join with `build_tasks` and `probe_tasks` tasks. `filter`, if
/// given, publishes a runtime filter of the build keys once the table is finished.
///
/// # Errors
/// If a key cannot be compared.
pub fn new(
    config: HashJoinConfig,
    build_tasks: usize,
    probe_tasks: usize,
    filter: Option<FilterProducer>,
) -> Result<(HashJoinBuild, HashJoinProbe)> {
    let plan = Arc::new(config.prepare(filter.is_some(), probe_tasks)?);
    let (producers, consumers) = join_bridge::new("join", build_tasks, probe_tasks);
    Ok((
        HashJoinBuild::new(plan.clone(), PerTask::new("hash join build", producers)),
        HashJoinProbe::new(
            plan,
            PerTask::new("hash join probe", consumers),
            Arc::new(Mutex::new(filter)),
        ),
    ))
}
