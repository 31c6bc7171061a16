//! Objects of a store as tables: `s3://bucket/people/*.parquet`.

use std::path::{Path, PathBuf};

use datafusion::common::DataFusionError;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::SessionState;
use datafusion::object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path as Location,
};
use futures::TryStreamExt;
use glob::{MatchOptions, Pattern};
use url::Url;

use super::files::{self, Format};
use super::{
    Opened, SAMPLE_BYTES, decompress, file_format, format_options, hive, is_text, table,
    with_columns,
};
use crate::error::Error;

/// As for files of this machine, `*` stands for a part of one name.
const PATTERN: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The URL that a path is, unless it is a path of this machine.
pub(super) fn url(path: &str) -> Option<Url> {
    let url = path.contains("://").then(|| Url::parse(path).ok()).flatten()?;
    (url.scheme() != "file").then_some(url)
}

/// Opens the objects below a URL, or those that its pattern matches.
pub(super) async fn find(state: &SessionState, path: &str, url: Url) -> Result<Opened, Error> {
    let failed = |error: DataFusionError| Error::store(path, &error);
    let listed = listing_url(path, url)?;
    let store = state.runtime_env().object_store(&listed).map_err(failed)?;
    let objects = list(state, store.as_ref(), &listed).await.map_err(failed)?;
    if objects.is_empty() {
        return Err(Error::failed(format!("no object matches '{path}'")));
    }
    let names: Vec<_> =
        objects.iter().map(|object| PathBuf::from(object.location.as_ref())).collect();
    let format = files::common_format(path, &names)?;
    let sample = match is_text(format) {
        true => Some(sample(store.as_ref(), &objects[0], format).await.map_err(failed)?),
        false => None,
    };
    let (options, note) = format_options(format, sample);
    let format = file_format(state, format, &options).map_err(failed)?;
    let schema = format.infer_schema(state, &store, &objects).await.map_err(failed)?;
    let schema = with_columns(path, schema)?;
    let mut partitioned = listed.is_collection() && names.iter().any(|name| is_partition(name));
    // Without a common extension, and with a pattern, the objects are listed by name.
    let extension = files::common_extension(&names).filter(|_| listed.get_glob().is_none());
    let mut urls = match extension.is_some() {
        true => vec![listed.clone()],
        false => urls(&listed, &objects).map_err(failed)?,
    };
    if let Some(url) = pattern_url(&listed, &names).map_err(failed)? {
        partitioned = hive::has_files(state, &url, objects.len()).await.map_err(failed)?;
        if partitioned {
            urls = vec![url];
        }
    }
    let table = table(state, format, urls, extension, schema, partitioned).await.map_err(failed)?;
    Ok(Opened { table, note })
}

/// The URL to list, with its pattern split off. A URL without an extension is a folder.
fn listing_url(path: &str, mut url: Url) -> Result<ListingTableUrl, Error> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::failed(format!("'{path}' is no address of objects: {error}"))
    };
    // A URL cannot have `?` in a pattern either.
    if url.query().is_some() {
        return Err(wrong(&"queries behind '?' are not supported"));
    }
    let location = Location::from_url_path(url.path()).map_err(|error| wrong(&error))?;
    let text = location.as_ref().to_owned();
    if let Some(first) = text.find(['*', '[']) {
        let begin = text[..first].rfind('/').map_or(0, |slash| slash + 1);
        let pattern = Pattern::new(&text[begin..]).map_err(|error| wrong(&error))?;
        url.set_path(&format!("/{}", &text[..begin]));
        return ListingTableUrl::try_new(url, Some(pattern)).map_err(|error| wrong(&error));
    }
    let is_object = Path::new(&text).extension().is_some();
    if !is_object && !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    ListingTableUrl::try_new(url, None).map_err(|error| wrong(&error))
}

/// The URL of the objects that a pattern matches, if they have partition columns.
fn pattern_url(
    listed: &ListingTableUrl,
    names: &[PathBuf],
) -> Result<Option<ListingTableUrl>, DataFusionError> {
    let Some(glob) = listed.get_glob() else { return Ok(None) };
    let pattern = format!("{}/{glob}", listed.prefix());
    let Some((folder, pattern)) = hive::split(pattern.trim_start_matches('/'), names) else {
        return Ok(None);
    };
    let mut url = listed.get_url().clone();
    url.set_path(&format!("/{}/", folder.display()));
    Ok(Some(ListingTableUrl::try_new(url, None)?.with_glob(&pattern)?))
}

/// The objects with rows, sorted by name.
async fn list(
    state: &SessionState,
    store: &dyn ObjectStore,
    url: &ListingTableUrl,
) -> Result<Vec<ObjectMeta>, DataFusionError> {
    let mut objects: Vec<ObjectMeta> = match (url.get_glob(), url.is_collection()) {
        (Some(pattern), _) => {
            let mut objects: Vec<ObjectMeta> = store.list(Some(url.prefix())).try_collect().await?;
            let begin = url.prefix().as_ref().len();
            let below = |object: &ObjectMeta| {
                object.location.as_ref()[begin..].trim_start_matches('/').to_owned()
            };
            objects.retain(|object| pattern.matches_with(&below(object), PATTERN));
            objects
        }
        (None, true) => url.list_all_files(state, store, "").await?.try_collect().await?,
        (None, false) => vec![store.head(url.prefix()).await?],
    };
    objects.retain(|object| object.size > 0);
    objects.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(objects)
}

fn is_partition(name: &Path) -> bool {
    name.parent().is_some_and(|folder| folder.to_string_lossy().contains('='))
}

/// One URL per object.
fn urls(
    listed: &ListingTableUrl,
    objects: &[ObjectMeta],
) -> Result<Vec<ListingTableUrl>, DataFusionError> {
    let url = |object: &ObjectMeta| {
        let mut url = listed.get_url().clone();
        url.set_path(object.location.as_ref());
        ListingTableUrl::try_new(url, None)
    };
    objects.iter().map(url).collect()
}

/// The decompressed beginning of an object, and whether it is the whole object.
async fn sample(
    store: &dyn ObjectStore,
    object: &ObjectMeta,
    format: Format,
) -> Result<(Vec<u8>, bool), DataFusionError> {
    let range = GetRange::Bounded(0..SAMPLE_BYTES.min(object.size));
    let options = GetOptions { range: Some(range), ..GetOptions::default() };
    let bytes = store.get_opts(&object.location, options).await?.bytes().await?;
    let whole = bytes.len() as u64 == object.size;
    decompress(std::io::Cursor::new(bytes), format.compression, whole)
}

#[cfg(test)]
mod tests {
    use super::{listing_url, url};

    fn listed(path: &str) -> (String, Option<String>) {
        let listed = listing_url(path, url(path).unwrap()).unwrap();
        (listed.as_str().to_owned(), listed.get_glob().as_ref().map(|glob| glob.as_str().into()))
    }

    #[test]
    fn patterns_are_split_off() {
        let parts = |url: &str, glob: Option<&str>| (url.to_owned(), glob.map(str::to_owned));
        assert_eq!(listed("s3://b/a/*.csv"), parts("s3://b/a/", Some("*.csv")));
        assert_eq!(listed("s3://b/*/x[1].csv"), parts("s3://b/", Some("*/x[1].csv")));
        assert_eq!(listed("s3://b/a.csv"), parts("s3://b/a.csv", None));
        assert_eq!(listed("s3://b/folder"), parts("s3://b/folder/", None));
        assert_eq!(listed("s3://b/x=1/"), parts("s3://b/x=1/", None));
    }

    #[test]
    fn paths_of_this_machine_are_no_urls() {
        assert!(url("a.csv").is_none() && url("/a/b").is_none() && url("file:///a").is_none());
    }
}
