//! The wait-for graph: which pipelines wait for which, known when a query is built.
//!
//! Two kinds of wait can be dropped: a full buffer may overflow instead of blocking its producers,
//! and a scan may start without its runtime filter. [`WaitGraph::break_cycles`] drops waits that
//! would close a cycle, so that no plan stalls, and no more of them than needed.
//!
//! # When a plan can stall
//!
//! Every pipeline is expanded to two tasks; more would only be copies of these two. A task waits
//! for one thing at a time:
//!
//! | wait | from → to |
//! |---|---|
//! | end | consumer task → every producer task, behind a breaker |
//! | data | consumer task → every producer task, at a buffer |
//! | capacity | producer task → every consumer task, at a buffer that blocks |
//! | filter | scan task → every task that collects the build side, while the wait is kept |
//! | partition order | reader of a later partition → readers of the earlier ones |
//!
//! In a stall, every stuck task waits for a stuck task that prevents its wake-up. For a capacity
//! wait, that is a task with items left in the buffer. The tasks are finite, so following these
//! waits closes a path: **a stall contains a simple cycle of waits.**
//!
//! Not every cycle can be a stall. A consumer with items left in a buffer can take one, so it does
//! not wait for data of that buffer. So a cycle cannot stall if it enters a consumer over a
//! capacity wait and leaves it over a data wait of the same buffer. The exception is an `ordered`
//! buffer. There the consumer may wait for a different producer task than the one whose items are
//! left. So plain exchanges, chains of them, and unions keep their back-pressure.
//!
//! A filter needs only the end of the pipeline that collects its build side. The probe publishes
//! the filter during its start, in which every operator is called regardless of the other
//! operators' waits. So a scan may wait for the filter of a probe that it feeds, even through
//! another build side of that probe.
//!
//! The condition is not only sufficient but nearly necessary. If producers have ended or channels
//! stay empty, a waiting task waits for a single task, so each of these cycles occurs for some
//! input. `tests.rs` compares with a simulation that picks such inputs at random.
//!
//! # Which waits are dropped
//!
//! 1. No filter wait is considered yet. While there is a cycle, a buffer overflows: the one at
//!    which the cycle turns from going upstream (data) to going downstream (capacity). There rows
//!    fan out to consumers that do not read them at the same time. It is the buffer furthest
//!    upstream.
//! 2. A buffer blocks again if its overflow is not needed, because later overflows broke its cycles
//!    too.
//! 3. Filter waits are added one by one; those that close a cycle are dropped. So a buffer never
//!    overflows because of a filter.
//!
//! A cycle of end and data waits only cannot be broken. It is not a valid plan and is left as it
//! is.

mod cycle;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use gatework_shared_state::{BufferLimit, OnFull};
use tracing::debug;

use self::cycle::{KeptWaits, Waits};
use super::PipelineId;

/// A wait between two pipelines.
pub enum WaitEdge {
    /// `consumer` cannot start before `producer` has ended (a breaker).
    Breaker {
        /// The pipeline that must end.
        producer: PipelineId,
        /// The pipeline that waits.
        consumer: PipelineId,
    },
    /// `consumer` reads a bounded buffer that `producer` fills: each waits for the other.
    ///
    /// Edges whose limits are clones of one [`BufferLimit`] are one buffer. A multicast has an edge
    /// to each of its readers, a union one from each of its children. A pipeline that reads several
    /// buffers is assumed to read them in any order, one of them while others are full.
    Buffer {
        /// The pipeline that fills the buffer.
        producer: PipelineId,
        /// The pipeline that reads the buffer.
        consumer: PipelineId,
        /// The buffer's limit, which overflows if blocking would close a cycle.
        budget: BufferLimit,
        /// Whether the consumer takes from one producer task while others wait, as an
        /// order-preserving merge does.
        ///
        /// Invariant: each producer task must have a buffer state of its own with a clone of the
        /// limit. The clone shares the policy but not the byte count. With one shared byte count,
        /// another producer could use up the capacity of the producer that the consumer waits for.
        /// Then only [`BufferLimit::allow_overflow`] prevents a stall.
        ordered: bool,
    },
    /// A reader outside the graph reads the partitions of a bounded result, possibly one after the
    /// other. Not needed if the partitions are certain to be read at the same time.
    Partitions {
        /// The pipeline that fills the result.
        producer: PipelineId,
        /// The number of partitions.
        partitions: usize,
        /// The result's limit, which overflows if blocking would close a cycle.
        budget: BufferLimit,
    },
    /// `scan` waits for a runtime filter before its first batch.
    RuntimeFilter {
        /// The pipeline that collects the build side. After its end, the probe's tasks build the
        /// table and publish the filter. They do so in their start, which none of their other waits
        /// delays.
        build: PipelineId,
        /// The pipeline that waits.
        scan: PipelineId,
        /// Called if the wait would close a cycle: the scan then starts without the filter.
        on_dropped: Arc<dyn Fn() + Send + Sync>,
    },
}

impl fmt::Debug for WaitEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Breaker { producer, consumer } => write!(f, "{consumer} after {producer}"),
            Self::Buffer { producer, consumer, ordered, .. } => {
                write!(f, "{producer} ⇄ {consumer}{}", if *ordered { " (ordered)" } else { "" })
            }
            Self::Partitions { producer, partitions, .. } => {
                write!(f, "{producer} ⇄ {partitions} partitions, read outside")
            }
            Self::RuntimeFilter { build, scan, .. } => {
                write!(f, "{scan} filtered by {build}")
            }
        }
    }
}

/// Pipelines and the waits between them.
#[derive(Debug, Default)]
pub struct WaitGraph {
    num_tasks: Vec<usize>,
    edges: Vec<WaitEdge>,
}

impl WaitGraph {
    /// Adds the next pipeline.
    pub fn add_pipeline(&mut self, num_tasks: usize) {
        self.num_tasks.push(num_tasks);
    }

    /// Adds a wait.
    pub fn add_edge(&mut self, edge: WaitEdge) {
        self.edges.push(edge);
    }

    /// Drops waits that would close a cycle. Returns the number of dropped waits.
    ///
    /// # Panics
    /// If a wait names a pipeline that was not added.
    pub fn break_cycles(&self) -> usize {
        let waits = Waits::expand(&self.num_tasks, &self.edges, 2);
        let kept = decide(&waits);
        let mut dropped_waits = 0;
        for (buffer, budget) in waits.budgets().enumerate() {
            if !kept.buffers[buffer] && budget.on_full() != OnFull::Overflow {
                debug!(edges = ?self.edges_of(budget), "buffer overflows: blocking would stall");
                budget.allow_overflow();
                dropped_waits += 1;
            }
        }
        for (filter, edge) in self.filters().enumerate() {
            if let (false, WaitEdge::RuntimeFilter { on_dropped: drop_wait, .. }) =
                (kept.filters[filter], edge)
            {
                debug!(?edge, "runtime filter wait dropped: waiting would stall");
                drop_wait();
                dropped_waits += 1;
            }
        }
        dropped_waits
    }

    fn filters(&self) -> impl Iterator<Item = &WaitEdge> {
        self.edges.iter().filter(|edge| matches!(edge, WaitEdge::RuntimeFilter { .. }))
    }

    fn edges_of(&self, buffer: &BufferLimit) -> Vec<&WaitEdge> {
        let is_of = |edge: &&WaitEdge| match edge {
            WaitEdge::Buffer { budget, .. } | WaitEdge::Partitions { budget, .. } => {
                budget.is_same(buffer)
            }
            WaitEdge::Breaker { .. } | WaitEdge::RuntimeFilter { .. } => false,
        };
        self.edges.iter().filter(is_of).collect()
    }
}

/// Decides which buffers may block and which filter waits are kept. Drops no wait needlessly.
fn decide(waits: &Waits) -> KeptWaits {
    let mut kept = waits.all_buffers_no_filters();
    let mut overflowed = Vec::new();
    for buffer in 0..kept.buffers.len() {
        while kept.buffers[buffer]
            && let Some(cycle) = waits.cycle_at_buffer(buffer, &kept)
        {
            let fan_out = waits.fan_out(&cycle).unwrap_or(buffer);
            kept.buffers[fan_out] = false;
            overflowed.push(fan_out);
        }
    }
    for buffer in overflowed {
        kept.buffers[buffer] = true;
        kept.buffers[buffer] = !waits.has_cycle(&kept);
    }
    for filter in 0..kept.filters.len() {
        kept.filters[filter] = true;
        kept.filters[filter] = waits.cycle_at_filter(filter, &kept).is_none();
    }
    kept
}
