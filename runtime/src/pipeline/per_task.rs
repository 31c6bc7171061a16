//! One value per task of a pipeline; each task takes its own once.

use std::fmt;

use parking_lot::Mutex;

use super::OperatorContext;
use crate::{Error, Result};

/// One value per task. An operator stores its shared-state tokens in it until its tasks take them.
/// Tokens that no task takes are dropped with the operator, which ends their protocol.
pub struct PerTask<T>(Mutex<Vec<Option<T>>>);

impl<T> PerTask<T> {
    /// Creates the container from one value per task, in order of `task_index`.
    pub fn new(values: impl IntoIterator<Item = T>) -> Self {
        Self(Mutex::new(values.into_iter().map(Some).collect()))
    }

    /// Takes the value of the task of `context`.
    ///
    /// # Errors
    /// If the value was taken already, or the pipeline's number of tasks differs from the number of
    /// values. In the latter case, rows for a task that does not exist would be lost.
    pub fn take(&self, context: &OperatorContext) -> Result<T> {
        let mut values = self.0.lock();
        let (made, tasks) = (values.len(), context.num_tasks());
        let value = values.get_mut(context.task_index()).filter(|_| made == tasks);
        value.and_then(Option::take).ok_or_else(|| {
            Error::InvalidConfiguration(format!(
                "a shared state made for {made} tasks in a pipeline of {tasks}: make it for the \
                 pipeline's number of tasks, and use it in one pipeline only"
            ))
        })
    }
}

impl<T> fmt::Debug for PerTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.0.lock().len())
    }
}
