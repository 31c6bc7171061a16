//! From the errors of Arrow and DataFusion to the runtime's.

use datafusion_common::DataFusionError;
use gatework_runtime::{Error, Result};

/// Turns a kernel's or an expression's error into the query's.
pub trait OrFail<T> {
    /// The value, or the error that ends the query.
    ///
    /// # Errors
    /// The same error, as [`Error::Operator`] around a `DataFusionError`.
    fn or_fail(self) -> Result<T>;
}

impl<T, E: Into<DataFusionError>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail(self) -> Result<T> {
        self.map_err(|error| Error::operator(error.into()))
    }
}
