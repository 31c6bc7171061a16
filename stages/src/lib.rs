//! Plans as stages: where rows change nodes, and what runs between exchanges.
//!
//! A plan for several nodes has *exchanges* ([`ExchangeExec`]) where rows move between nodes.
//! [`add_exchanges`] adds them, and [`fragment_plan`] cuts the plan exactly there into a tree of
//! [`PlanFragment`]s. Each fragment runs as a stage of one or more tasks. [`plan_stages`] performs
//! all steps for a query. (Presto's `AddExchanges` and `PlanFragmenter`; `RULES.md` lists the rules
//! with their tests.)
//!
//! [`execute`] runs a query as stages on [`Nodes`] of this process. Each task runs its fragment as
//! a query of its executor and writes into an [output](gatework_shared_state::output). One
//! [`QueryScheduler`] per query, itself a task, starts, links and ends the stages' tasks.

#![forbid(unsafe_code)]

#[cfg(feature = "cluster")]
pub mod cluster;
mod plan;
mod run;

#[cfg(test)]
mod tests;

pub use plan::{
    ExchangeExec, ExchangeKind, FragmentId, PartitioningHandle, PartitioningScheme, PlanFragment,
    RemoteSourceExec, Scope, SplitScanExec, StageLocation, StageOptions, StageTree, StageView,
    SubPlan, add_exchanges, fragment_plan, plan_stages,
};
pub use run::{
    BlockedReason, BucketSplits, BufferManager, ExecutionPolicy, ExecutionSchedule,
    FixedCountScheduler, FixedSourceScheduler, Lifespan, NodeId, Nodes, QueryScheduler,
    ScaledWriterScheduler, Scheduled, SourcePartitionedScheduler, SplitLimits, StageExecution,
    StageScheduler, StageState, StageStream, StageTask, StageWatch, State, StateMachine,
    StepResult, TaskEvents, TaskFactory, TaskId, TaskSpec, TaskState, TaskStats, execute,
};
