//! The same queries on workers of a cluster.
//!
//! The engine between machines is datafusion-distributed: its planner decides where rows change workers, its gRPC
//! service carries plans and rows. What runs within a worker, and above the stages that workers run, are gatework's
//! operators: a worker covers the plan that it is sent ([`worker`]), a session the head of its own
//! ([`ClusterSession`]). Only what divides a stage's rows among those that read it stays DataFusion's
//! (`RepartitionExec`, `BroadcastExec`), since the worker puts it there when it is asked for rows.
//!
//! Who may ask whom is [`Access`], what a worker may read [`Locations`]. [`Connections`] notice when a worker is lost,
//! and say which; a session that may ([`ClusterOptions::retries`]) then runs the query again on the others.

mod access;
mod connections;
mod execution;
mod in_process;
mod limits;
mod locations;
mod parts;
mod plan;
mod session;
mod watched;
mod worker;

pub use access::Access;
pub use connections::{Connections, worker_of};
pub use datafusion_distributed::{Worker, WorkerResolver};
pub use in_process::InProcess;
pub use locations::Locations;
pub use plan::{fallbacks, is_distributed, plan_text, stage_tree, why_local};
pub use session::{ClusterOptions, ClusterSession, Compression, WorkerList};
pub use worker::{WorkerOptions, serve, service, worker};
