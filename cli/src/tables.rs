//! Files, folders and globs as tables of a session.
//!
//! Paths are resolved before DataFusion sees them. Only then can an error name the file that is
//! missing, empty, corrupt or of another format. `files` finds the files; this module infers their
//! schema and creates the table.

mod files;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::error::{Error, one_line};
use crate::large_stack;
use files::{Format, Kind, Source};

/// `--table name=path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableArg {
    pub(crate) name: String,
    pub(crate) path: String,
}

impl FromStr for TableArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.to_owned() })
            }
            _ => Err("a table is written NAME=PATH".to_owned()),
        }
    }
}

/// Registers tables in a session, each within `limit`.
pub(crate) async fn register_all(
    session: &SessionContext,
    tables: &[TableArg],
    limit: Option<Duration>,
) -> Result<(), Error> {
    for TableArg { name, path } in tables {
        let TableReference::Bare { table } = TableReference::parse_str(name) else {
            return Err(Error::failed(format!(
                "'{name}' is not a valid table name; use letters, digits and '_'"
            )));
        };
        let reference = TableReference::Bare { table };
        if session.table_exist(reference.clone()).unwrap_or(false) {
            return Err(Error::failed(format!(
                "two tables are named '{name}'; rename one of them"
            )));
        }
        let table = open(session, path, limit).await?;
        session.register_table(reference, table).map_err(|error| Error::query(&error, session))?;
    }
    Ok(())
}

/// Opens a table over the files of a path, on a thread of its own, within `limit`.
pub(crate) async fn open(
    session: &SessionContext,
    path: &str,
    limit: Option<Duration>,
) -> Result<Arc<dyn TableProvider>, Error> {
    let (session, owned) = (session.clone(), path.to_owned());
    let opening = async move { find(&session, &owned).await };
    large_stack::run(&format!("opening '{path}'"), limit, opening).await
}

async fn find(session: &SessionContext, path: &str) -> Result<Arc<dyn TableProvider>, Error> {
    let source = Source::find(path)?;
    let unreadable = |error: DataFusionError| unreadable(path, &error);
    let state = session.state();
    let format = file_format(&state, source.format).map_err(unreadable)?;
    let schema = schema(&state, &source, &format).await?;
    if schema.fields().is_empty() {
        return Err(Error::failed(format!("'{path}' has no columns")));
    }
    let extension = source.extension.clone().unwrap_or_default();
    let options = ListingOptions::new(format).with_file_extension(extension);
    let config = ListingTableConfig::new_with_multi_paths(source.urls()?)
        .with_listing_options(options)
        .with_schema(schema);
    let config = match source.partitioned {
        true => config.infer_partitions_from_path(&state).await.map_err(unreadable)?,
        false => config,
    };
    let cache = state.runtime_env().cache_manager.get_file_statistic_cache();
    let table = ListingTable::try_new(config).map_err(unreadable)?.with_cache(cache);
    Ok(Arc::new(table))
}

/// The common schema of all files. The error names the first unreadable file.
async fn schema(
    state: &SessionState,
    source: &Source,
    format: &Arc<dyn FileFormat>,
) -> Result<SchemaRef, Error> {
    let urls = source.file_urls()?;
    let error = match infer(state, format, &urls).await {
        Ok(schema) => return Ok(schema),
        Err(error) => error,
    };
    for (url, file) in urls.iter().zip(&source.files) {
        if let Err(error) = infer(state, format, std::slice::from_ref(url)).await {
            let error = unreadable(&file.display().to_string(), &error);
            return Err(if source.format.kind == Kind::Json {
                error.and("JSON files must have one object per line")
            } else {
                error
            });
        }
    }
    Err(Error::failed(format!(
        "the files of '{}' have incompatible schemas: {}",
        source.path,
        one_line(&error.message())
    )))
}

async fn infer(
    state: &SessionState,
    format: &Arc<dyn FileFormat>,
    urls: &[ListingTableUrl],
) -> Result<SchemaRef, DataFusionError> {
    let mut objects = Vec::new();
    let Some(first) = urls.first() else {
        return Err(DataFusionError::Plan("there are no files".to_owned()));
    };
    let store = state.runtime_env().object_store(first)?;
    for url in urls {
        let mut found: Vec<_> =
            url.list_all_files(state, store.as_ref(), "").await?.try_collect().await?;
        // Other systems write empty files into folders; they have no schema.
        found.retain(|object| object.size > 0);
        objects.append(&mut found);
    }
    format.infer_schema(state, &store, &objects).await
}

fn file_format(
    state: &SessionState,
    format: Format,
) -> Result<Arc<dyn FileFormat>, DataFusionError> {
    let name = format.kind.name();
    let factory = state.get_file_format_factory(name).ok_or_else(|| {
        DataFusionError::Configuration(format!("this build cannot read {name} files"))
    })?;
    let mut options = HashMap::new();
    if let Some(compression) = format.compression {
        options.insert("format.compression".to_owned(), compression.to_owned());
    }
    if let Some(delimiter) = format.delimiter {
        options.insert("format.delimiter".to_owned(), delimiter.to_owned());
    }
    factory.create(state, &options)
}

fn unreadable(path: &str, error: &DataFusionError) -> Error {
    let reason = one_line(&error.find_root().message());
    Error::failed(format!(
        "'{path}' cannot be read; it may be corrupt or of another format: {reason}"
    ))
}

#[cfg(test)]
mod tests;
