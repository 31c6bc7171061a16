//! Values made for each task of a pipeline, to be taken once by each.

use std::fmt;

use parking_lot::Mutex;

use crate::{Error, Result};

/// One value per instance. An operator keeps its shared-state tokens here until its tasks come for
/// them; those that nobody takes are dropped with the operator, which ends their protocol.
pub struct Slots<T>(Mutex<Vec<Option<T>>>);

impl<T> Slots<T> {
    /// Slots filled with `values`, by instance.
    pub fn new(values: impl IntoIterator<Item = T>) -> Self {
        Self(Mutex::new(values.into_iter().map(Some).collect()))
    }

    /// Takes the value of `instance`.
    ///
    /// # Errors
    /// If there is none: the pipeline has more tasks than its shared state was made for.
    pub fn take(&self, instance: usize) -> Result<T> {
        self.0.lock().get_mut(instance).and_then(Option::take).ok_or_else(|| {
            Error::Setup(format!(
                "no shared state for instance {instance}: make the state for as many instances as \
                 the pipeline has, and use it in one pipeline only"
            ))
        })
    }
}

impl<T> fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots", self.0.lock().len())
    }
}
