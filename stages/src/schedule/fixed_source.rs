//! A stage whose tasks read tables in buckets: each bucket on the node that has it (K-2), all of them together or,
//! in grouped execution, so many at a time (K-4).
//!
//! Nodes are scheduled independently of each other: one whose queue is full keeps nobody else waiting.

use std::collections::VecDeque;

use gatework_operators::ResultExt;
use gatework_runtime::Result;
use gatework_shared_state::{Gate, splits::SplitLoad};
use gatework_sql::splits::{Split, SplitSource, Splits};

use super::{BlockedReason, SPLIT_BATCH, Scheduled, StageScheduler};
use crate::{Lifespan, NodeId, SplitLimits, StageExecution, StageState, StageTask};

/// The splits of one bucket of one table.
pub trait BucketSplits: Send {
    /// Those of bucket `bucket` of table number `table`. Nothing is read yet.
    ///
    /// # Errors
    /// If there is no such table, or it has no splits.
    fn open(&mut self, bucket: usize, table: usize) -> Result<Box<dyn SplitSource>>;
}

/// Gives each bucket's splits to one node, those of the table that a join collects first.
pub struct FixedSourceScheduler {
    splits: Box<dyn BucketSplits>,
    limits: SplitLimits,
    /// At most so many groups at a time, if there are groups.
    concurrent_lifespans: Option<usize>,
    /// Of each node.
    lanes: Vec<Lane>,
    begun: bool,
}

/// What one node has to read.
struct Lane {
    /// Buckets and tables, in the order in which they are begun.
    remaining: VecDeque<(usize, usize)>,
    current: Option<Current>,
    complete: bool,
}

/// The splits of one bucket of one table, while they are given out.
struct Current {
    bucket: usize,
    table: usize,
    source: Box<dyn SplitSource>,
    pending: VecDeque<Split>,
    /// There are no others than those.
    last: bool,
}

impl FixedSourceScheduler {
    /// For `tables` tables of so many buckets on so many nodes. Bucket `b` is on node `b % nodes`. In groups, if so
    /// many are allowed at a time on a node.
    pub fn new(
        splits: Box<dyn BucketSplits>,
        limits: SplitLimits,
        (tables, buckets): (usize, usize),
        nodes: usize,
        concurrent_lifespans: Option<usize>,
    ) -> Self {
        let lane = |node: NodeId| {
            let own = || (node..buckets).step_by(nodes);
            let remaining = match concurrent_lifespans {
                Some(_) => {
                    own().flat_map(|bucket| (0..tables).map(move |table| (bucket, table))).collect()
                }
                None => {
                    (0..tables).flat_map(|table| own().map(move |bucket| (bucket, table))).collect()
                }
            };
            Lane { remaining, current: None, complete: false }
        };
        let lanes = (0..nodes).map(lane).collect();
        Self {
            splits,
            limits,
            concurrent_lifespans: concurrent_lifespans.map(|count| count.max(1)),
            lanes,
            begun: false,
        }
    }
}

/// Why a lane cannot go on.
type Blocked = (BlockedReason, Option<Gate>);

impl Lane {
    fn close(&mut self) {
        self.remaining.clear();
        if let Some(mut current) = self.current.take() {
            current.source.close();
        }
    }

    /// Goes on until it is complete, or has to wait; then it says for what.
    fn advance(
        &mut self,
        task: &dyn StageTask,
        splits: &mut dyn BucketSplits,
        batch: usize,
        concurrent_lifespans: Option<usize>,
        mut has_capacity: impl FnMut() -> bool,
    ) -> Result<Option<Blocked>> {
        loop {
            let current = match &mut self.current {
                Some(current) => current,
                None => {
                    let Some((bucket, table)) = self.remaining.front().copied() else { break };
                    if let (Some(max_running), 0) = (concurrent_lifespans, table) {
                        // The inbox is told when one of them ends.
                        if task.running_lifespans() >= max_running {
                            return Ok(Some((BlockedReason::LifespansRunning, None)));
                        }
                        task.start_lifespan(bucket)?;
                    }
                    self.remaining.pop_front();
                    let source = splits.open(bucket, table)?;
                    let pending = VecDeque::new();
                    self.current.insert(Current { bucket, table, source, pending, last: false })
                }
            };
            let lifespan =
                concurrent_lifespans.map_or(Lifespan::Task, |_| Lifespan::Group(current.bucket));
            if let Some(blocked) =
                current.assign_splits(task, lifespan, batch, &mut has_capacity)?
            {
                return Ok(Some(blocked));
            }
            let table = current.table;
            self.current = None;
            // In groups each table's end is that of the bucket.
            let others = self.remaining.front().is_some_and(|(_, next)| *next == table);
            if concurrent_lifespans.is_some() || !others {
                task.set_no_more_splits(lifespan, table);
            }
        }
        if !std::mem::replace(&mut self.complete, true) && concurrent_lifespans.is_some() {
            task.set_no_more_lifespans();
        }
        Ok(None)
    }
}

impl Current {
    /// Gives all of them out.
    fn assign_splits(
        &mut self,
        task: &dyn StageTask,
        lifespan: Lifespan,
        batch: usize,
        has_capacity: &mut impl FnMut() -> bool,
    ) -> Result<Option<Blocked>> {
        loop {
            // What nobody wants is not looked for.
            let Some(capacity) = task.capacity_gate(lifespan, self.table) else {
                self.source.close();
                return Ok(None);
            };
            if self.pending.is_empty() {
                if self.last {
                    self.source.close();
                    return Ok(None);
                }
                match self.source.next(batch).query_err()? {
                    Splits::Batch(splits, last) => {
                        self.pending.extend(splits);
                        self.last = last;
                    }
                    Splits::Blocked(gate) => {
                        return Ok(Some((BlockedReason::WaitingForSource, Some(gate))));
                    }
                }
            }
            while let Some(split) = self.pending.pop_front() {
                if !has_capacity() && !capacity.is_ready() {
                    self.pending.push_front(split);
                    return Ok(Some((BlockedReason::SplitQueuesFull, Some(capacity))));
                }
                task.add_splits(lifespan, self.table, vec![split]);
            }
        }
    }
}

impl StageScheduler for FixedSourceScheduler {
    fn schedule(&mut self, stage: &mut StageExecution, nodes: &[SplitLoad]) -> Result<Scheduled> {
        let mut new = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            for node in 0..self.lanes.len() {
                new.extend(stage.schedule_task(node, node)?);
            }
            // Those that it reads know all their readers, and need not keep what these have read (J-7).
            stage.transition(StageState::SchedulingSplits);
        }
        let (mut gates, mut why) = (Vec::new(), None);
        let batch = (SPLIT_BATCH / self.lanes.len().max(1)).max(1);
        for (node, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.complete) {
            let Some(task) = stage.task_on(node) else { continue };
            let mut free = self
                .limits
                .max_splits_per_node
                .saturating_sub(nodes.get(node).map_or(0, |load| load.queued + load.reading));
            let has_capacity = || {
                let has_free = free > 0;
                free = free.saturating_sub(1);
                has_free
            };
            let splits = self.splits.as_mut();
            let blocked = lane.advance(
                task.as_ref(),
                splits,
                batch,
                self.concurrent_lifespans,
                has_capacity,
            )?;
            if let Some((reason, gate)) = blocked {
                why = Some(reason);
                gates.extend(gate);
            }
        }
        let finished = self.lanes.iter().all(|lane| lane.complete);
        Ok(Scheduled { finished, new, blocked: why.map(|reason| (reason, gates)) })
    }

    fn close(&mut self) {
        self.lanes.iter_mut().for_each(Lane::close);
    }
}
