//! Scopes of queries that are cancelled together.

use std::sync::{Arc, Weak};

use datafusion::{execution::TaskContext, prelude::SessionConfig};
use gatework_runtime::{Error, pipeline::QueryContext};
use parking_lot::Mutex;

/// Cancels all queries of the sessions that have this scope in their configuration: running
/// queries, and queries started later. A server that runs plans for a client puts one into the
/// session, and cancels it when the client disconnects.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::sync::Arc;
/// use datafusion::{execution::session_state::SessionStateBuilder, prelude::*};
/// use gatework_runtime::Executor;
/// use gatework_sql::{CancellationScope, SessionStateBuilderExt};
/// let executor = Executor::builder().threads(1).build()?;
/// let scope = Arc::new(CancellationScope::default());
/// let state = SessionStateBuilder::new()
///     .with_default_features()
///     .with_config(scope.clone().into_config(SessionConfig::new()))
///     .with_gatework(&executor)
///     .build();
/// let context = SessionContext::new_with_state(state);
/// let query = context.sql("SELECT count(*) FROM range(1, 9)").await?;
/// scope.cancel("the client disconnected");
/// let error = query.collect().await.map(|_| ()).unwrap_err().to_string();
/// assert!(error.contains("the query was cancelled: the client disconnected"), "{error}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct CancellationScope {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The reason, once the scope is cancelled.
    cancelled: Option<&'static str>,
    /// Queries that may still run.
    queries: Vec<Weak<QueryContext>>,
}

impl CancellationScope {
    /// Returns `config` with this scope, for a session whose queries belong to it.
    pub fn into_config(self: Arc<Self>, config: SessionConfig) -> SessionConfig {
        config.with_extension(self)
    }

    /// Cancels all queries of the scope. Their error contains `reason`, such as "the query was
    /// cancelled: the client disconnected". Only the first call has an effect.
    pub fn cancel(&self, reason: &'static str) {
        let queries = {
            let mut state = self.state.lock();
            state.cancelled.get_or_insert(reason);
            std::mem::take(&mut state.queries)
        };
        for query in queries.iter().filter_map(Weak::upgrade) {
            query.fail(Error::Cancelled { reason });
        }
    }

    /// Adds `query` to the scope of `context`, if `context` has one. Called for every new query;
    /// fails the query if the scope is cancelled.
    pub(crate) fn register(context: &TaskContext, query: &Arc<QueryContext>) {
        let Some(scope) = context.session_config().get_extension::<Self>() else { return };
        let mut state = scope.state.lock();
        if let Some(reason) = state.cancelled {
            drop(state);
            return query.fail(Error::Cancelled { reason });
        }
        if state.queries.len() == state.queries.capacity() {
            state.queries.retain(|query| query.strong_count() > 0);
        }
        state.queries.push(Arc::downgrade(query));
    }
}
