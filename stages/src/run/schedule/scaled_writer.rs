//! Scheduler of a stage of writers whose number grows with the written bytes (K-3).

use std::sync::Arc;

use gatework_runtime::Result;
use gatework_shared_state::splits::SplitLoad;
use gatework_sql::WriteProgress;

use super::{BlockedReason, Scheduled, StageScheduler};
use crate::{NodeId, StageExecution};

/// Starts with one writer. Adds one at a time while the sources are blocked and the writers have
/// written enough bytes for another one.
#[derive(Debug)]
pub struct ScaledWriterScheduler {
    /// Nodes without a writer; the last is the next to get one.
    free: Vec<NodeId>,
    progress: Arc<WriteProgress>,
    bytes_per_writer: u64,
}

impl ScaledWriterScheduler {
    /// Uses these nodes, with one writer per `bytes_per_writer` written bytes.
    pub fn new(
        mut nodes: Vec<NodeId>,
        progress: Arc<WriteProgress>,
        bytes_per_writer: u64,
    ) -> Self {
        nodes.reverse();
        Self { free: nodes, progress, bytes_per_writer }
    }
}

impl StageScheduler for ScaledWriterScheduler {
    fn schedule(&mut self, stage: &mut StageExecution, _: &[SplitLoad]) -> Result<Scheduled> {
        let mut new = Vec::new();
        let writers = stage.task_count();
        let scale_up_bytes = self.bytes_per_writer.saturating_mul(writers as u64);
        let mut open = stage.sources().filter(|output| !output.state().is_final()).peekable();
        let all_known = stage.knows_all_sources();
        if writers > 0 && all_known && open.peek().is_none() {
            return Ok(Scheduled { finished: true, new, blocked: None });
        }
        let (mut sources, mut blocked_sources, mut gates) = (0, 0, Vec::new());
        for output in open {
            sources += 1;
            let overutilized = output.is_overutilized();
            blocked_sources += usize::from(overutilized);
            if !overutilized {
                gates.push(output.overutilized_gate().clone());
            }
        }
        let enough_gate = self.progress.reached(scale_up_bytes);
        let enough_written = self.progress.bytes() >= scale_up_bytes;
        let grow = writers == 0 || blocked_sources * 2 >= sources.max(1) && enough_written;
        if grow && let Some(node) = self.free.pop() {
            new.extend(stage.schedule_task(node, writers)?);
            return Ok(Scheduled { finished: false, new, blocked: None });
        }
        if self.free.is_empty() {
            // Only the ends of the sources matter, which reach the scheduler anyway.
            gates = Vec::new();
        } else if blocked_sources * 2 >= sources.max(1) {
            gates = vec![enough_gate];
        }
        Ok(Scheduled { finished: false, new, blocked: Some((BlockedReason::WriterScaling, gates)) })
    }
}
