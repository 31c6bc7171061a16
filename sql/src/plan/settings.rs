//! Typed configuration of queries in a session.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use datafusion::{execution::TaskContext, prelude::SessionConfig};
use gatework_runtime::pipeline::Chaos;

/// Settings for the queries of a session, put into its configuration as an extension:
///
/// ```
/// use std::time::Duration;
/// use datafusion::prelude::SessionConfig;
/// use gatework_sql::Settings;
/// let settings = Settings { time_slice: Duration::from_millis(2), ..Settings::default() };
/// let config: SessionConfig = settings.into_config(SessionConfig::new());
/// # let _ = config;
/// ```
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time a task runs before it yields to other tasks. Default: 10 ms.
    pub time_slice: Duration,
    /// Upper bound, in bytes, for buffered result rows. Producers block at the bound. Default: 8
    /// MiB.
    pub result_buffer_bytes: usize,
    /// Upper bound, in bytes, for each buffer of an exchange, of a union or between window
    /// partitions. Producers block at the bound. Default: 16 MiB.
    pub exchange_buffer_bytes: usize,
    /// Maximum number of tasks of a pipeline. Default: the number of the executor's threads.
    pub max_tasks_per_pipeline: Option<NonZeroUsize>,
    /// Resource group of the executor whose limits apply to the queries. Default: the executor's
    /// default group.
    pub resource_group: Option<Arc<str>>,
    /// Starts the queries without admission, so that they do not count against the limits of the
    /// group and of the executor. For queries that are tasks of another query, which is admitted as
    /// a whole elsewhere, such as those on a worker. Default: false.
    pub bypass_admission: bool,
    /// Maximum time from a query's start until its result has been read; a query that exceeds it
    /// fails. Default: no limit.
    pub timeout: Option<Duration>,
    /// Faults and delays that tests inject into the queries' tasks. Default: none.
    pub chaos: Option<Arc<Chaos>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            time_slice: Duration::from_millis(10),
            result_buffer_bytes: 8 << 20,
            exchange_buffer_bytes: 16 << 20,
            max_tasks_per_pipeline: None,
            resource_group: None,
            bypass_admission: false,
            timeout: None,
            chaos: None,
        }
    }
}

impl Settings {
    /// Returns `config` with these settings.
    pub fn into_config(self, config: SessionConfig) -> SessionConfig {
        config.with_extension(Arc::new(self))
    }

    pub(crate) fn of(context: &TaskContext) -> Arc<Self> {
        context.session_config().get_extension::<Self>().unwrap_or_default()
    }
}
