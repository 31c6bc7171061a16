//! The scheduler of one query: starts its stages, links them, and propagates their ends. (Presto's
//! `SqlQueryScheduler`; rules D.)
//!
//! One task steps it. A step does what can be done now, and returns the gates it waits for: the end
//! of a task, room in a split queue, splits of a table. It uses no clock.

use std::sync::Arc;

use gatework_runtime::{
    Error, Result,
    pipeline::{BufferedBatch, Gates},
};
use gatework_shared_state::{Gate, output::ExchangeClient, splits::SplitLoad};

use crate::{
    ExecutionPolicy, ExecutionSchedule, StageExecution, StageScheduler, StageState, SubPlan,
    TaskEvents, TaskFactory,
    run::{linkage::StageLinkage, state::State},
};

/// Result of a step.
#[derive(Debug)]
pub enum StepResult {
    /// More can be done now.
    Again,
    /// Nothing can be done before one of these gates is ready.
    Blocked(Gates),
    /// All stages have ended without an error.
    Finished,
}

/// The stages of a query while it runs.
pub struct QueryScheduler {
    /// Stages by fragment number.
    stages: Vec<StageExecution>,
    children: Vec<Vec<usize>>,
    linkages: Vec<StageLinkage>,
    schedulers: Vec<Box<dyn StageScheduler>>,
    schedule: ExecutionSchedule,
    nodes: usize,
    events: Arc<TaskEvents>,
    result: ExchangeClient<BufferedBatch>,
    /// Whether each stage's end has been propagated.
    notified: Vec<bool>,
    closed: bool,
}

impl QueryScheduler {
    /// Creates the stages of `plan` on `nodes` nodes; `factory` creates their tasks. `scheduler_of`
    /// returns each stage's scheduler. If it fails for one stage, all others are closed (G-4). The
    /// query's rows arrive at `result`.
    ///
    /// # Errors
    /// If a stage cannot be scheduled.
    pub fn new(
        plan: &SubPlan,
        policy: ExecutionPolicy,
        nodes: usize,
        factory: Arc<dyn TaskFactory>,
        scheduler_of: impl FnMut(&StageExecution) -> Result<Box<dyn StageScheduler>>,
        result: ExchangeClient<BufferedBatch>,
    ) -> Result<Self> {
        let events = Arc::<TaskEvents>::default();
        let fragments = plan.fragments();
        let stage = |fragment: &&crate::PlanFragment| {
            StageExecution::new((*fragment).clone(), factory.clone(), events.clone())
        };
        let mut stages: Vec<_> = fragments.iter().map(stage).collect();
        let mut links = Vec::new();
        link(plan, None, &mut links);
        links.sort_by_key(|(stage, ..)| *stage);
        let children = links.iter().map(|(_, _, children)| children.clone()).collect();
        let linkage = |(stage, parent, children): (usize, Option<usize>, Vec<usize>)| {
            let outputs = children.into_iter().map(|child| (child, &fragments[child].output));
            StageLinkage::new(stage, parent, outputs)
        };
        let linkages: Vec<_> = links.into_iter().map(linkage).collect();
        let root = crate::run::linkage::BufferManager::new(&fragments[0].output);
        stages[0].set_buffers(root.buffers())?;
        for linkage in &linkages {
            linkage.begin(&mut stages)?;
        }
        let schedulers = schedulers(&stages, scheduler_of)?;
        Ok(Self {
            notified: vec![false; stages.len()],
            schedule: ExecutionSchedule::new(policy, plan),
            stages,
            children,
            linkages,
            schedulers,
            nodes,
            events,
            result,
            closed: false,
        })
    }

    /// The stages, by fragment number.
    pub fn stages(&self) -> &[StageExecution] {
        &self.stages
    }

    /// Does what can be done now.
    ///
    /// # Errors
    /// The first cause of a failed stage; the caller then calls [`abort`](Self::abort).
    pub fn step(&mut self) -> Result<StepResult> {
        while let Some(task) = self.events.take() {
            self.stages[task.stage].task_ended(task.index);
        }
        self.propagate_ends()?;
        let (blocked, again) = self.schedule_stages()?;
        self.propagate_ends()?;
        if self.schedule.is_finished() {
            self.close();
            self.check_scheduled()?;
            if self.stages.iter().all(|stage| stage.state().is_final() && stage.is_idle()) {
                return Ok(StepResult::Finished);
            }
            return Ok(StepResult::Blocked(self.events.gate().clone().into()));
        }
        if again {
            return Ok(StepResult::Again);
        }
        let ended = Gates::single(self.events.gate().clone());
        Ok(StepResult::Blocked(blocked.into_iter().fold(ended, Gates::or)))
    }

    /// Runs one pass over the active stages. Returns the gates that they wait for, and whether one
    /// of them can continue now (D-6).
    fn schedule_stages(&mut self) -> Result<(Vec<Gate>, bool)> {
        let Self { stages, schedule, .. } = self;
        let active = schedule.stages(|stage| stages[stage].state()).to_vec();
        let (mut gates, mut again) = (Vec::new(), false);
        for id in active {
            // The end of this stage has been propagated already.
            if self.stages[id].state().is_final() {
                continue;
            }
            self.stages[id].transition(StageState::Scheduling);
            let nodes = self.loads();
            let scheduled = self.schedulers[id].schedule(&mut self.stages[id], &nodes)?;
            if scheduled.finished {
                self.stages[id].scheduling_complete();
            }
            match scheduled.blocked {
                Some((_, blocked)) => gates.extend(blocked),
                None => again = true,
            }
            self.linkages[id].process(&mut self.stages, &scheduled.new, &self.result)?;
        }
        Ok((gates, again))
    }

    /// The load of each node from all stages.
    fn loads(&self) -> Vec<SplitLoad> {
        let mut loads = vec![SplitLoad::default(); self.nodes];
        let running = self.stages.iter().filter(|stage| !stage.state().is_final());
        for task in running.flat_map(StageExecution::tasks) {
            if let Some(load) = loads.get_mut(task.node()) {
                *load += task.load();
            }
        }
        loads
    }

    /// Propagates the ends of stages: their readers get no more outputs, and their inputs are
    /// cancelled (C-5, D-5, D-9).
    fn propagate_ends(&mut self) -> Result<()> {
        // A parent comes before its children, which its end may cancel.
        for id in 0..self.stages.len() {
            let state = self.stages[id].state();
            if self.notified[id] || !state.is_final() {
                continue;
            }
            self.notified[id] = true;
            if state == StageState::Failed {
                let cause = self.stages[id].failure().cloned();
                return Err(cause.unwrap_or(Error::ProducerAborted));
            }
            self.linkages[id].process(&mut self.stages, &Vec::new(), &self.result)?;
            for child in &self.children[id] {
                self.stages[*child].cancel();
            }
        }
        Ok(())
    }

    /// Checks that every stage is fully scheduled once the schedule is finished (D-7).
    fn check_scheduled(&self) -> Result<()> {
        for stage in &self.stages {
            let state = stage.state();
            if !matches!(state, StageState::Scheduled | StageState::Running) && !state.is_final() {
                let what = format!("scheduling is complete, but {stage:?}");
                return Err(Error::InvalidConfiguration(what));
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.schedulers.iter_mut().for_each(|scheduler| scheduler.close());
        }
    }

    /// Ends all stages after a failure or cancellation. Returns the primary error of a task, if one
    /// failed.
    pub fn abort(&mut self) -> Option<Error> {
        self.close();
        let tasks = self.stages.iter().flat_map(StageExecution::tasks);
        let cause = tasks.filter_map(|task| task.error()).find(|error| !error.is_secondary());
        self.stages.iter_mut().for_each(StageExecution::abort);
        cause
    }
}

impl Drop for QueryScheduler {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for QueryScheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.stages).finish()
    }
}

/// Collects each stage with its parent and children.
fn link(
    plan: &SubPlan,
    parent: Option<usize>,
    links: &mut Vec<(usize, Option<usize>, Vec<usize>)>,
) {
    let own = plan.fragment.id;
    let children = plan.children.iter().map(|child| child.fragment.id).collect();
    links.push((own, parent, children));
    plan.children.iter().for_each(|child| link(child, Some(own), links));
}

fn schedulers(
    stages: &[StageExecution],
    mut scheduler_of: impl FnMut(&StageExecution) -> Result<Box<dyn StageScheduler>>,
) -> Result<Vec<Box<dyn StageScheduler>>> {
    let mut all: Vec<Box<dyn StageScheduler>> = Vec::new();
    for stage in stages {
        match scheduler_of(stage) {
            Ok(scheduler) => all.push(scheduler),
            Err(error) => {
                all.iter_mut().for_each(|scheduler| scheduler.close());
                return Err(error);
            }
        }
    }
    Ok(all)
}
