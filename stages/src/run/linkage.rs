//! Links between stages: gives a stage's tasks to its parent as inputs, and to its children as
//! readers. (Presto's `StageLinkage` and output buffer managers; rules C and H-4 to H-7.)

use gatework_runtime::{Error, Result, pipeline::BufferedBatch};
use gatework_shared_state::output::{ExchangeClient, OutputBuffers, OutputKind};

use crate::{
    FragmentId, PartitioningHandle as Handle, PartitioningScheme, StageExecution, run::stage::Tasks,
};

/// The buffers of a stage's tasks, while readers are added.
#[derive(Debug)]
pub struct BufferManager {
    buffers: OutputBuffers,
}

impl BufferManager {
    /// Creates the buffers of an output with this distribution.
    pub fn new(scheme: &PartitioningScheme) -> Self {
        let buffers = match scheme.handle {
            Handle::FixedBroadcast => OutputBuffers::new(OutputKind::Broadcast),
            Handle::FixedArbitrary | Handle::ScaledWriter => {
                OutputBuffers::new(OutputKind::Arbitrary)
            }
            Handle::Single | Handle::Source | Handle::Buckets | Handle::FixedHash => {
                OutputBuffers::with_partitions(scheme.partitions.max(1))
            }
        };
        Self { buffers }
    }

    /// The current buffers.
    pub fn buffers(&self) -> &OutputBuffers {
        &self.buffers
    }

    /// Adds readers with these numbers; `last` says that no more follow. Returns true if the
    /// buffers changed.
    ///
    /// # Errors
    /// If the output is partitioned and has no such partition.
    pub fn add(&mut self, readers: impl IntoIterator<Item = usize>, last: bool) -> Result<bool> {
        let known = self.buffers.version();
        for id in readers {
            if self.buffers.kind() == OutputKind::Partitioned {
                if !self.buffers.contains(id) {
                    let num_partitions = self.buffers.len();
                    return Err(Error::InvalidConfiguration(format!(
                        "reader {id} does not exist: the output has {num_partitions} partitions"
                    )));
                }
            } else if !self.buffers.no_more_buffers() {
                let partition = if self.buffers.kind() == OutputKind::Arbitrary { id } else { 0 };
                let more = self.buffers.with_buffer(id, partition);
                self.buffers = more.map_err(Error::operator)?;
            }
        }
        if last {
            self.buffers = self.buffers.with_no_more_buffers();
        }
        Ok(self.buffers.version() != known)
    }
}

/// The links of one stage.
pub(crate) struct StageLinkage {
    stage: FragmentId,
    parent: Option<FragmentId>,
    children: Vec<(FragmentId, BufferManager)>,
}

impl StageLinkage {
    /// Creates the links of `stage`, whose children have these output distributions.
    pub(crate) fn new<'a>(
        stage: FragmentId,
        parent: Option<FragmentId>,
        children: impl IntoIterator<Item = (FragmentId, &'a PartitioningScheme)>,
    ) -> Self {
        let manager = |(id, scheme)| (id, BufferManager::new(scheme));
        Self { stage, parent, children: children.into_iter().map(manager).collect() }
    }

    /// Sets the initial buffers of the children. Called once, before any task is created.
    pub(crate) fn begin(&self, stages: &mut [StageExecution]) -> Result<()> {
        for (child, manager) in &self.children {
            stages[*child].set_buffers(manager.buffers())?;
        }
        Ok(())
    }

    /// Propagates new tasks of the stage, and whether its state allows more of them. The parent of
    /// the root is `result`.
    pub(crate) fn process(
        &mut self,
        stages: &mut [StageExecution],
        new: &Tasks,
        result: &ExchangeClient<BufferedBatch>,
    ) -> Result<()> {
        let last = stages[self.stage].state().has_all_tasks();
        match self.parent {
            Some(parent) => stages[parent].add_locations(self.stage, new, last)?,
            None => {
                for task in new {
                    let location = task.id().location();
                    let added = result.add_location(location, task.output().clone(), 0);
                    added.map_err(Error::operator)?;
                }
                if last {
                    result.set_no_more_locations();
                }
            }
        }
        for (child, manager) in &mut self.children {
            if manager.add(new.iter().map(|task| task.id().index), last)? {
                stages[*child].set_buffers(manager.buffers())?;
            }
        }
        Ok(())
    }
}
