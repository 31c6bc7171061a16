//! A stage while it is executed: its state, its tasks, and what they are told. (Presto's `SqlStageExecution`;
//! rules B and E.)
//!
//! It belongs to the scheduler of its query, which is one task: nothing here is called by two at a time. Others
//! see its [state](StageState) through the machine that holds it.

use std::{collections::BTreeMap, sync::Arc};

use gatework_runtime::{Error, Result, pipeline::BufferedBatch};
use gatework_shared_state::output::{LocationId, OutputBuffer, OutputBuffers};
use gatework_sql::splits::Split;

use crate::{
    FragmentId, Lifespan, NodeId, PlanFragment, StageState, StageTask, StateMachine, TaskEvents,
    TaskFactory, TaskId, TaskSpec, TaskState, fragment::remote_sources, state::State,
};

/// Tasks of one stage.
pub(crate) type Tasks = Vec<Arc<dyn StageTask>>;

/// A remote source of the fragment.
#[derive(Debug)]
struct RemoteSource {
    fragments: Vec<FragmentId>,
    /// Those of them that have told of all their tasks.
    complete: Vec<FragmentId>,
    /// Outputs that are known.
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
    /// The task that gets the splits for a node.
    task_by_node: BTreeMap<NodeId, usize>,
    finished: usize,
    buffers: Option<OutputBuffers>,
    sources: Vec<RemoteSource>,
    /// Tables all splits of which are given out.
    complete_tables: Vec<usize>,
    assigns_splits: bool,
}

fn usage_error(what: String) -> Error {
    Error::InvalidConfiguration(what)
}

impl StageExecution {
    /// A stage of `fragment`, whose tasks `factory` makes and which tell `events` of their ends.
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

    /// What its tasks run.
    pub fn fragment(&self) -> &PlanFragment {
        &self.fragment
    }

    /// How far it has come.
    pub fn state(&self) -> StageState {
        self.state.get()
    }

    /// The same, for those who look on.
    pub fn watch(&self) -> Arc<StateMachine<StageState>> {
        self.state.clone()
    }

    /// Why it failed: the first cause.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Its tasks by their numbers.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<dyn StageTask>> {
        self.tasks.values()
    }

    /// How many it has.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The task on `node` that gets splits.
    pub fn task_on(&self, node: NodeId) -> Option<&Arc<dyn StageTask>> {
        self.task_by_node.get(&node).and_then(|index| self.tasks.get(index))
    }

    /// The outputs that it reads, as far as they are known.
    pub fn sources(&self) -> impl Iterator<Item = &OutputBuffer<BufferedBatch>> {
        self.sources.iter().flat_map(|source| source.outputs.iter().map(|(_, output)| output))
    }

    /// Whether they are all known.
    pub fn knows_all_sources(&self) -> bool {
        self.sources.iter().all(RemoteSource::is_complete)
    }

    /// Whether it reads other stages.
    pub fn has_remote_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Goes to `next` if it may (rules B).
    pub fn transition(&mut self, next: StageState) -> bool {
        self.state.compare_and_set(next, |known| known.can_transition_to(next))
    }

    /// Fails with `error`; a later failure is not its cause.
    pub fn fail(&mut self, error: Error) -> bool {
        let failed = self.transition(StageState::Failed);
        if failed {
            self.failure = Some(error);
        }
        failed
    }

    /// Which buffers its tasks have. Older versions are ignored (E-6).
    ///
    /// # Errors
    /// If what was said before is taken back.
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

    /// More tasks of a stage that it reads, and whether they are the last (E-1, E-2).
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

    /// Makes task number `index` on `node` (E-4).
    ///
    /// # Errors
    /// If it is there, or tasks are made for splits, or nobody has said who reads it.
    pub fn schedule_task(
        &mut self,
        node: NodeId,
        index: usize,
    ) -> Result<Option<Arc<dyn StageTask>>> {
        if self.assigns_splits {
            return Err(usage_error(
                "a task by number in a stage that makes tasks for splits".into(),
            ));
        }
        self.create_task(node, index)
    }

    /// Gives splits to the task on `node`, which is made if there is none; the answer is a new task (E-4).
    ///
    /// # Errors
    /// If the task cannot be made.
    pub fn schedule_splits(
        &mut self,
        node: NodeId,
        table: usize,
        splits: Vec<Split>,
    ) -> Result<Option<Arc<dyn StageTask>>> {
        self.assigns_splits = true;
        let created = match self.task_by_node.contains_key(&node) {
            true => None,
            // Who reads its output counts its tasks from 0, one after the other.
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
            return Err(usage_error(format!("task {id} is made twice")));
        }
        let Some(buffers) = &self.buffers else {
            return Err(usage_error(format!("task {id} is made before anybody said who reads it")));
        };
        // What would be aborted at once is not made (E-5).
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

    /// All splits of a table are given out.
    pub fn table_complete(&mut self, table: usize) {
        if !self.complete_tables.contains(&table) {
            self.complete_tables.push(table);
            self.tasks.values().for_each(|task| task.set_no_more_splits(Lifespan::Task, table));
        }
    }

    /// All tasks are made and all splits are given out (E-7).
    pub fn scheduling_complete(&mut self) {
        (0..self.fragment.tables.len()).for_each(|table| self.table_complete(table));
        if self.transition(StageState::Scheduled) {
            self.update_state();
        }
    }

    /// Task `index` has ended (E-8).
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
        // A task that ends early does not end a stage that makes others.
        if !matches!(self.state(), StageState::Scheduled | StageState::Running) {
            return;
        }
        match self.finished == self.tasks.len() {
            true => self.transition(StageState::Finished),
            false => self.transition(StageState::Running),
        };
    }

    /// Nobody wants the rest (E-9).
    pub fn cancel(&mut self) {
        self.transition(StageState::Cancelled);
        self.tasks.values().for_each(|task| task.cancel());
    }

    /// The query has failed (E-9).
    pub fn abort(&mut self) {
        self.transition(StageState::Aborted);
        self.tasks.values().for_each(|task| task.abort());
    }

    /// Whether no task of it runs.
    pub fn is_idle(&self) -> bool {
        self.tasks.values().all(|task| task.state().is_final())
    }
}

impl std::fmt::Debug for StageExecution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stage {} {:?}, {} tasks", self.fragment.id, self.state(), self.tasks.len())
    }
}
