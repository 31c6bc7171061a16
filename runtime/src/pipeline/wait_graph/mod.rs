//! The wait-for graph: which pipelines wait for which, known when a query is built.
//!
//! Two kinds of wait can be taken back: a full buffer may overflow instead of blocking its
//! producers, and a scan may start without its runtime filter. [`WaitGraph::break_cycles`] takes back
//! waits that would close a cycle, so that no plan stalls, and no more of them than needed.
//!
//! # When a plan can stall
//!
//! Every pipeline is expanded to two instances; more would only be copies of these two. An instance
//! waits for one thing at a time:
//!
//! | wait | from → to |
//! |---|---|
//! | end | consumer instance → every producer instance, behind a breaker |
//! | data | consumer instance → every producer instance, at a buffer |
//! | room | producer instance → every consumer instance, at a buffer that blocks |
//! | filter | scan instance → every instance that collects the build, while the wait is kept |
//! | turn | reader of a later partition → readers of the earlier ones |
//!
//! In a stall, follow from a stuck instance the wait it is stuck in to a stuck instance that keeps
//! it there (for room: one that holds items of the buffer). There are finitely many, so the path
//! closes: **a stall contains a simple cycle of waits.** Not every cycle can be one. Whoever is
//! waited for because it holds items of a buffer has something to take from it, so it does not wait
//! for data of that buffer: a cycle that enters a consumer over a room wait of a buffer and leaves
//! it over a data wait of the same buffer is none. An `ordered` buffer is the exception, since there
//! the consumer may wait for another producer instance than the one whose items it holds. So plain
//! exchanges, chains of them, and unions keep their back-pressure. And a filter needs the end of the
//! pipeline that collects its build side and nothing else: the probe publishes it while it starts,
//! where each of its operators is asked, whatever the others wait for. So a scan may wait for the
//! filter of a probe that it feeds, be it through another build of that probe.
//!
//! What is sufficient is nearly necessary as well: producers that have ended and channels that
//! nobody fills leave a waiting instance with just one that it waits for, so each of these cycles
//! occurs for some input. `tests.rs` compares with a simulation that picks such inputs at random.
//!
//! # Which waits are taken back
//!
//! 1. Without any filter wait: while there is a cycle, the buffer overflows at which the cycle
//!    turns from going upstream (data) to going downstream (room). That is where rows fan out to
//!    consumers that do not read them at the same time, and it is the buffer furthest upstream.
//! 2. Buffers that turn out not to be needed, because later ones broke their cycles too, block
//!    again.
//! 3. Filter waits are added one by one; those that close a cycle are dropped. So a buffer never
//!    overflows for the sake of a filter.
//!
//! A cycle of ends and data only cannot be taken back. It is no plan at all, and is left alone.

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
        /// The pipeline whose end is waited for.
        producer: PipelineId,
        /// The pipeline that waits.
        consumer: PipelineId,
    },
    /// `consumer` reads a bounded buffer that `producer` fills: each waits for the other.
    ///
    /// Edges whose budgets are clones of one [`BufferLimit`] are one buffer: a multicast has an edge to
    /// each of its readers, a union one from each of its children. A pipeline that reads several
    /// buffers is taken to read them in any order, one of them while others are full.
    Buffer {
        /// The pipeline that fills.
        producer: PipelineId,
        /// The pipeline that reads.
        consumer: PipelineId,
        /// The buffer's budget, which overflows if blocking would close a cycle.
        budget: BufferLimit,
        /// The consumer takes from one producer instance while others wait, as an order-preserving
        /// merge does. Each producer instance must have room of its own (a state of its own with a
        /// clone of the budget, which shares the policy, not the bytes); where they share one byte
        /// count, one could take the room of the very one that the consumer waits for, and only
        /// [`BufferLimit::allow_overflow`] helps.
        ordered: bool,
    },
    /// Somebody outside the graph reads the partitions of a bounded result, perhaps one after the
    /// other. Not needed for a result whose partitions are surely read at the same time.
    Partitions {
        /// The pipeline that fills.
        producer: PipelineId,
        /// How many partitions there are.
        partitions: usize,
        /// The result's budget, which overflows if blocking would close a cycle.
        budget: BufferLimit,
    },
    /// `scan` waits, before its first batch, for a runtime filter.
    RuntimeFilter {
        /// The pipeline that collects the build side. When it has ended, the tasks of the probe make
        /// the table and publish, in their start, which no other wait of theirs holds up.
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

/// Pipelines and their waits.
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

    /// Takes back waits that would close a cycle. Answers how many.
    ///
    /// # Panics
    /// If a wait names a pipeline that was not added.
    pub fn break_cycles(&self) -> usize {
        let waits = Waits::expand(&self.num_tasks, &self.edges, 2);
        let kept = decide(&waits);
        let mut dropped_waits = 0;
        for (buffer, budget) in waits.budgets().enumerate() {
            if !kept.buffers[buffer] && budget.on_full() != OnFull::Overflow {
                debug!(edges = ?self.edges_of(budget), "overflows, since blocking would stall");
                budget.allow_overflow();
                dropped_waits += 1;
            }
        }
        for (filter, edge) in self.filters().enumerate() {
            if let (false, WaitEdge::RuntimeFilter { on_dropped: drop_wait, .. }) =
                (kept.filters[filter], edge)
            {
                debug!(?edge, "not waited for, since waiting would stall");
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

/// Which buffers may block and which filters may be waited for: as many as possible.
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
