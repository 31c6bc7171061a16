//! A stage of writers, of which there are more as more is to be written (K-3).

use std::sync::Arc;

use gatework_runtime::Result;
use gatework_shared_state::splits::SplitLoad;
use gatework_sql::WriteProgress;

use super::{BlockedReason, Scheduled, StageScheduler};
use crate::{NodeId, StageExecution};

/// Begins with one writer, and adds one at a time while those that feed them are held up, and all have written
/// enough for one more.
#[derive(Debug)]
pub struct ScaledWriterScheduler {
    /// Nodes that have no writer, the next one last.
    free: Vec<NodeId>,
    progress: Arc<WriteProgress>,
    bytes_per_writer: u64,
}

impl ScaledWriterScheduler {
    /// On these nodes; a writer is worth its while from so many bytes on.
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
            // Only the ends of those that feed it are of interest, which the scheduler hears of anyway.
            gates = Vec::new();
        } else if blocked_sources * 2 >= sources.max(1) {
            gates = vec![enough_gate];
        }
        Ok(Scheduled { finished: false, new, blocked: Some((BlockedReason::WriterScaling, gates)) })
    }
}
