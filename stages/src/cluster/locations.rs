//! What a worker may read. A worker reads with its own rights on behalf of its clients.

use std::{fmt, fs, io, ops::Range, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    datasource::{physical_plan::FileScanConfig, sink::DataSinkExec, source::DataSourceExec},
    error::{DataFusionError, Result},
    execution::{
        object_store::ObjectStoreRegistry,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    object_store::{
        self, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
        ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
        path::Path,
    },
    physical_plan::ExecutionPlan,
};
use futures::{StreamExt, stream, stream::BoxStream};
use url::Url;

/// Files, folders and object stores that received plans may name. A worker reads nothing else,
/// whatever a plan says, and writes nothing.
///
/// ```
/// use gatework_stages::cluster::AllowedLocations;
///
/// let here = std::env::temp_dir();
/// let locations = AllowedLocations::deny_all().with_path(&here)?.with_url("s3://sales/2026/")?;
/// assert!(locations.to_string().contains("s3://sales/2026/"));
/// assert!(AllowedLocations::deny_all().with_path("/no/such/folder").is_err());
/// # Ok::<_, datafusion::error::DataFusionError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct AllowedLocations {
    /// Absolute paths without symbolic links.
    paths: Vec<PathBuf>,
    urls: Vec<Url>,
    allow_all: bool,
}

impl AllowedLocations {
    /// Allows nothing: for workers whose queries only read rows of other workers.
    pub fn deny_all() -> Self {
        Self::default()
    }

    /// Allows whatever the process may read: for trusted clients.
    pub fn allow_all() -> Self {
        Self { allow_all: true, ..Self::default() }
    }

    /// Allows a file, or a folder and everything below it. A link that leads outside is not
    /// followed.
    ///
    /// # Errors
    /// If the path does not exist.
    pub fn with_path(mut self, path: impl AsRef<std::path::Path>) -> Result<Self> {
        let path = path.as_ref();
        let absolute = fs::canonicalize(path).map_err(|error| {
            DataFusionError::Configuration(format!("'{}': {error}", path.display()))
        })?;
        self.paths.push(absolute);
        Ok(self)
    }

    /// Allows the object at this URL, or everything below it, such as `s3://bucket/folder`.
    ///
    /// # Errors
    /// If `url` has no host, or names a local file.
    pub fn with_url(mut self, url: &str) -> Result<Self> {
        let parsed = Url::parse(url).ok().filter(Url::has_host);
        let Some(url) = parsed.filter(|url| url.scheme() != "file") else {
            let what = format!("'{url}' is not the URL of an object store: use scheme://host/path");
            return Err(DataFusionError::Configuration(what));
        };
        self.urls.push(url);
        Ok(self)
    }

    /// Returns `runtime` with guarded object stores, for received plans.
    pub(super) fn wrap_runtime(&self, runtime: &RuntimeEnv) -> Result<Arc<RuntimeEnv>> {
        if self.allow_all {
            return RuntimeEnvBuilder::from_runtime_env(runtime).build_arc();
        }
        let registry = GuardedRegistry {
            inner: runtime.object_store_registry.clone(),
            locations: Arc::new(self.clone()),
        };
        RuntimeEnvBuilder::from_runtime_env(runtime)
            .with_object_store_registry(Arc::new(registry))
            .build_arc()
    }

    /// Refuses a plan that reads anything else, or writes.
    pub(super) fn check(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
        plan.apply(|node| {
            if node.is::<DataSinkExec>() {
                return Err(DataFusionError::Plan("a worker does not write".into()));
            }
            let source = node.downcast_ref::<DataSourceExec>().map(DataSourceExec::data_source);
            let scan = source.and_then(|source| source.downcast_ref::<FileScanConfig>());
            for file in
                scan.iter().flat_map(|scan| &scan.file_groups).flat_map(|group| group.iter())
            {
                let Some(scan) = scan else { continue };
                self.check_object(scan.object_store_url.as_ref(), &file.object_meta.location)
                    .map_err(DataFusionError::Plan)?;
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }

    /// Checks that an object of a store may be read; fails with the reason.
    fn check_object(&self, store: &Url, object: &Path) -> std::result::Result<(), String> {
        if self.allow_all {
            return Ok(());
        }
        let refused =
            |what: &str| Err(format!("this worker may not read {what}; it may read {self}"));
        if store.scheme() != "file" {
            let allowed = self.urls.iter().any(|allowed| contains(store, object, allowed));
            let store = store.as_str().trim_end_matches('/');
            return if allowed { Ok(()) } else { refused(&format!("{store}/{object}")) };
        }
        let named = local_path(object);
        // The error must not reveal where a link leads.
        let refused = || refused(&named.display().to_string());
        match fs::canonicalize(&named) {
            Ok(path) if self.allows(&path) => Ok(()),
            // The file does not exist: the read itself reports that.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.allows(&named) => Ok(()),
            _ => refused(),
        }
    }

    /// Whether a path without links may be read.
    fn allows(&self, path: &std::path::Path) -> bool {
        self.paths.iter().any(|allowed| path.starts_with(allowed))
    }

    /// Checks that an open file may be read. Its name may lead elsewhere now than when it was
    /// checked.
    fn check_open_file(&self, file: &fs::File, object: &Path) -> std::result::Result<(), String> {
        if self.allow_all
            || opened_path(file, &local_path(object)).is_some_and(|path| self.allows(&path))
        {
            return Ok(());
        }
        Err(format!("this worker may not read /{object}; it may read {self}"))
    }
}

/// The path of an object of the local store.
fn local_path(object: &Path) -> PathBuf {
    std::path::Path::new("/").join(object.as_ref())
}

/// The path of an open file without links, as the system reports it.
#[cfg(target_os = "linux")]
fn opened_path(file: &fs::File, _named: &std::path::Path) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// The path of an open file without links: where its name leads now, if that is the same file.
#[cfg(not(target_os = "linux"))]
fn opened_path(file: &fs::File, named: &std::path::Path) -> Option<PathBuf> {
    let path = fs::canonicalize(named).ok()?;
    let (open, there) = (file.metadata().ok()?, fs::metadata(&path).ok()?);
    let same = open.len() == there.len() && open.modified().ok() == there.modified().ok();
    same.then_some(path)
}

/// A comma-separated list of names for the worker's operator.
impl fmt::Display for AllowedLocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.paths.iter().map(|path| path.display().to_string());
        let names: Vec<_> = paths.chain(self.urls.iter().map(Url::to_string)).collect();
        match names.is_empty() {
            true if self.allow_all => f.write_str("everything"),
            true => f.write_str("nothing (no location was allowed)"),
            false => f.write_str(&names.join(", ")),
        }
    }
}

/// Whether an object is the one that `allowed` names, or lies below it. Paths are compared segment
/// by segment, as the store reads them.
fn contains(store: &Url, object: &Path, allowed: &Url) -> bool {
    let same_store = store.scheme() == allowed.scheme()
        && store.username() == allowed.username()
        && store.host() == allowed.host()
        && store.port_or_known_default() == allowed.port_or_known_default();
    let folder = Path::from_url_path(allowed.path());
    same_store && folder.is_ok_and(|folder| object.prefix_matches(&folder))
}

/// A registry whose object stores are guarded.
#[derive(Debug)]
struct GuardedRegistry {
    inner: Arc<dyn ObjectStoreRegistry>,
    locations: Arc<AllowedLocations>,
}

impl ObjectStoreRegistry for GuardedRegistry {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.inner.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.inner.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let (inner, locations) = (self.inner.get_store(url)?, self.locations.clone());
        Ok(Arc::new(GuardedStore { inner, url: url.clone(), locations }))
    }
}

/// An object store that serves allowed objects only.
#[derive(Debug)]
struct GuardedStore {
    inner: Arc<dyn ObjectStore>,
    url: Url,
    locations: Arc<AllowedLocations>,
}

impl GuardedStore {
    fn check_object(&self, object: &Path) -> object_store::Result<()> {
        self.locations.check_object(&self.url, object).map_err(|reason| denied(object, reason))
    }

    fn deny_write<T>(&self, object: &Path) -> object_store::Result<T> {
        Err(denied(object, "a worker does not write".into()))
    }
}

/// Plans name files; a worker never needs to list a folder.
fn deny_listing(folder: Option<&Path>) -> object_store::Error {
    denied(folder.unwrap_or(&Path::default()), "a worker lists no folders".into())
}

fn denied(object: &Path, reason: String) -> object_store::Error {
    object_store::Error::PermissionDenied { path: object.to_string(), source: reason.into() }
}

impl fmt::Display for GuardedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for GuardedStore {
    async fn put_opts(
        &self,
        location: &Path,
        _payload: PutPayload,
        _options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.deny_write(location)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.deny_write(location)
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.check_object(location)?;
        let result = self.inner.get_opts(location, options).await?;
        if let GetResultPayload::File(file, _) = &result.payload {
            let checked = self.locations.check_open_file(file, location);
            checked.map_err(|reason| denied(location, reason))?;
        }
        Ok(result)
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        if self.locations.allow_all || self.url.scheme() != "file" {
            self.check_object(location)?;
            return self.inner.get_ranges(location, ranges).await;
        }
        // Opens each range by itself, so that the open file can be checked.
        let fetch = |range: Range<u64>| async {
            let options = GetOptions::new().with_range(Some(range));
            self.get_opts(location, options).await?.bytes().await
        };
        let distance = object_store::OBJECT_STORE_COALESCE_DEFAULT;
        object_store::coalesce_ranges(ranges, fetch, distance).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let refuse = |location: object_store::Result<Path>| {
            location.and_then(|path| Err(denied(&path, "a worker does not write".into())))
        };
        locations.map(refuse).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        stream::iter([Err(deny_listing(prefix))]).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        Err(deny_listing(prefix))
    }

    async fn copy_opts(
        &self,
        _from: &Path,
        to: &Path,
        _options: CopyOptions,
    ) -> object_store::Result<()> {
        self.deny_write(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link leads to an allowed file when it is checked, and elsewhere when it is opened.
    #[test]
    fn a_file_is_checked_once_it_is_open() {
        let (open, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&open, &closed] {
            fs::write(folder.path().join("x"), "1").unwrap();
        }
        let locations = AllowedLocations::deny_all().with_path(open.path()).unwrap();
        let link = open.path().join("link");
        std::os::unix::fs::symlink(open.path().join("x"), &link).unwrap();
        let (store, object) = (Url::parse("file:///").unwrap(), Path::from(link.to_str().unwrap()));
        locations.check_object(&store, &object).unwrap();
        locations.check_open_file(&fs::File::open(&link).unwrap(), &object).unwrap();

        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(closed.path().join("x"), &link).unwrap();
        let target = closed.path().display().to_string();
        let opened = locations.check_open_file(&fs::File::open(&link).unwrap(), &object);
        for refusal in [opened.unwrap_err(), locations.check_object(&store, &object).unwrap_err()] {
            assert!(refusal.contains("may not read"), "{refusal}");
            assert!(!refusal.contains(&target), "the error reveals where a link leads: {refusal}");
        }
    }
}
