//! Sessions of both engines, and the modes of gatework sessions.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use datafusion::{
    execution::{
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
        session_state::SessionStateBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use gatework::{Executor, SessionStateBuilderExt, Settings, runtime::pipeline::Chaos};

/// How a gatework session runs its queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Four threads, batches of 8192 rows.
    Plain,
    /// One thread, batches of 8192 rows.
    Serial,
    /// Four threads, batches of 3 rows.
    Tiny,
    /// One thread, batches of 3 rows.
    TinySerial,
    /// Four threads and a memory pool of 1 MiB.
    Limited,
    /// Blocked calls, spurious wake-ups, and batches of 3 rows or split batches, all in a memory
    /// pool of 2 MiB.
    Chaos,
}

/// All modes.
pub(crate) const MODES: [Mode; 6] =
    [Mode::Plain, Mode::Serial, Mode::Tiny, Mode::TinySerial, Mode::Limited, Mode::Chaos];

impl Mode {
    /// Returns the modes named `name`: one, or `all`. Panics if there is none.
    pub(crate) fn named(name: &str, default: &[Self]) -> Vec<Self> {
        match name {
            "" => default.to_vec(),
            "all" => MODES.to_vec(),
            _ => {
                let same = |mode: &Self| format!("{mode:?}").eq_ignore_ascii_case(name);
                let mode = MODES.into_iter().find(same);
                vec![mode.unwrap_or_else(|| panic!("there is no mode {name}; modes are {MODES:?}"))]
            }
        }
    }

    /// Creates an executor for this mode.
    pub(crate) fn executor(self) -> Executor {
        let threads = match self {
            Self::Serial | Self::TinySerial => 1,
            Self::Chaos => 2,
            Self::Plain | Self::Tiny | Self::Limited => 4,
        };
        Executor::builder().threads(threads).build().unwrap()
    }

    /// Adds the mode's settings to a session's configuration.
    fn config(self, config: SessionConfig, seed: u64) -> SessionConfig {
        match self {
            Self::Plain | Self::Serial | Self::Limited => config,
            Self::Tiny | Self::TinySerial => config.with_batch_size(3),
            Self::Chaos => Settings {
                time_slice: Duration::ZERO,
                max_tasks_per_pipeline: NonZeroUsize::new(3),
                chaos: Some(Arc::new(
                    Chaos::new(seed).block_every(5).spurious_wakeups_every(4).split_batches(17),
                )),
                ..Settings::default()
            }
            .into_config(config.with_batch_size(if seed.is_multiple_of(2) { 3 } else { 8192 })),
        }
    }

    fn runtime(self) -> Arc<RuntimeEnv> {
        match self {
            Self::Limited => limited(1 << 20),
            Self::Chaos => limited(2 << 20),
            _ => Arc::new(RuntimeEnv::default()),
        }
    }

    /// Creates a session on `executor`.
    pub(crate) fn session(
        self,
        executor: &Executor,
        config: SessionConfig,
        seed: u64,
    ) -> SessionContext {
        let state = SessionStateBuilder::new()
            .with_config(self.config(config, seed))
            .with_runtime_env(self.runtime())
            .with_default_features()
            .with_gatework(executor)
            .build();
        SessionContext::new_with_state(state)
    }
}

fn limited(bytes: usize) -> Arc<RuntimeEnv> {
    RuntimeEnvBuilder::new().with_memory_limit(bytes, 1.0).build_arc().unwrap()
}

/// Sessions over the catalog of a reference, with other numbers of partitions and rows per batch.
/// Where their answers differ, SQL leaves the result open.
pub(crate) fn variants(reference: &SessionContext) -> impl Iterator<Item = SessionContext> {
    [(1, 8192), (3, 8192), (2, 2)].into_iter().map(|(partitions, rows)| {
        let mut state = reference.state();
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = partitions;
        options.set("datafusion.execution.batch_size", &rows.to_string()).unwrap();
        options.optimizer.prefer_hash_join = partitions != 3;
        SessionContext::new_with_state(state)
    })
}
