//! Files, folders and globs as tables of a session.
//!
//! Paths are resolved before DataFusion sees them. Only then can an error name the file that is
//! missing, empty, corrupt or of another format. `files` finds the files; this module infers their
//! schema and creates the table.

pub(crate) mod by_path;
mod dialect;
pub(crate) mod external;
mod files;
mod hive;
mod remote;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::error::{Error, one_line};
use crate::large_stack;
use dialect::Dialect;
use files::{Format, Kind, Source};

/// Bytes of a file from which its dialect is detected.
const SAMPLE_BYTES: u64 = 64 << 10;

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
        let Opened { table, note } = open(session, path, limit).await?;
        if let Some(note) = note {
            print_note(path, &note);
        }
        session.register_table(reference, table).map_err(|error| Error::query(&error, session))?;
    }
    Ok(())
}

/// A table over files.
pub(crate) struct Opened {
    pub(crate) table: Arc<dyn TableProvider>,
    /// How its files differ from what their name promises.
    pub(crate) note: Option<String>,
}

/// Opens a table over the files of a path, on a thread of its own, within `limit`.
pub(crate) async fn open(
    session: &SessionContext,
    path: &str,
    limit: Option<Duration>,
) -> Result<Opened, Error> {
    let (state, owned) = (session.state(), path.to_owned());
    let opening = async move { find(&state, &owned).await };
    large_stack::run(&format!("opening '{path}'"), limit, opening).await
}

/// Tells once how the files of a path are read, on standard error.
fn print_note(path: &str, note: &str) {
    static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let note = format!("note: '{path}': {note}");
    if NOTED.lock().unwrap_or_else(PoisonError::into_inner).insert(note.clone()) {
        // The note is lost if standard error is closed.
        let _ = writeln!(io::stderr(), "{note}");
    }
}

async fn find(state: &SessionState, path: &str) -> Result<Opened, Error> {
    if let Some(url) = remote::url(path) {
        return remote::find(state, path, url).await;
    }
    let source = Source::find(path)?;
    let unreadable = |error: DataFusionError| unreadable(path, &error);
    let sample = match source.files.first() {
        Some(file) if is_text(source.format) => {
            let sample = File::open(file).map_err(DataFusionError::from);
            let sample = sample.and_then(|file| decompress(file, source.format.compression, true));
            Some(sample.map_err(unreadable)?)
        }
        _ => None,
    };
    let (options, note) = format_options(source.format, sample);
    let format = file_format(state, source.format, &options).map_err(unreadable)?;
    let schema = with_columns(path, schema(state, &source, &format).await?)?;
    let (mut urls, mut partitioned) = (source.urls()?, source.partitioned);
    if let Some(url) = source.pattern_url()?
        && hive::has_files(state, &url, source.files.len()).await.map_err(unreadable)?
    {
        (urls, partitioned) = (vec![url], true);
    }
    let table = table(state, format, urls, source.extension, schema, partitioned).await;
    Ok(Opened { table: table.map_err(unreadable)?, note })
}

/// The schema of the files of a path, which must have columns.
fn with_columns(path: &str, schema: SchemaRef) -> Result<SchemaRef, Error> {
    match schema.fields().is_empty() {
        true => Err(Error::failed(format!("'{path}' has no columns"))),
        false => Ok(schema),
    }
}

/// A table over the files of `urls` that end in `extension`.
async fn table(
    state: &SessionState,
    format: Arc<dyn FileFormat>,
    urls: Vec<ListingTableUrl>,
    extension: Option<String>,
    schema: SchemaRef,
    partitioned: bool,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let options = ListingOptions::new(format).with_file_extension(extension.unwrap_or_default());
    let config = ListingTableConfig::new_with_multi_paths(urls)
        .with_listing_options(options)
        .with_schema(schema);
    let config = match partitioned {
        true => config.infer_partitions_from_path(state).await?,
        false => config,
    };
    let cache = state.runtime_env().cache_manager.get_file_statistic_cache();
    Ok(Arc::new(ListingTable::try_new(config)?.with_cache(cache)))
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
                error.and("JSON files must have one object per line, or one array of objects")
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
    options: &HashMap<String, String>,
) -> Result<Arc<dyn FileFormat>, DataFusionError> {
    let name = format.kind.name();
    let factory = state.get_file_format_factory(name).ok_or_else(|| {
        DataFusionError::Configuration(format!("this build cannot read {name} files"))
    })?;
    factory.create(state, options)
}

/// Whether a sample of the files tells how they are written.
fn is_text(format: Format) -> bool {
    matches!(format.kind, Kind::Csv | Kind::Json)
}

/// The options of the files' format, and a note if they are not what the files' name promises.
/// `sample` is the beginning of a file, and whether that is the whole file.
fn format_options(
    format: Format,
    sample: Option<(Vec<u8>, bool)>,
) -> (HashMap<String, String>, Option<String>) {
    let Format { kind, compression, delimiter } = format;
    let mut options = HashMap::new();
    let mut set = |name: &str, value: String| options.insert(format!("format.{name}"), value);
    if let Some(compression) = compression {
        set("compression", compression.to_owned());
    }
    let mut note = None;
    match (kind, sample) {
        (Kind::Csv, Some((sample, whole))) => {
            let dialect = Dialect::detect(&sample, whole, delimiter);
            set("delimiter", char::from(dialect.delimiter).to_string());
            if !dialect.has_header {
                set("has_header", "false".to_owned());
            }
            note = dialect.note(delimiter.unwrap_or(b','));
        }
        (Kind::Json, Some((sample, _))) if dialect::is_json_array(&sample) => {
            set("newline_delimited", "false".to_owned());
        }
        _ => {}
    }
    (options, note)
}

/// The decompressed beginning of a file, and whether it is the whole file. `complete` tells whether
/// `content` is all of the file.
fn decompress(
    content: impl Read + Send + 'static,
    compression: Option<&str>,
    complete: bool,
) -> Result<(Vec<u8>, bool), DataFusionError> {
    let compression = match compression {
        Some(name) => FileCompressionType::from_str(name)?,
        None => FileCompressionType::UNCOMPRESSED,
    };
    let content = compression.convert_read(content)?;
    let mut sample = Vec::new();
    let read = content.take(SAMPLE_BYTES).read_to_end(&mut sample);
    // What comes before the end of a cut stream is a sample as well.
    if complete || sample.is_empty() {
        read?;
    }
    let whole = complete && (sample.len() as u64) < SAMPLE_BYTES;
    Ok((sample, whole))
}

fn unreadable(path: &str, error: &DataFusionError) -> Error {
    let reason = one_line(&error.find_root().message());
    Error::failed(format!(
        "'{path}' cannot be read; it may be corrupt or of another format: {reason}"
    ))
}

#[cfg(test)]
mod tests;
