//! The lower layer: opaque runnables on a work-stealing queue.
//!
//! A [`Runnable`] runs until it yields, blocks on gates, or is done. The scheduler registers a
//! blocked runnable's waker on its gates *after* the runnable has returned. Therefore a runnable
//! handles neither wakers nor threads. See [`task`] for the states and `sleep` for how workers
//! park.

mod admission;
mod builder;
mod executor;
mod groups;
mod host;
mod queue;
mod registry;
mod resource_group;
mod seeded;
mod sleep;
pub mod task;
mod threads;
mod worker;

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;

pub use builder::ExecutorBuilder;
pub use executor::Executor;
pub use resource_group::{GroupLimits, ResourceGroup};
pub use seeded::{ScheduleTrace, SplitMix64};
pub use sleep::{ParkToken, Sleep};
pub use task::{Gates, RunResult, Runnable, TaskGroup, TaskHandle, TaskState, WakeState};

pub(crate) use registry::{Registry, ShutdownTarget};
pub(crate) use task::{OnIdle, TaskCounters};
