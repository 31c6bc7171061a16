//! The groups of one task, partitioned when its table is full, and spilled when memory is short.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use gatework_runtime::{
    Error, Result,
    pipeline::{DriverContext, OperatorContext, OutOfMemory},
};
use gatework_shared_state::Gate;

use super::{
    config::AggregatePlan,
    groups::{AggregateHashTable, AggregatePart},
    spiller::AggregateSpiller,
};
use crate::spill::SpillStart;

/// The groups of one task.
pub(super) struct TaskGroups {
    plan: Arc<AggregatePlan>,
    context: OperatorContext,
    groups: AggregateHashTable,
    spiller: AggregateSpiller,
    /// Bytes reserved for the parts in `spiller`.
    parts_reserved: usize,
}

impl TaskGroups {
    pub(super) fn new(plan: Arc<AggregatePlan>, context: OperatorContext) -> Result<Self> {
        let mut groups = AggregateHashTable::new(plan.clone(), &context)?.with_finest()?;
        if plan.sinks > 1 {
            groups = groups.with_bypass()?;
        }
        let spiller = AggregateSpiller::new(plan.clone(), context.clone(), 0);
        Ok(Self { plan, context, groups, spiller, parts_reserved: 0 })
    }

    /// Aggregates rows. The caller then [reserves](Self::reserve) the groups.
    pub(super) fn add(&mut self, rows: &RecordBatch, task: &DriverContext) -> Result<()> {
        self.groups.update(rows, task)?;
        self.partition_if_full()
    }

    /// Adds groups with these values of the only key, of a plan without functions.
    pub(super) fn add_keys(&mut self, keys: ArrayRef, task: &DriverContext) -> Result<()> {
        let rows = keys.len();
        self.groups.update_keys(vec![keys], &[], rows, task)?;
        self.partition_if_full()
    }

    fn partition_if_full(&mut self) -> Result<()> {
        let is_full = self.plan.sinks > 1 && self.groups.is_full();
        if is_full && self.reserve().is_ok() {
            let denied = self.spiller.partition(&mut self.groups, true)?;
            self.parts_reserved = self.spiller.reserved();
            // The parts exist; only spilling them releases their memory.
            return denied.map_or(Ok(()), |denied| self.spill(denied.into()));
        }
        Ok(())
    }

    /// Starts to spill all groups; fails with `error` if that is impossible.
    fn spill(&mut self, error: Error) -> Result<()> {
        self.parts_reserved = 0;
        match self.spiller.spill(&mut self.groups)? {
            true => Ok(()),
            false => Err(error),
        }
    }

    pub(super) fn reserve(&mut self) -> Result<(), OutOfMemory> {
        if self.groups.is_empty() { Ok(()) } else { self.groups.update_reservation() }
    }

    pub(super) fn reclaimable_bytes(&self) -> usize {
        self.groups.reserved() + self.parts_reserved
    }

    pub(super) fn start_spill(&mut self, task: &DriverContext) -> Result<SpillStart> {
        if self.groups.merge_finest(task)? {
            // If it is denied: the write below releases memory.
            let _reserved = self.groups.update_reservation();
        }
        self.parts_reserved = 0;
        Ok(match self.spiller.spill(&mut self.groups)? {
            true => SpillStart::Writing,
            false => SpillStart::Impossible,
        })
    }

    pub(super) fn poll_write(&mut self) -> Result<Option<Gate>> {
        self.spiller.poll_write()
    }

    /// Called after the last rows. Returns whether more memory must be reserved.
    pub(super) fn end_input(&mut self, task: &DriverContext) -> Result<bool> {
        self.groups.finish_finest(task)
    }

    /// Returns whether the table is published as a whole: there is one task, and nothing spilled.
    fn is_whole(&self) -> bool {
        self.plan.sinks == 1 && !self.spiller.is_spilled()
    }

    /// Makes all groups parts, unless the table is published as a whole. Returns a gate after which
    /// it is called again.
    pub(super) fn finish(&mut self) -> Result<Option<Gate>> {
        if self.is_whole() || self.groups.num_groups() == 0 {
            return Ok(None);
        }
        if self.spiller.is_spilled() {
            // Partitions are merged one at a time; groups of the others would occupy memory
            // meanwhile.
            self.spill(Error::Internal("groups that were spilled cannot be spilled".into()))?;
        } else {
            let denied = self.spiller.partition(&mut self.groups, false)?;
            denied.map_or(Ok(()), |denied| self.spill(denied.into()))?;
        }
        self.spiller.poll_write()
    }

    /// Takes the parts of each partition. Groups that are not `wanted` are dropped.
    pub(super) fn take_parts(&mut self, wanted: bool) -> Result<Vec<Vec<AggregatePart>>> {
        let whole = self.is_whole();
        let mut parts = self.spiller.take();
        if wanted && whole {
            let empty = AggregateHashTable::new(self.plan.clone(), &self.context)?;
            let mut groups = std::mem::replace(&mut self.groups, empty);
            groups.settle()?;
            parts[0].push(AggregatePart::Table(Box::new(groups)));
        }
        Ok(parts)
    }
}
