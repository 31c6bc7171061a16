//! The one error type of the runtime: what ended a query, and where.

use std::{error::Error as StdError, sync::Arc, time::Duration};

/// The result of runtime calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What ended a query. Cheap to clone, since every reader of a result is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An operator failed; `source` is its own error.
    #[error("{source}")]
    Operator {
        /// The operator's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Code of an operator or an expression panicked. Other queries go on.
    #[error("a task of pipeline '{pipeline}' panicked: {message}")]
    Panic {
        /// The pipeline whose task panicked.
        pipeline: String,
        /// The panic's message.
        message: String,
    },
    /// The query was cancelled: by its handle, by a dropped result, or with its executor.
    #[error("the query was cancelled: {reason}")]
    Cancelled {
        /// Who cancelled it.
        reason: &'static str,
    },
    /// The query took longer than it was allowed to.
    #[error("the query was ended after {limit:?}, its time limit; raise the limit or ask for less")]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// A reservation did not fit the memory limit.
    #[error(
        "not enough memory for {operator}: {requested} bytes were requested ({reason}); \
         raise the memory limit or let fewer queries run at a time"
    )]
    OutOfMemory {
        /// The operator that asked.
        operator: String,
        /// Bytes that were asked for.
        requested: usize,
        /// What the pool said, with the largest holders where it knows them.
        reason: String,
    },
    /// No task of the query could run, none of them waited for anything outside, and still it had not ended.
    #[error(
        "the query has stalled: none of its tasks can run, and none waits for I/O or a reader; please report \
         this with who waits for what:\n{dump}"
    )]
    Stalled {
        /// What every task waits for.
        dump: String,
    },
    /// As many queries run and wait as may.
    #[error(
        "the resource group '{group}' runs {running} queries and {queued} more are queued; \
         try again later, or raise its limits"
    )]
    QueueFull {
        /// The group's name.
        group: String,
        /// Its queries that run.
        running: usize,
        /// Those that wait.
        queued: usize,
    },
    /// A task met the end of a producer that had failed. The query's first error tells why.
    #[error("a producer ended without finishing")]
    ProducerAborted,
    /// A pipeline, executor or graph was set up in a way that cannot work.
    #[error("{0}")]
    InvalidConfiguration(String),
}

impl Error {
    /// An operator's error.
    pub fn operator(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Operator { source: Arc::from(source.into()) }
    }

    /// The runtime's own error in `error` or below it, such as a time limit, a cancel or a full resource
    /// group, whatever other libraries have wrapped around it. (What a query's expressions and files fail
    /// with is theirs, and arrives as it is.)
    ///
    /// ```
    /// use gatework_runtime::Error;
    /// let full = Error::QueueFull { group: "reports".into(), running: 4, queued: 8 };
    /// let wrapped = std::io::Error::other(full);
    /// assert!(matches!(Error::of(&wrapped), Some(Error::QueueFull { queued: 8, .. })));
    /// ```
    pub fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(own) = error.downcast_ref() {
                return Some(own);
            }
            // An I/O error's source is that of the error in it.
            let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            next = io.map_or_else(|| error.source(), |inner| Some(inner));
        }
        None
    }

    /// Whether this only echoes another task's end, so that it never counts as the first error.
    pub fn is_secondary(&self) -> bool {
        matches!(self, Self::ProducerAborted | Self::Cancelled { .. })
    }
}
