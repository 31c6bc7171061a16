//! gatework: an embeddable query executor over Apache Arrow in which gates block and wake tasks.
//!
//! A DataFusion application adds it in one line and keeps its SQL, DataFrames, tables and
//! functions:
//!
//! ```
//! use datafusion::{execution::session_state::SessionStateBuilder, prelude::*};
//! use gatework::prelude::*;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let executor = Executor::builder().threads(2).build()?;
//! let state =
//!     SessionStateBuilder::new().with_default_features().with_gatework(&executor).build();
//! let context = SessionContext::new_with_state(state);
//! let rows = context.sql("SELECT 6 * 7 AS answer").await?.collect().await?;
//! assert_eq!(rows[0].num_rows(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! [`session`] creates a new session. For pipelines built by hand, [`runtime`] has the operator
//! traits, [`operators`] has the operators and their test harness, and [`shared_state`] has the
//! shared states.

#![forbid(unsafe_code)]

pub use gatework_operators as operators;
pub use gatework_runtime as runtime;
pub use gatework_runtime::{Error, Executor, ExecutorBuilder};
pub use gatework_shared_state as shared_state;
pub use gatework_sql as sql;
pub use gatework_sql::{
    GateworkExec, SessionStateBuilderExt, Settings, fallbacks, profile, query, session,
    session_with, verify,
};
pub use gatework_stages as stages;

/// The names that most applications need in scope.
pub mod prelude {
    pub use crate::{Executor, SessionStateBuilderExt, session, session_with};
}
