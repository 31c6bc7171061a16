//! Typed configuration of queries in a session.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use datafusion::{execution::TaskContext, prelude::SessionConfig};
use gatework_runtime::pipeline::Chaos;

/// How a session's queries run. Put into a session's configuration as an extension:
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
    /// How long a task runs before others get their turn; 10 ms.
    pub time_slice: Duration,
    /// Bytes of rows that wait for the reader of a result; 8 MiB.
    pub result_buffer_bytes: usize,
    /// Bytes that wait in an exchange, a union or between window partitions; 16 MiB each.
    pub exchange_buffer_bytes: usize,
    /// Instances of a parallel pipeline, at most; by default as many as the executor has threads.
    pub max_tasks_per_pipeline: Option<NonZeroUsize>,
    /// The resource group of the executor whose limits hold for the queries; by default that of all others.
    pub resource_group: Option<Arc<str>>,
    /// The queries are parts of others, which wait for each other's rows and were admitted as a whole, somewhere else: they
    /// do not count against the limits of the group and of the executor. So it is with what a worker runs.
    pub bypass_admission: bool,
    /// How long a query may take, from its start until its result has been read; by default for ever.
    pub timeout: Option<Duration>,
    /// What a test does to the queries' tasks; by default nothing.
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
    /// `config` with these settings.
    pub fn into_config(self, config: SessionConfig) -> SessionConfig {
        config.with_extension(Arc::new(self))
    }

    pub(crate) fn of(context: &TaskContext) -> Arc<Self> {
        context.session_config().get_extension::<Self>().unwrap_or_default()
    }
}
