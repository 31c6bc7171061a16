//! Typed configuration of queries in a session.

use std::{any::Any, num::NonZeroUsize, sync::Arc, time::Duration};

use bytesize::ByteSize;
use datafusion::{
    common::{
        Result,
        config::{ConfigEntry, ConfigExtension, ExtensionOptions},
        config_err,
    },
    prelude::SessionConfig,
};
use gatework_runtime::pipeline::Chaos;

/// Settings for the queries of a session, put into its configuration as an extension.
///
/// SQL reads and changes them under the prefix `gatework`: `SET gatework.time_slice = '2ms'`, `SHOW
/// gatework.timeout`. Durations are written `10ms` or `5min`, sizes `16MiB`; an empty value stands
/// for the default of an optional setting. Where users must not lift a timeout or choose a group,
/// `SQLOptions::with_allow_statements(false)` refuses `SET`. Workers of a cluster have settings of
/// their own.
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
    /// Computes a common table expression or view with several readers in a query once, and keeps
    /// its rows until all have read them. Only where a query runs on one executor. Default: true.
    pub share_subplans: bool,
    /// Reorders inner joins where another order than the written one costs clearly less, by
    /// estimates. Only where a query runs on one executor. Default: true.
    pub reorder_joins: bool,
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
            share_subplans: true,
            reorder_joins: true,
            chaos: None,
        }
    }
}

impl Settings {
    /// Returns `config` with these settings.
    pub fn into_config(self, config: SessionConfig) -> SessionConfig {
        config.with_option_extension(self)
    }

    /// Adds the defaults to `config` if it has no settings, so that SQL can change them. Called by
    /// what makes a session run on gatework.
    pub fn add_defaults(config: &mut SessionConfig) {
        let extensions = &mut config.options_mut().extensions;
        if extensions.get::<Self>().is_none() {
            extensions.insert(Self::default());
        }
    }

    /// Returns the settings in `config`, or the defaults.
    pub fn of(config: &SessionConfig) -> Self {
        config.options().extensions.get::<Self>().cloned().unwrap_or_default()
    }
}

impl ConfigExtension for Settings {
    const PREFIX: &'static str = "gatework";
}

/// A setting that SQL can change.
struct Setting {
    key: &'static str,
    description: &'static str,
    get: fn(&Settings) -> Option<String>,
    set: fn(&mut Settings, &str) -> Result<(), String>,
}

const SETTINGS: [Setting; 8] = [
    Setting {
        key: "time_slice",
        description: "Time a task runs before it yields to other tasks",
        get: |settings| Some(duration_text(settings.time_slice)),
        set: |settings, value| duration(value).map(|value| settings.time_slice = value),
    },
    Setting {
        key: "result_buffer_bytes",
        description: "Upper bound for buffered result rows; producers block at the bound",
        get: |settings| Some(bytes_text(settings.result_buffer_bytes)),
        set: |settings, value| bytes(value).map(|value| settings.result_buffer_bytes = value),
    },
    Setting {
        key: "exchange_buffer_bytes",
        description: "Upper bound for each buffer of an exchange, of a union or between window \
                      partitions; producers block at the bound",
        get: |settings| Some(bytes_text(settings.exchange_buffer_bytes)),
        set: |settings, value| bytes(value).map(|value| settings.exchange_buffer_bytes = value),
    },
    Setting {
        key: "max_tasks_per_pipeline",
        description: "Maximum number of tasks of a pipeline; by default the number of threads",
        get: |settings| settings.max_tasks_per_pipeline.map(|tasks| tasks.to_string()),
        set: |settings, value| {
            let tasks = optional(value, |value| value.parse().map_err(|_| "at least 1".to_owned()));
            tasks.map(|tasks| settings.max_tasks_per_pipeline = tasks)
        },
    },
    Setting {
        key: "resource_group",
        description: "Resource group of the executor whose limits apply to the queries",
        get: |settings| settings.resource_group.as_deref().map(str::to_owned),
        set: |settings, value| {
            optional(value, |value| Ok(value.into())).map(|name| settings.resource_group = name)
        },
    },
    Setting {
        key: "timeout",
        description: "Maximum time from a query's start until its result has been read; by \
                      default unlimited",
        get: |settings| settings.timeout.map(duration_text),
        set: |settings, value| optional(value, duration).map(|value| settings.timeout = value),
    },
    Setting {
        key: "share_subplans",
        description: "Computes a common table expression or view with several readers once",
        get: |settings| Some(settings.share_subplans.to_string()),
        set: |settings, value| switch(value).map(|value| settings.share_subplans = value),
    },
    Setting {
        key: "reorder_joins",
        description: "Reorders inner joins where another order costs clearly less by estimates",
        get: |settings| Some(settings.reorder_joins.to_string()),
        set: |settings, value| switch(value).map(|value| settings.reorder_joins = value),
    },
];

/// Parses the value of an optional setting; an empty value is none.
fn optional<T>(
    value: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if value.is_empty() { Ok(None) } else { parse(value).map(Some) }
}

fn switch(value: &str) -> Result<bool, String> {
    value.to_lowercase().parse().map_err(|_| "true or false".to_owned())
}

fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value).map_err(|_| "a duration such as 10ms, 90s or 5min".to_owned())
}

fn duration_text(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

fn bytes(value: &str) -> Result<usize, String> {
    let size: Result<ByteSize, _> = value.parse();
    size.ok()
        .and_then(|size| usize::try_from(size.as_u64()).ok())
        .ok_or_else(|| "a size such as 16MiB, or a number of bytes".to_owned())
}

/// A size without loss: in MiB, KiB or bytes.
fn bytes_text(value: usize) -> String {
    match value {
        value if value.is_multiple_of(1 << 20) => format!("{}MiB", value >> 20),
        value if value.is_multiple_of(1 << 10) => format!("{}KiB", value >> 10),
        value => value.to_string(),
    }
}

impl ExtensionOptions for Settings {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let known: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
            return config_err!(
                "there is no setting gatework.{key}; known settings: {}",
                known.join(", ")
            );
        };
        (setting.set)(self, value.trim()).or_else(|expected| {
            config_err!("'{value}' is no value of gatework.{key}, which is {expected}")
        })
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |setting: &Setting| ConfigEntry {
            key: format!("gatework.{}", setting.key),
            value: (setting.get)(self),
            description: setting.description,
        };
        SETTINGS.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    //! Settings as SQL writes and reads them.

    use std::time::Duration;

    use datafusion::{common::config::ExtensionOptions, prelude::SessionConfig};

    use super::Settings;

    #[test]
    fn every_setting_reads_what_it_prints() {
        let values = [
            ("time_slice", "2ms"),
            ("result_buffer_bytes", "3MiB"),
            ("exchange_buffer_bytes", "5000"),
            ("max_tasks_per_pipeline", "3"),
            ("resource_group", "reports"),
            ("timeout", "1m 30s"),
            ("share_subplans", "false"),
            ("reorder_joins", "false"),
        ];
        let mut settings = Settings::default();
        for (key, value) in values {
            settings.set(key, value).unwrap();
        }
        let entries: Vec<_> = settings.entries();
        assert_eq!(entries.len(), values.len());
        for (entry, (key, value)) in entries.iter().zip(values) {
            assert_eq!(entry.key, format!("gatework.{key}"));
            assert_eq!(entry.value.as_deref(), Some(value));
        }
        assert_eq!(settings.timeout, Some(Duration::from_secs(90)));
        settings.set("timeout", "").unwrap();
        assert_eq!(settings.timeout, None);
    }

    #[test]
    fn wrong_settings_are_explained() {
        let error = |key, value| Settings::default().set(key, value).unwrap_err().to_string();
        assert!(error("time", "1").contains("known settings: time_slice, "));
        assert!(error("time_slice", "soon").contains("which is a duration such as 10ms"));
        assert!(error("result_buffer_bytes", "-1").contains("which is a size such as 16MiB"));
        assert!(error("max_tasks_per_pipeline", "0").contains("which is at least 1"));
        assert!(error("share_subplans", "2").contains("which is true or false"));
    }

    #[test]
    fn a_configuration_keeps_settings() {
        let settings = Settings { result_buffer_bytes: 7, ..Settings::default() };
        let mut config = settings.into_config(SessionConfig::new());
        assert_eq!(Settings::of(&config).result_buffer_bytes, 7);
        config.options_mut().set("gatework.result_buffer_bytes", "9").unwrap();
        assert_eq!(Settings::of(&config).result_buffer_bytes, 9);
        assert_eq!(Settings::of(&SessionConfig::new()).result_buffer_bytes, 8 << 20);
    }
}
