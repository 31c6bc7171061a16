//! Scheduler of a stage whose tasks read the splits of a table on any node (J).

use std::collections::{BTreeMap, VecDeque};

use gatework_operators::ResultExt;
use gatework_runtime::Result;
use gatework_shared_state::{Gate, splits::SplitLoad};
use gatework_sql::splits::{Split, SplitSource, Splits};

use super::{BlockedReason, SPLIT_BATCH, Scheduled, StageScheduler};
use crate::{
    NodeId, SplitLimits, StageExecution, StageState,
    run::{split_placement::NodeSelector, stage::Tasks},
};

/// Assigns the splits of one table to the least loaded nodes, as fast as they read them.
pub struct SourcePartitionedScheduler {
    source: Box<dyn SplitSource>,
    limits: SplitLimits,
    pending: VecDeque<Split>,
    /// Whether `pending` has the last splits of the source.
    last: bool,
    closed: bool,
    /// Whether some node has a split.
    has_assigned: bool,
}

impl SourcePartitionedScheduler {
    /// Creates the scheduler of the splits of `source`.
    pub fn new(source: Box<dyn SplitSource>, limits: SplitLimits) -> Self {
        let pending = VecDeque::new();
        Self { source, limits, pending, last: false, closed: false, has_assigned: false }
    }

    /// Assigns pending splits until no node has capacity.
    fn assign_splits(&mut self, stage: &mut StageExecution, nodes: &[SplitLoad]) -> Result<Tasks> {
        let mut selector = NodeSelector::new(self.limits, nodes, stage);
        let mut by_node: BTreeMap<NodeId, Vec<Split>> = BTreeMap::new();
        while let Some(split) = self.pending.pop_front() {
            let Some(node) = selector.select_node(split.weight()) else {
                self.pending.push_front(split);
                break;
            };
            by_node.entry(node).or_default().push(split);
        }
        let mut new = Vec::new();
        for (node, splits) in by_node {
            self.has_assigned = true;
            new.extend(stage.schedule_splits(node, 0, splits)?);
        }
        Ok(new)
    }
}

/// Returns that the stage is blocked. A stage that also reads other stages first gets a task on
/// every node. Otherwise its inputs keep pages for tasks that do not exist yet, and fill the
/// buffers that existing tasks wait for (J-7).
fn blocked(
    stage: &mut StageExecution,
    nodes: usize,
    reason: BlockedReason,
    mut new: Tasks,
    gates: impl FnOnce(&StageExecution) -> Vec<Gate>,
) -> Result<Scheduled> {
    if stage.has_remote_sources() && stage.state() != StageState::SchedulingSplits {
        for node in 0..nodes {
            if stage.task_on(node).is_none() {
                new.extend(stage.schedule_splits(node, 0, Vec::new())?);
            }
        }
        stage.transition(StageState::SchedulingSplits);
    }
    let gates = gates(stage);
    Ok(Scheduled { finished: false, new, blocked: Some((reason, gates)) })
}

impl StageScheduler for SourcePartitionedScheduler {
    fn schedule(&mut self, stage: &mut StageExecution, nodes: &[SplitLoad]) -> Result<Scheduled> {
        if self.pending.is_empty() && !self.last {
            match self.source.next(SPLIT_BATCH).query_err()? {
                Splits::Batch(splits, last) => {
                    self.pending.extend(splits);
                    self.last = last;
                }
                Splits::Blocked(gate) => {
                    let reason = BlockedReason::WaitingForSource;
                    return blocked(stage, nodes.len(), reason, Vec::new(), |_| vec![gate]);
                }
            }
        }
        // One task of an empty table reports that it is empty (J-4).
        if self.last && self.pending.is_empty() && !self.has_assigned {
            self.pending.push_back(Split::empty());
        }
        let new = self.assign_splits(stage, nodes)?;
        if !self.pending.is_empty() {
            let reason = BlockedReason::SplitQueuesFull;
            return blocked(stage, nodes.len(), reason, new, NodeSelector::capacity_gates);
        }
        if self.last {
            self.close();
        }
        Ok(Scheduled { finished: self.last, new, blocked: None })
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.source.close();
        }
    }
}
