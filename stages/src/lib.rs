//! Plans as stages: where rows change nodes, and what runs between.
//!
//! A plan for several nodes has *exchanges* ([`ExchangeExec`]) where rows go from one node to another.
//! [`place_exchanges`] decides where, and [`fragment_plan`] cuts the plan there, and nowhere else, into a tree of
//! [`PlanFragment`]s, each of which runs as a stage of one or more tasks. [`plan_stages`] does all of it for a
//! query. (Presto's `AddExchanges` and `PlanFragmenter`; the rules, with the tests that show them, are listed
//! in `RULES.md`.)
//!
//! What stands: planning and its text. The stages do not run yet.

#![forbid(unsafe_code)]

mod exchange;
mod fragment;
mod place;
mod plan;
mod scan;
mod text;

#[cfg(test)]
mod tests;

pub use exchange::{ExchangeExec, ExchangeKind, PartitioningHandle, PartitioningScheme, Scope};
pub use fragment::{FragmentId, PlanFragment, RemoteSourceExec, SubPlan, fragment_plan};
pub use place::place_exchanges;
pub use plan::{StageOptions, plan_stages};
pub use scan::SplitScanExec;
