//! Subplans that a query uses several times run once.
//!
//! DataFusion puts the plan of a common table expression or view wherever the query names it, and
//! runs every copy. Three steps make one of them:
//!
//! 1. An analyzer rule ([`SharedSubplans`]) replaces the copies by scans of a [`SharedTable`]. The
//!    optimizer pushes the columns and filters of each reader into its scan, as for any table.
//! 2. The planner ([`plan_subplans`]) plans the definition once, with the columns of all readers,
//!    and with the rows that pass the filters of at least one. Each scan becomes a
//!    [`SharedRowsExec`].
//! 3. Lowering makes one pipeline of the definition, whose rows all readers read
//!    ([`shared_rows`](gatework_operators::shared_rows)).
//!
//! (Silva et al., "Exploiting Common Subexpressions for Cloud Query Processing", ICDE 2012, call
//! the node *spool*; DuckDB and PostgreSQL materialize common table expressions.)

mod exec;
mod planning;
mod rule;
mod table;

pub(crate) use exec::{SharedRowsExec, show_definitions};
pub(crate) use planning::plan_subplans;
pub(crate) use rule::SharedSubplans;
pub(crate) use table::SharedTable;
