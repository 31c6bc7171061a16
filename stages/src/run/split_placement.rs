//! Selects the node for a split. (Presto's node selector; rules J-8 and J-9.)

use gatework_runtime::{Error, Result};
use gatework_shared_state::{Gate, splits::SplitLoad};

use crate::{Lifespan, NodeId, StageExecution};

/// Limits of splits per node and task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitLimits {
    /// Maximum number of splits of all stages that a node gets regardless of its queues. Default:
    /// 100.
    pub max_splits_per_node: usize,
    /// Beyond `max_splits_per_node`, maximum number of splits that one task of a stage has queued.
    /// Default: 10.
    pub max_pending_splits_per_task: usize,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self { max_splits_per_node: 100, max_pending_splits_per_task: 10 }
    }
}

impl SplitLimits {
    /// Checks that any split can be assigned.
    ///
    /// # Errors
    /// If both limits, or one of them, are 0.
    pub(crate) fn check(self) -> Result<()> {
        match self.max_splits_per_node.min(self.max_pending_splits_per_task) {
            0 => Err(Error::InvalidConfiguration(
                "the limits of SplitLimits must be at least 1".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Load of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    /// Splits of all stages.
    total: usize,
    /// Queued splits of this stage.
    queued: usize,
    /// Weight of all splits.
    weight: u64,
}

/// Places splits of one stage. Valid for one scheduling step.
#[derive(Debug)]
pub(crate) struct NodeSelector {
    limits: SplitLimits,
    loads: Vec<Load>,
    first: NodeId,
}

impl NodeSelector {
    /// Starts from the nodes' current loads; `totals` is the load of each node from all stages.
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
        // Ties are broken from a different node for each stage.
        let first = stage.fragment().id % loads.len().max(1);
        Self { limits, loads, first }
    }

    /// Returns the least loaded node with capacity for a split of this weight.
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

    /// Gates of which one is ready when a split can be placed; empty if no task has a queue.
    pub(crate) fn capacity_gates(stage: &StageExecution) -> Vec<Gate> {
        stage.tasks().filter_map(|task| task.capacity_gate(Lifespan::Task, 0)).collect()
    }
}
