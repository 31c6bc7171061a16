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

mod add_exchanges;
mod buckets;
#[cfg(feature = "cluster")]
pub mod cluster;
mod exchange;
mod explain;
mod filters;
mod fragment;
mod linkage;
mod local;
mod nodes;
mod plan;
mod policy;
mod run;
mod scan;
mod schedule;
mod scheduler;
mod split_placement;
mod stage;
mod state;
mod task;

#[cfg(test)]
mod tests;

pub use add_exchanges::add_exchanges;
pub use exchange::{ExchangeExec, ExchangeKind, PartitioningHandle, PartitioningScheme, Scope};
pub use explain::{StageLocation, StageTree, StageView};
pub use fragment::{FragmentId, PlanFragment, RemoteSourceExec, SubPlan, fragment_plan};
pub use linkage::BufferManager;
pub use nodes::Nodes;
pub use plan::{StageOptions, plan_stages};
pub use policy::{ExecutionPolicy, ExecutionSchedule};
pub use run::{StageStream, StageWatch, TaskStats, execute};
pub use scan::SplitScanExec;
pub use schedule::{
    BlockedReason, BucketSplits, FixedCountScheduler, FixedSourceScheduler, ScaledWriterScheduler,
    Scheduled, SourcePartitionedScheduler, StageScheduler,
};
pub use scheduler::{QueryScheduler, StepResult};
pub use split_placement::SplitLimits;
pub use stage::StageExecution;
pub use state::{StageState, State, StateMachine, TaskState};
pub use task::{Lifespan, NodeId, StageTask, TaskEvents, TaskFactory, TaskId, TaskSpec};
