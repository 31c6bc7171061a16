//! Queries that end together.

use std::sync::{Arc, Weak};

use datafusion::{execution::TaskContext, prelude::SessionConfig};
use gatework_runtime::{Error, pipeline::QueryContext};
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
/// use gatework_sql::{CancellationScope, SessionStateBuilderExt};
/// let executor = Executor::builder().threads(1).build()?;
/// let scope = Arc::new(CancellationScope::default());
/// let state = SessionStateBuilder::new()
///     .with_default_features()
///     .with_config(scope.clone().into_config(SessionConfig::new()))
///     .with_gatework(&executor)
///     .build();
/// let query = SessionContext::new_with_state(state).sql("SELECT count(*) FROM range(1, 9)").await?;
/// scope.cancel("nobody wants it any more");
/// let error = query.collect().await.map(|_| ()).unwrap_err().to_string();
/// assert!(error.contains("the query was cancelled: nobody wants it any more"), "{error}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct CancellationScope {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why, if they are cancelled.
    cancelled: Option<&'static str>,
    /// Those that may run.
    queries: Vec<Weak<QueryContext>>,
}

impl CancellationScope {
    /// `config` of a session whose queries are of this scope.
    pub fn into_config(self: Arc<Self>, config: SessionConfig) -> SessionConfig {
        config.with_extension(self)
    }

    /// Cancels its queries, whose error says the `reason`: "the query was cancelled: nobody wants it any more". By
    /// anybody, any number of times, of which the first counts.
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

    /// Adds `query` to the scope of `context`, if that has one.
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
