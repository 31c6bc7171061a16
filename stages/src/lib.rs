//! Plans as stages: where rows change nodes, and what runs between.
//!
//! A plan for several nodes has *exchanges* ([`ExchangeExec`]) where rows go from one node to another.
//! [`add_exchanges`] decides where, and [`fragment_plan`] cuts the plan there, and nowhere else, into a tree of
//! [`PlanFragment`]s, each of which runs as a stage of one or more tasks. [`plan_stages`] does all of it for a
//! query. (Presto's `AddExchanges` and `PlanFragmenter`; the rules, with the tests that show them, are listed
//! in `RULES.md`.)
//!
//! [`execute`] runs a query so on [`Nodes`] of this process: each stage's tasks run their fragment as queries of
//! their executors, write into [outputs](gatework_shared_state::output), and are brought up, linked and ended by
//! one scheduler a query ([`QueryScheduler`]), which is a task itself.

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
