//! Scheduler of a stage with a fixed number of tasks that read other stages only (K-1).

use gatework_runtime::Result;
use gatework_shared_state::splits::SplitLoad;

use super::{Scheduled, StageScheduler};
use crate::{NodeId, StageExecution};

/// Creates all tasks at once, one per node of a list.
#[derive(Debug)]
pub struct FixedCountScheduler {
    nodes: Vec<NodeId>,
}

impl FixedCountScheduler {
    /// Puts task `i` on node `nodes[i]`.
    pub fn new(nodes: Vec<NodeId>) -> Self {
        Self { nodes }
    }
}

impl StageScheduler for FixedCountScheduler {
    fn schedule(&mut self, stage: &mut StageExecution, _: &[SplitLoad]) -> Result<Scheduled> {
        let mut new = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            new.extend(stage.schedule_task(*node, index)?);
        }
        Ok(Scheduled { finished: true, new, blocked: None })
    }
}
