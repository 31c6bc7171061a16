//! The error type of the runtime: the reason why a query ended.

use std::{error::Error as StdError, sync::Arc, time::Duration};

/// The result of runtime calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a query ended. Cheap to clone, since every reader of a result gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An operator failed; `source` is its own error.
    #[error("{source}")]
    Operator {
        /// The operator's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Code of an operator or an expression panicked. Other queries continue.
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
        /// The cause of the cancellation.
        reason: &'static str,
    },
    /// The query exceeded its time limit.
    #[error(
        "the query was ended after {limit:?}, its time limit; raise the limit or reduce the \
         query's work"
    )]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// A reservation was denied, and no memory could be released for it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The query had not ended, but no task could run and none waited for external work.
    #[error(
        "the query has stalled: none of its tasks can run, and none waits for I/O or a reader; \
         please report this with the gates that the tasks wait for:\n{dump}"
    )]
    Stalled {
        /// The gates that every task waits for.
        dump: String,
    },
    /// The resource group's numbers of running and queued queries are at their limits.
    #[error(
        "the resource group '{group}' runs {running} queries and {queued} more are queued; \
         try again later, or raise its limits"
    )]
    QueueFull {
        /// The resource group's name.
        group: String,
        /// The number of its running queries.
        running: usize,
        /// The number of its queued queries.
        queued: usize,
    },
    /// The input of a task was aborted because its producer failed. The query's first error is the
    /// cause.
    #[error("a producer ended without finishing")]
    ProducerAborted,
    /// An operator broke one of its own rules.
    #[error("internal error: {0}; please report this")]
    Internal(String),
    /// A pipeline, executor or graph has an invalid configuration.
    #[error("{0}")]
    InvalidConfiguration(String),
}

/// A denied reservation.
///
/// A denial is a value, not yet an error: an operator may spill, wait for memory of other tasks, or
/// continue without the reservation. `?` turns the value into [`Error::OutOfMemory`].
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "not enough memory for {operator}: {requested} bytes were requested ({reason}); \
     raise the memory limit or run fewer queries at a time"
)]
pub struct OutOfMemory {
    /// The operator that requested the memory.
    pub operator: String,
    /// The number of bytes requested.
    pub requested: usize,
    /// The pool's reason, with the largest consumers if it knows them.
    pub reason: String,
}

impl Error {
    /// Wraps an operator's error.
    pub fn operator(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Operator { source: Arc::from(source.into()) }
    }

    /// Finds the runtime's own error in `error` or its sources, whatever other libraries have
    /// wrapped around it. Examples are a time limit, a cancel or a full resource group. (Errors of
    /// a query's expressions and files are other types and arrive unchanged.)
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
            // An I/O error's `source` is that of its inner error, so the inner error is visited
            // first.
            let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            next = io.map_or_else(|| error.source(), |inner| Some(inner));
        }
        None
    }

    /// Returns whether this error only reports another task's end; it never replaces a first error.
    pub fn is_secondary(&self) -> bool {
        matches!(self, Self::ProducerAborted | Self::Cancelled { .. })
    }
}
