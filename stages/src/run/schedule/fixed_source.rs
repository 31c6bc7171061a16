//! Scheduler of a stage whose tasks read bucketed tables. Each bucket is on its own node (K-2).
//! Grouped execution limits the buckets that run at a time (K-4).
//!
//! Nodes are scheduled independently: a node whose queue is full does not block the others.

use std::collections::VecDeque;

use gatework_operators::ResultExt;
use gatework_runtime::Result;
use gatework_shared_state::{Gate, splits::SplitLoad};
use gatework_sql::splits::{Split, SplitSource, Splits};

use super::{BlockedReason, SPLIT_BATCH, Scheduled, StageScheduler};
use crate::{Lifespan, NodeId, SplitLimits, StageExecution, StageState, StageTask};

/// Splits of one bucket of one table.
pub trait BucketSplits: Send {
    /// Opens the splits of bucket `bucket` of table number `table`. Reads nothing yet.
    ///
    /// # Errors
    /// If there is no such table, or it has no splits.
    fn open(&mut self, bucket: usize, table: usize) -> Result<Box<dyn SplitSource>>;
}

/// Assigns each bucket's splits to one node, the build side's table first.
pub struct FixedSourceScheduler {
    splits: Box<dyn BucketSplits>,
    limits: SplitLimits,
    /// Maximum number of lifespans at a time per task in grouped execution; none without it.
    concurrent_lifespans: Option<usize>,
    /// One lane per node.
    lanes: Vec<Lane>,
    begun: bool,
}

/// Work of one node.
struct Lane {
    /// Buckets and tables that remain, in the order in which they start.
    remaining: VecDeque<(usize, usize)>,
    current: Option<Current>,
    complete: bool,
}

/// The splits of one bucket of one table, while they are assigned.
struct Current {
    bucket: usize,
    table: usize,
    source: Box<dyn SplitSource>,
    pending: VecDeque<Split>,
    /// Whether `pending` has the last splits of the source.
    last: bool,
}

impl FixedSourceScheduler {
    /// Creates the scheduler of `tables` tables with `buckets` buckets on `nodes` nodes. Bucket `b`
    /// is on node `b % nodes`. `concurrent_lifespans` enables grouped execution with that limit per
    /// task.
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

/// Why a lane is blocked.
type Blocked = (BlockedReason, Option<Gate>);

impl Lane {
    fn close(&mut self) {
        self.remaining.clear();
        if let Some(mut current) = self.current.take() {
            current.source.close();
        }
    }

    /// Runs until the lane is complete or blocked; returns the reason in the latter case.
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
                        // `TaskEvents` is notified when a lifespan ends.
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
            // In grouped execution the end of a table's bucket ends the table for that lifespan.
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
    /// Assigns all splits, or returns why it is blocked.
    fn assign_splits(
        &mut self,
        task: &dyn StageTask,
        lifespan: Lifespan,
        batch: usize,
        has_capacity: &mut impl FnMut() -> bool,
    ) -> Result<Option<Blocked>> {
        loop {
            // The lifespan has ended and needs no more splits.
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
            // All readers of the stage's inputs are now known, so those inputs can drop pages that
            // all of them have read (J-7).
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
