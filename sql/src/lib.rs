//! DataFusion plans on gatework.
//!
//! An application keeps DataFusion's SQL, DataFrames, tables and functions; its plans run as
//! pipelines of gatework's operators ([`SessionStateBuilderExt::with_gatework`], [`session`]).
//! Every supported node is wrapped in a [`GateworkExec`] that looks like the inner node to all
//! other code. The topmost wrapper is executed and turns its subtree into pipelines. Any other node
//! is a fallback: DataFusion executes it, and its streams are a source of a pipeline.

#![deny(unsafe_code)]

pub mod buckets;
mod engine;
mod exec;
mod file_order;
mod float_bounds;
mod join_selection;
mod lower;
mod memory;
pub mod nodes;
mod planner;
mod region;
mod region_stream;
mod remote_filters;
mod scan;
mod scope;
mod session;
mod settings;
mod source;
mod spill;
mod split_table;
pub mod splits;
mod table_factory;
pub mod verify;
mod write;

pub use engine::set_io_runtime;
pub use exec::{GateworkExec, as_gatework_exec, fallbacks, is_supported, wrap_until};
pub use join_selection::BuildSideSelection;
pub use lower::{FilterTargets, PassThroughInputs, UniqueNamePushdown, window_expressions};
pub use planner::{GateworkPlanner, GateworkRule, clear_file_list_cache};
pub use region::{QueryTimeout, profile, query, run_plan_into_sink, task_context_with};
pub use remote_filters::RemoteRuntimeFilters;
pub use scope::CancellationScope;
pub use session::{
    RUNTIME_FILTER_RULE, SessionStateBuilderExt, add_planning_rules, session, session_with,
};
pub use settings::Settings;
pub use source::SourceExec;
pub use write::{WriteExec, WriteProgress, WriteTarget};
