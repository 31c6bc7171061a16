//! Planning: sessions with gatework's rules, and the plan nodes that these rules make.
//!
//! `session.rs` builds sessions, `planner.rs` plans their queries and wraps the supported nodes
//! (`exec.rs`). `shared_subplans` computes subplans with several readers once.
//! `join_order`, `join_selection.rs`, `file_order.rs` and `float_bounds.rs` are optimizer rules.

mod estimates;
pub(crate) mod exec;
mod file_order;
mod float_bounds;
mod join_order;
mod join_selection;
mod planner;
mod session;
mod settings;
pub(crate) mod shared_subplans;
mod source;
mod table_factory;

pub use exec::{
    GateworkExec, as_gatework_exec, fallbacks, is_supported, is_supported_on, wrap_until,
};
pub use join_selection::BuildSideSelection;
pub use planner::{GateworkPlanner, GateworkRule, clear_file_list_cache};
pub use session::{
    RUNTIME_FILTER_RULE, SessionStateBuilderExt, add_planning_rules, session, session_with,
};
pub use settings::Settings;
pub use source::SourceExec;
