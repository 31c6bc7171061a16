//! DataFusion plans on gatework.
//!
//! An application keeps DataFusion's SQL, DataFrames, tables and functions; its plans run as
//! pipelines of our operators ([`SessionStateBuilderExt::with_gatework`], [`session`]). Every node
//! that we cover is wrapped in a [`shell`](Shell) that looks like the original to everybody else; the
//! topmost shell that is executed turns its subtree into pipelines. A node that we do not cover runs
//! as DataFusion's own, as a source of our pipeline, and is named as a fallback.

#![deny(unsafe_code)]

pub mod buckets;
mod engine;
mod file_order;
mod float_bounds;
mod lower;
mod memory;
mod planner;
mod region;
mod remote_filters;
mod scan;
mod scope;
mod session;
mod settings;
mod shell;
mod sides;
mod source;
mod spill;
mod split_table;
pub mod splits;
pub mod verify;
mod write;

pub use engine::io_on;
pub use lower::{FilterTargets, RowsOf, UniqueNamePushdown, window_expressions};
pub use planner::{GateworkPlanner, ShellRule, forget_file_lists};
pub use region::{Deadline, profile, query, run_into, with_config};
pub use remote_filters::RemoteFilters;
pub use scope::QueryScope;
pub use session::{
    RUNTIME_FILTER_RULE, SessionStateBuilderExt, add_planning_rules, session, session_with,
};
pub use settings::Settings;
pub use shell::{Shell, as_shell, cover_above, fallbacks, is_covered};
pub use sides::JoinSides;
pub use source::SourceExec;
pub use write::{WriteExec, WriteProgress, WriteTarget};
