//! Queries on the workers of a cluster.
//!
//! datafusion-distributed is the engine between machines. Its planner decides where rows change
//! workers; its gRPC service carries plans and rows. Within a worker, and above the workers'
//! stages, gatework's operators run. A worker wraps the plan that it receives ([`worker`]), a
//! session the head of its own plan ([`ClusterSession`]). The node that partitions a stage's output
//! for its readers stays DataFusion's (`RepartitionExec`, `BroadcastExec`): the worker adds it when
//! rows are requested.
//!
//! [`ClusterAuth`] decides which clients a worker accepts, [`AllowedLocations`] what it may read.
//! [`Connections`] detect the loss of a worker and name it. A session with
//! [`ClusterOptions::retries`] then runs the query again on the others.

mod active_tasks;
mod auth;
mod codec;
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
pub use datafusion_proto::physical_plan::PhysicalExtensionCodec;
pub use in_process::InProcessCluster;
pub use locations::AllowedLocations;
pub use plan::{fallbacks, is_distributed, local_execution_reason, plan_text, stage_tree};
pub use session::{ClusterOptions, ClusterSession, Compression, WorkerList};
pub use worker::{WorkerOptions, serve, service, worker};
