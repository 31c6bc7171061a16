//! Errors of single files: each names its file, and a panic of a reader becomes such an error.
//!
//! Readers of other crates panic on some damaged files. The panic is caught at the call that opens,
//! plans or decodes a file, because that call knows the file.

use std::{any::Any, error::Error, panic::AssertUnwindSafe};

use arrow::error::ArrowError;
use datafusion::{
    error::{DataFusionError, Result},
    execution::object_store::ObjectStoreUrl,
    object_store::path::Path,
    parquet::errors::ParquetError,
};
use futures::FutureExt;
use tokio::task::JoinError;

/// Returns the name of the file as a user knows it: its path, preceded by the URL of its store if
/// it has one.
pub(super) fn name(store: &ObjectStoreUrl, location: &Path) -> String {
    let store = store.as_str();
    let store = if store == "file:///" { "/" } else { store };
    format!("{store}{location}")
}

/// Awaits `read`; an error, or the error that a panic is turned into, names `file`.
pub(super) async fn named_future<T>(
    file: &str,
    read: impl Future<Output = Result<T>>,
) -> Result<T> {
    outcome(file, AssertUnwindSafe(read).catch_unwind().await)
}

/// Awaits `read`, whose errors name `files` already; only a panic is turned into such an error.
pub(crate) async fn contain_panic<T>(
    files: &str,
    read: impl Future<Output = Result<T>>,
) -> Result<T> {
    match AssertUnwindSafe(read).catch_unwind().await {
        Ok(read) => read,
        Err(panic) => outcome(files, Err(panic)),
    }
}

/// Converts the result of a synchronous step as [`named_future`] does.
pub(super) fn outcome<T>(file: &str, read: Result<Result<T>, Box<dyn Any + Send>>) -> Result<T> {
    match read {
        Ok(read) => read.map_err(|error| with_name(file, error)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            tracing::debug!(file, text, "the reader of a file panicked");
            Err(failed(file))
        }
    }
}

/// Returns the error for a file whose reader panicked.
fn failed(file: &str) -> DataFusionError {
    damaged(file, "its reader failed")
}

/// Returns whether a thread of the I/O runtime panicked, for example while it allocated what a
/// damaged file asked for.
fn is_panic(error: &(dyn Error + 'static)) -> bool {
    let panicked = error.downcast_ref::<JoinError>().is_some_and(JoinError::is_panic);
    panicked || error.source().is_some_and(is_panic)
}

fn damaged(file: &str, reason: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Execution(format!("{file} is damaged: {reason}"))
}

/// Adds the name of the file to `error` unless it is there. Errors that are not the file's, such as
/// a denied reservation or a division by zero, stay unchanged.
fn with_name(file: &str, error: DataFusionError) -> DataFusionError {
    use DataFusionError as E;
    let unreadable =
        |reason: &dyn std::fmt::Display| E::Execution(format!("{file} cannot be read: {reason}"));
    match error.find_root() {
        E::Execution(reason) | E::Internal(reason) if reason.contains(file) => error,
        E::Execution(reason) | E::Internal(reason) => unreadable(reason),
        E::ParquetError(inner) => match inner.as_ref() {
            ParquetError::General(reason) | ParquetError::EOF(reason) => damaged(file, reason),
            ParquetError::External(reason) if is_panic(reason.as_ref()) => failed(file),
            ParquetError::External(reason) => unreadable(reason),
            other => unreadable(other),
        },
        E::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::DivideByZero
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::CastError(_)
            | ArrowError::ComputeError(_) => error.context(format!("while reading {file}")),
            ArrowError::ParquetError(reason) => damaged(file, reason),
            other => unreadable(other),
        },
        E::ObjectStore(inner) if is_panic(inner.as_ref()) => failed(file),
        E::ObjectStore(inner) => unreadable(inner),
        E::IoError(inner) => unreadable(inner),
        E::External(_) | E::ResourcesExhausted(_) => error,
        _ => error.context(format!("while reading {file}")),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use datafusion::object_store;

    use super::*;

    fn named<T>(file: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
        outcome(file, catch_unwind(AssertUnwindSafe(read)))
    }

    fn text(error: DataFusionError) -> String {
        named::<()>("/data/7.parquet", || Err(error))
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn errors_name_the_file_once() {
        let general = ParquetError::General("a page is cut off".into());
        let error = text(DataFusionError::ParquetError(Box::new(general)));
        assert_eq!(error, "Execution error: /data/7.parquet is damaged: a page is cut off");
        let error = text(DataFusionError::Execution("/data/7.parquet is bucket 3".into()));
        assert_eq!(error, "Execution error: /data/7.parquet is bucket 3");
        let divided = DataFusionError::from(ArrowError::DivideByZero).context("a / b");
        let error = named::<()>("/data/7.parquet", || Err(divided));
        let root = error.as_ref().map_err(DataFusionError::find_root);
        assert!(matches!(root, Err(DataFusionError::ArrowError(..))), "{error:?}");
    }

    #[tokio::test]
    async fn a_panic_of_the_io_runtime_is_an_error_of_the_file() {
        let panicked = || async {
            let read = tokio::task::spawn_blocking(|| panic!("capacity overflow"));
            object_store::Error::JoinError {
                source: read.await.map(|()| 0).expect_err("it panics"),
            }
        };
        let in_parquet = ParquetError::External(Box::new(panicked().await));
        for error in [
            DataFusionError::from(in_parquet),
            DataFusionError::ObjectStore(Box::new(panicked().await)),
        ] {
            let text = text(error);
            assert_eq!(text, "Execution error: /data/7.parquet is damaged: its reader failed");
        }
    }

    #[test]
    fn a_panic_is_an_error_of_the_file() {
        let nothing: &[u8] = &[];
        let error = named("/data/7.parquet", || Ok(nothing[nothing.len()])).map(drop);
        let text = error.map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(text, "Execution error: /data/7.parquet is damaged: its reader failed");
    }
}
