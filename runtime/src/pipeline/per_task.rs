//! Values made for each task of a pipeline, to be taken once by each.

use std::fmt;

use parking_lot::Mutex;

use super::OperatorContext;
use crate::{Error, Result};

/// One value per instance. An operator keeps its shared-state tokens here until its tasks come for
/// them; those that nobody takes are dropped with the operator, which ends their protocol.
pub struct PerTask<T>(Mutex<Vec<Option<T>>>);

impl<T> PerTask<T> {
    /// Slots filled with `values`, by instance.
    pub fn new(values: impl IntoIterator<Item = T>) -> Self {
        Self(Mutex::new(values.into_iter().map(Some).collect()))
    }

    /// Takes the value of the task of `setup`.
    ///
    /// # Errors
    /// If it is gone, or the pipeline has more or fewer tasks than there are values: rows for a task that does
    /// not exist would be lost.
    pub fn take(&self, setup: &OperatorContext) -> Result<T> {
        let mut values = self.0.lock();
        let (made, tasks) = (values.len(), setup.num_tasks());
        let value = values.get_mut(setup.task_index()).filter(|_| made == tasks);
        value.and_then(Option::take).ok_or_else(|| {
            Error::InvalidConfiguration(format!(
                "a shared state made for {made} tasks in a pipeline of {tasks}: make it for as many as \
                 the pipeline has, and use it in one pipeline only"
            ))
        })
    }
}

impl<T> fmt::Debug for PerTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.0.lock().len())
    }
}
