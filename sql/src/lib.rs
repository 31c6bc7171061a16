//! DataFusion plans on gatework.
//!
//! An application keeps DataFusion's SQL, DataFrames, tables and functions; its plans run as
//! pipelines of gatework's operators ([`SessionStateBuilderExt::with_gatework`], [`session`]).
//! Every supported node is wrapped in a [`GateworkExec`] that looks like the inner node to all
//! other code. The topmost wrapper is executed and turns its subtree into pipelines. Any other node
//! is a fallback: DataFusion executes it, and its streams are a source of a pipeline.

#![deny(unsafe_code)]

pub mod buckets;
mod lower;
pub mod nodes;
mod plan;
mod run;
mod scan;
pub mod splits;
pub mod verify;
mod write;

pub use lower::{FilterTargets, PassThroughInputs, UniqueNamePushdown, window_expressions};
pub use plan::{
    BuildSideSelection, GateworkExec, GateworkPlanner, GateworkRule, RUNTIME_FILTER_RULE,
    SessionStateBuilderExt, Settings, SourceExec, add_planning_rules, as_gatework_exec,
    clear_file_list_cache, fallbacks, is_supported, is_supported_on, session, session_with,
    wrap_until,
};
pub use run::{
    CancellationScope, QueryTimeout, RemoteRuntimeFilters, profile, query, run_plan_into_sink,
    set_io_runtime, task_context_with,
};
pub use write::{WriteExec, WriteProgress, WriteTarget};
