//! Errors of commands, each with one sentence for the user that says what to change.

pub(crate) mod suggestion;
mod syntax;

use std::path::Path;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::prelude::SessionContext;
use gatework::stages::cluster::failed_worker;

use crate::signals::Signal;
use crate::sql::script::Text;
use crate::store::objects;

/// The unsuccessful end of a command.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command failed; the sentence says why.
    Failed(String),
    /// A signal ended the command, such as Ctrl-C.
    Ended(Signal),
    /// The reader of standard output has closed it, as `head` does. Not reported as an error.
    OutputClosed,
}

impl Error {
    /// A failure with this sentence.
    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed(sentence.into())
    }

    /// A query that could not be planned or run in this session.
    pub(crate) fn query(error: &DataFusionError, session: &SessionContext) -> Self {
        Self::Failed(explain(error, session))
    }

    /// A statement of `text` that could not be planned: points to the place, if it is known.
    pub(crate) fn in_text(
        error: &DataFusionError,
        text: Option<&Text>,
        session: &SessionContext,
    ) -> Self {
        let sentence = explain(error, session);
        let start = error.diagnostic().and_then(|diagnostic| Some(diagnostic.span?.start));
        match (text, start) {
            (Some(text), Some(start)) if start.line > 0 && start.column > 0 => {
                let place = (start.line as usize, start.column as usize);
                Self::Failed(format!("{sentence}\n{}", syntax::point(text, place)))
            }
            _ => Self::Failed(sentence),
        }
    }

    /// Objects that a store does not give; `path` is their URL.
    pub(crate) fn store(path: &str, error: &DataFusionError) -> Self {
        let reason = match error.find_root() {
            DataFusionError::ObjectStore(error) => objects::explain(error),
            root => one_line(&root.message()),
        };
        Self::Failed(format!("'{path}' cannot be read: {reason}"))
    }

    /// SQL that cannot be parsed: points to the place.
    pub(crate) fn syntax(error: &DataFusionError, text: &Text, session: &SessionContext) -> Self {
        match error.find_root() {
            DataFusionError::SQL(parser_error, _) => {
                Self::Failed(syntax::explain(&parser_error.to_string(), text))
            }
            _ => Self::query(error, session),
        }
    }

    /// A failure of a statement in `file`.
    pub(crate) fn within(self, file: &str) -> Self {
        match self {
            Self::Failed(sentence) => Self::Failed(format!("{file}: {sentence}")),
            other => other,
        }
    }

    /// Appends `more` to the sentence of a failure.
    pub(crate) fn and(self, more: &str) -> Self {
        match self {
            Self::Failed(sentence) => Self::Failed(format!("{sentence}; {more}")),
            other => other,
        }
    }

    /// The message to the user, if there is one.
    pub(crate) fn sentence(&self) -> Option<String> {
        match self {
            Self::Failed(sentence) => Some(format!("error: {sentence}")),
            Self::Ended(signal) => Some(signal.sentence().to_owned()),
            Self::OutputClosed => None,
        }
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            // The shells' code for a process that a signal ended.
            Self::Ended(signal) => 128 + signal.number(),
            Self::OutputClosed => 0,
        }
    }
}

/// Describes in one line what failed in a query, and on which worker.
fn explain(error: &DataFusionError, session: &SessionContext) -> String {
    let reason = reason(error, session);
    match failed_worker(error) {
        Some(worker) if !reason.starts_with(worker) => format!("{worker}: {reason}"),
        _ => reason,
    }
}

fn reason(error: &DataFusionError, session: &SessionContext) -> String {
    let root = error.find_root();
    let message = one_line(&root.message());
    match root {
        DataFusionError::SQL(parser_error, _) => {
            let reason = one_line(&parser_error.to_string());
            format!("the SQL cannot be parsed: {}", reason.trim_start_matches("sql parser error: "))
        }
        DataFusionError::Plan(_) => match (missing_table(&message), missing_function(&message)) {
            (Some(name), _) => no_table(name, session),
            (_, Some(name)) => no_function(name, session),
            _ => no_signature(&message).or_else(|| file_reader(&message)).unwrap_or(message),
        },
        DataFusionError::SchemaError(schema_error, _) => match schema_error.as_ref() {
            SchemaError::FieldNotFound { .. } => {
                message.replacen("No field named", "there is no column", 1)
            }
            _ => message,
        },
        DataFusionError::ArrowError(arrow_error, _) => explain_arrow(arrow_error),
        DataFusionError::ParquetError(_) => {
            format!("a Parquet file cannot be read; it is corrupt or truncated: {message}")
        }
        DataFusionError::ObjectStore(error) => objects::explain(error),
        DataFusionError::ResourcesExhausted(_) => format!("out of resources: {message}"),
        DataFusionError::Internal(_) => format!("this is a bug in the query engine: {message}"),
        _ => message,
    }
}

fn explain_arrow(error: &ArrowError) -> String {
    match error {
        ArrowError::DivideByZero => {
            "the query divides by zero; guard the divisor, for example with NULLIF(divisor, 0)"
                .to_owned()
        }
        ArrowError::ArithmeticOverflow(what) => {
            format!(
                "a number grows too large for its type; CAST to a wider one: {}",
                one_line(what)
            )
        }
        ArrowError::CastError(what) => {
            format!("a value cannot be converted; TRY_CAST gives NULL instead: {}", one_line(what))
        }
        ArrowError::ParquetError(what) => {
            format!("a Parquet file cannot be read; it is corrupt or truncated: {}", one_line(what))
        }
        other => one_line(&other.to_string()),
    }
}

/// The name in "table 'datafusion.public.name' not found".
fn missing_table(message: &str) -> Option<&str> {
    let name = message.strip_prefix("table '")?.strip_suffix("' not found")?;
    let prefixes = ["datafusion.public.", "datafusion."];
    Some(prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name))
}

/// What a function was called with, for "No function matches the given name and argument types".
fn no_signature(message: &str) -> Option<String> {
    let (reason, rest) =
        message.split_once("No function matches the given name and argument types '")?;
    let (call, rest) = rest.split_once("'.")?;
    let (_, candidates) = rest.split_once("Candidate functions: ")?;
    if candidates.contains("UserDefined") || candidates.contains("user-defined") {
        let reason = reason.rsplit("Error during planning: ").next().unwrap_or(reason);
        return Some(format!("{call} is not possible: {}", reason.trim().trim_end_matches('.')));
    }
    let candidates = candidates.replace(") ", "), ");
    Some(format!("there is no function {call}, only {candidates}; CAST the arguments"))
}

/// A table function that another engine has for reading files.
fn file_reader(message: &str) -> Option<String> {
    let name = message.strip_prefix("table function '")?.strip_suffix("' not found")?;
    let reads_files = name.starts_with("read_") || name.ends_with("_scan");
    reads_files.then(|| format!("there is no table function '{name}'; write FROM 'FILE' instead"))
}

/// The name in "Invalid function 'name'.".
fn missing_function(message: &str) -> Option<&str> {
    message.strip_prefix("Invalid function '")?.split_once('\'').map(|(name, _)| name)
}

fn no_function(name: &str, session: &SessionContext) -> String {
    match suggestion::function(name, &session.state()) {
        Some(known) => format!("there is no function '{name}'; did you mean '{known}'?"),
        None => format!("there is no function '{name}'; SHOW FUNCTIONS lists them"),
    }
}

fn no_table(name: &str, session: &SessionContext) -> String {
    if Path::new(name).is_file() {
        return format!("there is no table '{name}'; to read the file, quote it: FROM '{name}'");
    }
    let schema = session.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
    let mut known = schema.map(|schema| schema.table_names()).unwrap_or_default();
    known.sort();
    match known.is_empty() {
        true => format!("there is no table '{name}'; name one with --table {name}=PATH"),
        false => format!(
            "there is no table '{name}'; known tables: {}; add one with --table {name}=PATH",
            known.join(", ")
        ),
    }
}

/// Joins the lines of a message, and removes its backtrace.
pub(crate) fn one_line(message: &str) -> String {
    let message = message.split("\n\nbacktrace:").next().unwrap_or(message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
