//! Conversions between the errors of Arrow and DataFusion and those of the runtime.

use std::{error::Error as StdError, fmt, sync::Arc};

use arrow::error::ArrowError;
use datafusion_common::DataFusionError;
use gatework_runtime::{Error, Result};

use crate::batch_bytes;

/// Conversion of a kernel's or an expression's error into the query's error.
pub trait ResultExt<T> {
    /// Returns the value, or the error that ends the query.
    ///
    /// # Errors
    /// The same error, as [`Error::Operator`] around a [`SharedDataFusionError`].
    fn query_err(self) -> Result<T>;
}

impl<T, E: Into<DataFusionError>> ResultExt<T> for std::result::Result<T, E> {
    fn query_err(self) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            // The error of a fallback node may wrap a runtime error.
            if let DataFusionError::External(inner) = error.find_root()
                && let Some(own) = inner.downcast_ref::<Error>()
            {
                return own.clone();
            }
            Error::operator(SharedDataFusionError(Arc::new(error)))
        })
    }
}

/// DataFusion error that can be cloned for every reader of a result.
#[derive(Debug, Clone)]
pub struct SharedDataFusionError(Arc<DataFusionError>);

impl SharedDataFusionError {
    /// Converts the error that ended a query to DataFusion's error. An error that came from
    /// DataFusion is returned in its original variant.
    pub fn to_datafusion(error: &Error) -> DataFusionError {
        match error {
            Error::Operator { source } => match source.downcast_ref::<Self>() {
                Some(shared) => {
                    copy(&shared.0).unwrap_or_else(|| DataFusionError::Shared(shared.0.clone()))
                }
                None => DataFusionError::External(Box::new(error.clone())),
            },
            Error::OutOfMemory { .. } => DataFusionError::ResourcesExhausted(error.to_string()),
            error => DataFusionError::External(Box::new(error.clone())),
        }
    }
}

/// Copies the error, so that it keeps its DataFusion variant. Returns `None` where the error owns
/// values that cannot be copied. (The query keeps the original for its other readers.)
fn copy(error: &DataFusionError) -> Option<DataFusionError> {
    use DataFusionError as E;
    Some(match error {
        E::ArrowError(error, trace) => E::ArrowError(Box::new(copy_arrow(error)?), trace.clone()),
        E::NotImplemented(text) => E::NotImplemented(text.clone()),
        E::Internal(text) => E::Internal(text.clone()),
        E::Plan(text) => E::Plan(text.clone()),
        E::Configuration(text) => E::Configuration(text.clone()),
        E::Execution(text) => E::Execution(text.clone()),
        E::ResourcesExhausted(text) => E::ResourcesExhausted(text.clone()),
        E::Context(text, error) => E::Context(text.clone(), Box::new(copy(error)?)),
        E::Shared(error) => return copy(error),
        _ => return None,
    })
}

fn copy_arrow(error: &ArrowError) -> Option<ArrowError> {
    use ArrowError as E;
    Some(match error {
        E::NotYetImplemented(text) => E::NotYetImplemented(text.clone()),
        E::CastError(text) => E::CastError(text.clone()),
        E::MemoryError(text) => E::MemoryError(text.clone()),
        E::ParseError(text) => E::ParseError(text.clone()),
        E::SchemaError(text) => E::SchemaError(text.clone()),
        E::ComputeError(text) => E::ComputeError(text.clone()),
        E::DivideByZero => E::DivideByZero,
        E::ArithmeticOverflow(text) => E::ArithmeticOverflow(text.clone()),
        E::CsvError(text) => E::CsvError(text.clone()),
        E::JsonError(text) => E::JsonError(text.clone()),
        E::IpcError(text) => E::IpcError(text.clone()),
        E::InvalidArgumentError(text) => E::InvalidArgumentError(text.clone()),
        E::ParquetError(text) => E::ParquetError(text.clone()),
        E::DictionaryKeyOverflowError => E::DictionaryKeyOverflowError,
        E::RunEndIndexOverflowError => E::RunEndIndexOverflowError,
        E::OffsetOverflowError(offset) => E::OffsetOverflowError(*offset),
        _ => return None,
    })
}

/// Returns true if `error` says that a result does not fit one array. Half of the rows may fit.
pub(crate) fn is_overflow(error: &Error) -> bool {
    let Error::Operator { source } = error else { return false };
    source
        .downcast_ref::<SharedDataFusionError>()
        .is_some_and(|failure| batch_bytes::is_overflow(&failure.0))
}

impl fmt::Display for SharedDataFusionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for SharedDataFusionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.0.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callers match on DataFusion's own variants.
    #[test]
    fn an_error_arrives_in_its_own_variant() {
        let arrive = |error: DataFusionError| {
            let failed: Result<()> = Err(error).query_err();
            let kept = failed.unwrap_err();
            SharedDataFusionError::to_datafusion(&kept.clone())
        };
        let execution = arrive(DataFusionError::Execution("bad".into()));
        assert!(matches!(execution, DataFusionError::Execution(text) if text == "bad"));
        let arrow = arrive(ArrowError::DivideByZero.into());
        let DataFusionError::ArrowError(arrow, _) = arrow else { panic!("{arrow:?}") };
        assert!(matches!(*arrow, ArrowError::DivideByZero));
        let shared = arrive(DataFusionError::Shared(Arc::new(DataFusionError::Plan("p".into()))));
        assert!(matches!(shared, DataFusionError::Plan(_)));
        let external = arrive(DataFusionError::External("theirs".into()));
        let DataFusionError::Shared(external) = external else { panic!("{external:?}") };
        assert!(matches!(*external, DataFusionError::External(_)));
    }
}
