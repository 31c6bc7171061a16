//! The same queries on workers of a cluster.
//!
//! The engine between machines is datafusion-distributed: its planner decides where rows change workers, its gRPC
//! service carries plans and rows. What runs within a worker, and above the stages that workers run, are gatework's
//! operators: a worker covers the plan that it is sent ([`worker`]), a session the head of its own
//! ([`ClusterSession`]). Only what divides a stage's rows among those that read it stays DataFusion's
//! (`RepartitionExec`, `BroadcastExec`), since the worker puts it there when it is asked for rows.
//!
//! Who may ask whom is [`ClusterAuth`], what a worker may read [`AllowedLocations`]. [`Connections`] notice when a worker is lost,
//! and say which; a session that may ([`ClusterOptions::retries`]) then runs the query again on the others.

mod active_tasks;
mod auth;
mod connections;
mod execution;
mod in_process;
mod limits;
mod liveness;
mod locations;
mod plan;
mod session;
mod worker;

pub use auth::ClusterAuth;
pub use connections::{Connections, failed_worker};
pub use datafusion_distributed::{Worker, WorkerResolver};
pub use in_process::InProcessCluster;
pub use locations::AllowedLocations;
pub use plan::{fallbacks, is_distributed, local_execution_reason, plan_text, stage_tree};
pub use session::{ClusterOptions, ClusterSession, Compression, WorkerList};
pub use worker::{WorkerOptions, serve, service, worker};
