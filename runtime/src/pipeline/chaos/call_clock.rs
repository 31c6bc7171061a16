//! The time that one call keeps its worker.

use std::{
    fs,
    time::{Duration, Instant},
};

/// Measures a call: the time in which its thread ran or slept, without the time in which the thread
/// waited for a processor. (On systems other than Linux, that time is included.)
pub(super) struct CallClock {
    started: Instant,
    waited: Duration,
}

impl CallClock {
    pub(super) fn start() -> Self {
        Self { waited: waited_for_processor(), started: Instant::now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        let elapsed = self.started.elapsed();
        elapsed.saturating_sub(waited_for_processor().saturating_sub(self.waited))
    }
}

/// Returns the time for which this thread was runnable without running.
fn waited_for_processor() -> Duration {
    // "run time, wait time, number of slices", in nanoseconds.
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
