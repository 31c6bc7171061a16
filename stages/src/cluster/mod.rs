//! The same queries on workers of a cluster.
//!
//! The engine between machines is datafusion-distributed: its planner decides where rows change workers, its gRPC
//! service carries plans and rows. What runs within a worker, and above the stages that workers run, are gatework's
//! operators: a worker covers the plan that it is sent ([`worker`]), a session the head of its own
//! ([`ClusterSession`]). Only what divides a stage's rows among those that read it stays DataFusion's
//! (`RepartitionExec`, `BroadcastExec`), since the worker puts it there when it is asked for rows.

mod session;
mod worker;

pub use datafusion_distributed::{Worker, WorkerResolver};
pub use session::{
    ClusterOptions, ClusterSession, FixedWorkers, fallbacks, is_distributed, plan_text,
};
pub use worker::{serve, worker};
