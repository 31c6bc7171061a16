//! Queries that end together.

use std::sync::{Arc, Weak};

use datafusion::{execution::TaskContext, prelude::SessionConfig};
use gatework_runtime::pipeline::QueryContext;
use parking_lot::Mutex;

/// Cancels all queries of the sessions that have it in their configuration: those that run, and those that would begin
/// later. For whoever runs plans on behalf of somebody who may go, while parts of the plan are held elsewhere.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::sync::Arc;
/// use datafusion::{execution::session_state::SessionStateBuilder, prelude::*};
/// use gatework_runtime::Executor;
/// use gatework_sql::{GateworkSession, QueryScope};
/// let executor = Executor::builder().threads(1).build()?;
/// let scope = Arc::new(QueryScope::default());
/// let state = SessionStateBuilder::new()
///     .with_default_features()
///     .with_config(scope.clone().into_config(SessionConfig::new()))
///     .with_gatework(&executor)
///     .build();
/// let query = SessionContext::new_with_state(state).sql("SELECT * FROM range(1, 9)").await?;
/// scope.cancel();
/// assert!(query.collect().await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct QueryScope {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    /// Those that may run.
    queries: Vec<Weak<QueryContext>>,
}

impl QueryScope {
    /// `config` of a session whose queries are of this scope.
    pub fn into_config(self: Arc<Self>, config: SessionConfig) -> SessionConfig {
        config.with_extension(self)
    }

    /// Cancels its queries. Any number of times, by anybody.
    pub fn cancel(&self) {
        let queries = {
            let mut state = self.state.lock();
            state.cancelled = true;
            std::mem::take(&mut state.queries)
        };
        queries.iter().filter_map(Weak::upgrade).for_each(|query| query.cancel());
    }

    /// Adds `query` to the scope of `context`, if that has one.
    pub(crate) fn enter(context: &TaskContext, query: &Arc<QueryContext>) {
        let Some(scope) = context.session_config().get_extension::<Self>() else { return };
        let mut state = scope.state.lock();
        if state.cancelled {
            drop(state);
            return query.cancel();
        }
        if state.queries.len() == state.queries.capacity() {
            state.queries.retain(|query| query.strong_count() > 0);
        }
        state.queries.push(Arc::downgrade(query));
    }
}
