//! A stage while it runs: its state, its tasks, and the calls they receive. (Presto's
//! `SqlStageExecution`; rules B and E.)
//!
//! It belongs to the scheduler of its query, which is one task, so no method is called
//! concurrently. Observers read its [state](StageState) through its state machine.

use std::{collections::BTreeMap, sync::Arc};

use gatework_runtime::{Error, Result, pipeline::BufferedBatch};
use gatework_shared_state::output::{LocationId, OutputBuffer, OutputBuffers};
use gatework_sql::splits::Split;

use crate::{
    FragmentId, Lifespan, NodeId, PlanFragment, StageState, StageTask, StateMachine, TaskEvents,
    TaskFactory, TaskId, TaskSpec, TaskState, plan::fragment::remote_sources, run::state::State,
};

/// Tasks of one stage.
pub(crate) type Tasks = Vec<Arc<dyn StageTask>>;

/// A remote source of the fragment.
#[derive(Debug)]
struct RemoteSource {
    fragments: Vec<FragmentId>,
    /// Fragments whose tasks are all known.
    complete: Vec<FragmentId>,
    /// Known outputs.
    outputs: Vec<(LocationId, OutputBuffer<BufferedBatch>)>,
}

impl RemoteSource {
    fn is_complete(&self) -> bool {
        self.fragments.iter().all(|fragment| self.complete.contains(fragment))
    }
}

/// A stage.
pub struct StageExecution {
    fragment: PlanFragment,
    state: Arc<StateMachine<StageState>>,
    failure: Option<Error>,
    factory: Arc<dyn TaskFactory>,
    events: Arc<TaskEvents>,
    tasks: BTreeMap<usize, Arc<dyn StageTask>>,
    /// The task that gets the splits of a node.
    task_by_node: BTreeMap<NodeId, usize>,
    finished: usize,
    buffers: Option<OutputBuffers>,
    sources: Vec<RemoteSource>,
    /// Tables whose splits are all assigned.
    complete_tables: Vec<usize>,
    assigns_splits: bool,
}

fn usage_error(what: String) -> Error {
    Error::InvalidConfiguration(what)
}

impl StageExecution {
    /// Creates a stage of `fragment`. `factory` creates its tasks, which report their ends to
    /// `events`.
    pub fn new(
        fragment: PlanFragment,
        factory: Arc<dyn TaskFactory>,
        events: Arc<TaskEvents>,
    ) -> Self {
        let mut found = Vec::new();
        remote_sources(&fragment.root, &mut found);
        let source = |fragments: &[FragmentId]| RemoteSource {
            fragments: fragments.to_vec(),
            complete: Vec::new(),
            outputs: Vec::new(),
        };
        let sources = found.into_iter().map(|exec| source(exec.fragments())).collect();
        Self {
            fragment,
            state: Arc::new(StateMachine::new("stage", StageState::Planned)),
            failure: None,
            factory,
            events,
            tasks: BTreeMap::new(),
            task_by_node: BTreeMap::new(),
            finished: 0,
            buffers: None,
            sources,
            complete_tables: Vec::new(),
            assigns_splits: false,
        }
    }

    /// The fragment that its tasks run.
    pub fn fragment(&self) -> &PlanFragment {
        &self.fragment
    }

    /// The current state.
    pub fn state(&self) -> StageState {
        self.state.get()
    }

    /// The state machine, for observers.
    pub fn watch(&self) -> Arc<StateMachine<StageState>> {
        self.state.clone()
    }

    /// The first cause of its failure.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Its tasks, by number.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<dyn StageTask>> {
        self.tasks.values()
    }

    /// Number of its tasks.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The task on `node` that gets splits.
    pub fn task_on(&self, node: NodeId) -> Option<&Arc<dyn StageTask>> {
        self.task_by_node.get(&node).and_then(|index| self.tasks.get(index))
    }

    /// The known outputs that it reads.
    pub fn sources(&self) -> impl Iterator<Item = &OutputBuffer<BufferedBatch>> {
        self.sources.iter().flat_map(|source| source.outputs.iter().map(|(_, output)| output))
    }

    /// Whether all outputs that it reads are known.
    pub fn knows_all_sources(&self) -> bool {
        self.sources.iter().all(RemoteSource::is_complete)
    }

    /// Whether it reads other stages.
    pub fn has_remote_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Changes the state to `next` if allowed (rules B). Returns whether it changed.
    pub fn transition(&mut self, next: StageState) -> bool {
        self.state.compare_and_set(next, |known| known.can_transition_to(next))
    }

    /// Fails with `error`, unless the stage has ended; the first error is the cause. Returns
    /// whether it failed.
    pub fn fail(&mut self, error: Error) -> bool {
        let failed = self.transition(StageState::Failed);
        if failed {
            self.failure = Some(error);
        }
        failed
    }

    /// Sets the buffers of its tasks. Older versions are ignored (E-6).
    ///
    /// # Errors
    /// If `newer` revokes an earlier buffer or end.
    pub fn set_buffers(&mut self, newer: &OutputBuffers) -> Result<()> {
        if let Some(known) = &self.buffers {
            if newer.version() <= known.version() {
                return Ok(());
            }
            known.check_transition(newer).map_err(Error::operator)?;
        }
        self.buffers = Some(newer.clone());
        for task in self.tasks.values() {
            task.output().set_buffers(newer).map_err(Error::operator)?;
        }
        Ok(())
    }

    /// Adds tasks of a stage that it reads; `last` says that no more follow (E-1, E-2).
    ///
    /// # Errors
    /// If it does not read that stage.
    pub fn add_locations(&mut self, from: FragmentId, tasks: &Tasks, last: bool) -> Result<()> {
        let mut sources = self.sources.iter_mut().enumerate();
        let found = sources.find(|(_, source)| source.fragments.contains(&from));
        let Some((source_index, source)) = found else {
            let id = self.fragment.id;
            return Err(usage_error(format!("stage {id} does not read stage {from}")));
        };
        for task in tasks {
            let output = (task.id().location(), task.output().clone());
            for reader in self.tasks.values() {
                reader.add_location(source_index, output.0, &output.1)?;
            }
            source.outputs.push(output);
        }
        if last && !source.complete.contains(&from) {
            source.complete.push(from);
            if source.is_complete() {
                self.tasks.values().for_each(|reader| reader.set_no_more_locations(source_index));
            }
        }
        Ok(())
    }

    /// Creates task number `index` on `node` (E-4).
    ///
    /// # Errors
    /// If the task exists, the stage creates tasks by splits, or its readers are not set.
    pub fn schedule_task(
        &mut self,
        node: NodeId,
        index: usize,
    ) -> Result<Option<Arc<dyn StageTask>>> {
        if self.assigns_splits {
            return Err(usage_error(
                "a stage that creates tasks by splits cannot create one by number".into(),
            ));
        }
        self.create_task(node, index)
    }

    /// Assigns splits to the task on `node`, and creates it if needed. Returns a new task (E-4).
    ///
    /// # Errors
    /// If the task cannot be created.
    pub fn schedule_splits(
        &mut self,
        node: NodeId,
        table: usize,
        splits: Vec<Split>,
    ) -> Result<Option<Arc<dyn StageTask>>> {
        self.assigns_splits = true;
        let created = match self.task_by_node.contains_key(&node) {
            true => None,
            // Readers of its output number its tasks consecutively from 0.
            false => self.create_task(node, self.tasks.len())?,
        };
        if let Some(task) = self.task_on(node) {
            task.add_splits(Lifespan::Task, table, splits);
        }
        Ok(created)
    }

    fn create_task(&mut self, node: NodeId, index: usize) -> Result<Option<Arc<dyn StageTask>>> {
        let id = TaskId { stage: self.fragment.id, index };
        if self.tasks.contains_key(&index) {
            return Err(usage_error(format!("task {id} is created twice")));
        }
        let Some(buffers) = &self.buffers else {
            return Err(usage_error(format!("task {id} is created before its readers are set")));
        };
        // A stage that has ended creates no task, since it would be aborted at once (E-5).
        if self.state().is_final() {
            return Ok(None);
        }
        let spec = TaskSpec { id, node, fragment: &self.fragment, buffers };
        let task = self.factory.create(&spec, &self.events)?;
        for (source_index, source) in self.sources.iter().enumerate() {
            for (location, output) in &source.outputs {
                task.add_location(source_index, *location, output)?;
            }
            if source.is_complete() {
                task.set_no_more_locations(source_index);
            }
        }
        self.complete_tables
            .iter()
            .for_each(|table| task.set_no_more_splits(Lifespan::Task, *table));
        self.tasks.insert(index, task.clone());
        self.task_by_node.entry(node).or_insert(index);
        Ok(Some(task))
    }

    /// Marks all splits of a table as assigned.
    pub fn table_complete(&mut self, table: usize) {
        if !self.complete_tables.contains(&table) {
            self.complete_tables.push(table);
            self.tasks.values().for_each(|task| task.set_no_more_splits(Lifespan::Task, table));
        }
    }

    /// Marks all tasks as created and all splits as assigned (E-7).
    pub fn scheduling_complete(&mut self) {
        (0..self.fragment.tables.len()).for_each(|table| self.table_complete(table));
        if self.transition(StageState::Scheduled) {
            self.update_state();
        }
    }

    /// Records the end of task `index` (E-8).
    pub fn task_ended(&mut self, index: usize) {
        let Some(task) = self.tasks.get(&index) else { return };
        match task.state() {
            TaskState::Running => return,
            TaskState::Failed => {
                let error = task.error().unwrap_or(Error::ProducerAborted);
                self.fail(error);
            }
            TaskState::Aborted => {
                self.fail(Error::ProducerAborted);
            }
            TaskState::Finished | TaskState::Cancelled => self.finished += 1,
        }
        self.update_state();
    }

    fn update_state(&mut self) {
        // An early end of a task does not end a stage that still creates tasks.
        if !matches!(self.state(), StageState::Scheduled | StageState::Running) {
            return;
        }
        match self.finished == self.tasks.len() {
            true => self.transition(StageState::Finished),
            false => self.transition(StageState::Running),
        };
    }

    /// Ends the stage because its rows have no reader any more (E-9).
    pub fn cancel(&mut self) {
        self.transition(StageState::Cancelled);
        self.tasks.values().for_each(|task| task.cancel());
    }

    /// Ends the stage because the query has failed (E-9).
    pub fn abort(&mut self) {
        self.transition(StageState::Aborted);
        self.tasks.values().for_each(|task| task.abort());
    }

    /// Whether no task of the stage runs.
    pub fn is_idle(&self) -> bool {
        self.tasks.values().all(|task| task.state().is_final())
    }
}

impl std::fmt::Debug for StageExecution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stage {} {:?}, {} tasks", self.fragment.id, self.state(), self.tasks.len())
    }
}
