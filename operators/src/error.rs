//! From the errors of Arrow and DataFusion to the runtime's, and back.

use std::{error::Error as StdError, fmt, sync::Arc};

use datafusion_common::DataFusionError;
use gatework_runtime::{Error, Result};

/// Turns a kernel's or an expression's error into the query's.
pub trait OrFail<T> {
    /// The value, or the error that ends the query.
    ///
    /// # Errors
    /// The same error, as [`Error::Operator`] around a [`Failure`].
    fn or_fail(self) -> Result<T>;
}

impl<T, E: Into<DataFusionError>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail(self) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            // What comes back from a foreign node may be the runtime's own.
            if let DataFusionError::External(inner) = error.find_root()
                && let Some(own) = inner.downcast_ref::<Error>()
            {
                return own.clone();
            }
            Error::operator(Failure(Arc::new(error)))
        })
    }
}

/// A DataFusion error that every reader of a result can be given.
#[derive(Debug, Clone)]
pub struct Failure(Arc<DataFusionError>);

impl Failure {
    /// DataFusion's error for the error that ended a query: its own where it came from there.
    pub fn to_datafusion(error: &Error) -> DataFusionError {
        match error {
            Error::Operator { source } => match source.downcast_ref::<Self>() {
                Some(failure) => DataFusionError::Shared(failure.0.clone()),
                None => DataFusionError::External(Box::new(error.clone())),
            },
            Error::OutOfMemory { .. } => DataFusionError::ResourcesExhausted(error.to_string()),
            error => DataFusionError::External(Box::new(error.clone())),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.0.as_ref())
    }
}
