//! Which node gets which split. (Presto's node selector; rules J-8 and J-9.)

use gatework_runtime::{Error, Result};
use gatework_shared_state::{Gate, splits::SplitLoad};

use crate::{Lifespan, NodeId, StageExecution};

/// How many splits a node is given at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitLimits {
    /// Up to so many splits of all stages together a node gets whatever is in its queues; 100.
    pub max_splits_per_node: usize,
    /// Beyond, up to so many that a stage's task has not begun to read; 10.
    pub max_pending_splits_per_task: usize,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self { max_splits_per_node: 100, max_pending_splits_per_task: 10 }
    }
}

impl SplitLimits {
    /// Whether any split can be given to anybody.
    ///
    /// # Errors
    /// If none can.
    pub(crate) fn check(self) -> Result<()> {
        match self.max_splits_per_node.min(self.max_pending_splits_per_task) {
            0 => Err(Error::InvalidConfiguration(
                "nodes need at least one split at a time: see SplitLimits".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// What a node has to do.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    /// Splits of all stages.
    total: usize,
    /// Splits of this stage that are not begun.
    queued: usize,
    /// What they weigh.
    weight: u64,
}

/// Places splits of one stage while it is asked.
#[derive(Debug)]
pub(crate) struct NodeSelector {
    limits: SplitLimits,
    loads: Vec<Load>,
    first: NodeId,
}

impl NodeSelector {
    /// By what the nodes have to do at this moment: `totals` is what each has of all stages.
    pub(crate) fn new(limits: SplitLimits, totals: &[SplitLoad], stage: &StageExecution) -> Self {
        let mut loads: Vec<Load> = totals
            .iter()
            .map(|node| Load { total: node.queued + node.reading, queued: 0, weight: node.weight })
            .collect();
        for task in stage.tasks() {
            if let Some(load) = loads.get_mut(task.node()) {
                load.queued += task.load().queued;
            }
        }
        // Equal nodes are not all taken from the first one on, by every stage.
        let first = stage.fragment().id % loads.len().max(1);
        Self { limits, loads, first }
    }

    /// The node for a split: the one that has least to do, if any may have more.
    pub(crate) fn select_node(&mut self, weight: u64) -> Option<NodeId> {
        let (count, first, limits) = (self.loads.len(), self.first, self.limits);
        let nodes = (0..count).map(|step| (first + step) % count);
        let loads = &self.loads;
        let free = nodes.clone().filter(|node| loads[*node].total < limits.max_splits_per_node);
        let lightest = free.min_by_key(|node| (loads[*node].weight, loads[*node].total));
        let chosen = lightest.or_else(|| {
            let under_limit =
                nodes.filter(|node| loads[*node].queued < limits.max_pending_splits_per_task);
            under_limit.min_by_key(|node| (loads[*node].queued, loads[*node].weight))
        })?;
        let load = &mut self.loads[chosen];
        load.total += 1;
        load.queued += 1;
        load.weight += weight;
        Some(chosen)
    }

    /// Gates of which one opens when a split may be placed; none if nobody has any.
    pub(crate) fn capacity_gates(stage: &StageExecution) -> Vec<Gate> {
        stage.tasks().filter_map(|task| task.capacity_gate(Lifespan::Task, 0)).collect()
    }
}
