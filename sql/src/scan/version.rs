//! Detects files that change between their listing and the last read.
//!
//! A scan reads a file in steps: its footer when the table is planned, row groups and byte ranges
//! later. If the file is replaced in between, rows would mix both versions. So every read requests
//! the version that was listed, by its ETag or else by its modification time. It fails if that
//! version no longer exists. The session's cached file lists are then cleared, so that a rerun of
//! the query finds the new version.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::{
    datasource::physical_plan::FileScanConfig,
    error::Result,
    execution::{TaskContext, cache::cache_manager::ListFilesCache},
    object_store::{
        self, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
        MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
        PutResult, path::Path,
    },
};
use futures::{StreamExt, stream::BoxStream};

/// Size of one read of a local text file, in bytes.
const CHUNK_BYTES: u64 = 1 << 20;

/// The object store of a scan's files, and the session's cache of file lists.
#[derive(Clone)]
pub(super) struct Listing {
    store: Arc<dyn ObjectStore>,
    /// The session's cache of file lists.
    lists: Option<Arc<ListFilesCache>>,
}

impl Listing {
    /// Returns the listing for the files of `config`.
    pub(super) fn of(config: &FileScanConfig, context: &TaskContext) -> Result<Self> {
        let runtime = context.runtime_env();
        let store = runtime.object_store(&config.object_store_url)?;
        Ok(Self { store, lists: runtime.cache_manager.get_list_files_cache() })
    }

    /// Returns the object store.
    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Fails if the listed version of the file no longer exists. Called after bytes were read, so
    /// that no change before the read is missed.
    pub(super) async fn check(&self, meta: &ObjectMeta) -> object_store::Result<()> {
        let head_options = listed(meta, GetOptions::new().with_head(true));
        match self.store.get_opts(&meta.location, head_options).await {
            Err(error @ Error::Precondition { .. }) => Err(self.map_error(&meta.location, error)),
            // A reader of the application may read from another place.
            _ => Ok(()),
        }
    }

    /// Replaces an error that says that the listed version, or the file, is missing by one that
    /// says what to do.
    fn map_error(&self, location: &Path, error: Error) -> Error {
        match error {
            Error::Precondition { .. } | Error::NotFound { .. } => self.changed_error(location),
            error => error,
        }
    }

    /// Clears the cached file lists, so that the next query lists the files again.
    pub(super) fn forget_lists(&self) {
        if let Some(lists) = &self.lists {
            lists.clear();
        }
    }

    fn changed_error(&self, location: &Path) -> Error {
        self.forget_lists();
        let source = format!("/{location} has changed since the query began: run it again").into();
        Error::Generic { store: "gatework", source }
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

/// An object store that returns a scan's files in the version that was listed.
#[derive(Debug)]
pub(super) struct ListedVersions {
    listing: Listing,
    files: HashMap<Path, ObjectMeta>,
    /// Whether local files are returned as streams that end at the requested range's end, or fail.
    /// The store's own stream waits endlessly for bytes that a truncated file has lost.
    text: bool,
}

impl ListedVersions {
    /// Wraps the store of `listing` for the files of `config`.
    pub(super) fn new(listing: Listing, config: &FileScanConfig) -> Self {
        let files = config.file_groups.iter().flat_map(|group| group.iter());
        let files = files.map(|file| (file.object_meta.location.clone(), file.object_meta.clone()));
        let text = matches!(config.file_source.file_type(), "csv" | "json");
        Self { listing, files: files.collect(), text }
    }
}

/// A byte range of a local file that is being read.
struct LocalRange {
    file: Arc<File>,
    offset: u64,
    end: u64,
    listing: Listing,
    meta: ObjectMeta,
}

impl LocalRange {
    fn into_stream(self) -> BoxStream<'static, object_store::Result<Bytes>> {
        let next = |mut range: Self| async move {
            if range.offset >= range.end {
                return Ok(None);
            }
            let bytes = range.chunk().await?;
            range.offset += bytes.len() as u64;
            if range.offset >= range.end {
                range.listing.check(&range.meta).await?;
            }
            Ok(Some((bytes, range)))
        };
        futures::stream::try_unfold(self, next).boxed()
    }

    async fn chunk(&self) -> object_store::Result<Bytes> {
        let (file, offset) = (self.file.clone(), self.offset);
        let wanted = (self.end - offset).min(CHUNK_BYTES);
        let read = move || {
            let mut bytes = Vec::with_capacity(wanted as usize);
            let mut file = file.as_ref();
            file.seek(SeekFrom::Start(offset))?;
            file.take(wanted).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        let failed = |error| Error::Generic { store: "gatework", source: error };
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| failed(error.into()))?;
        match read {
            Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes.into()),
            Ok(_) => Err(self.listing.changed_error(&self.meta.location)),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// Restricts `options` to the version of the file that was listed.
fn listed(meta: &ObjectMeta, options: GetOptions) -> GetOptions {
    match &meta.e_tag {
        Some(tag) => options.with_if_match(Some(tag.clone())),
        None => options.with_if_unmodified_since(Some(meta.last_modified)),
    }
}

impl fmt::Display for ListedVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listing.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for ListedVersions {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.listing.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.listing.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let options = match self.files.get(location) {
            Some(meta) if options.if_match.is_none() => listed(meta, options),
            _ => options,
        };
        let head = options.head;
        let result = self.listing.store.get_opts(location, options).await;
        let mut result = result.map_err(|error| self.listing.map_error(location, error))?;
        let meta = self.files.get(location).filter(|_| self.text && !head);
        if let (GetResultPayload::File(file, _), Some(meta)) = (&result.payload, meta) {
            let file = file
                .try_clone()
                .map_err(|error| Error::Generic { store: "gatework", source: error.into() })?;
            let (offset, end) = (result.range.start, result.range.end);
            let (listing, meta) = (self.listing.clone(), meta.clone());
            let range = LocalRange { file: Arc::new(file), offset, end, listing, meta };
            result.payload = GetResultPayload::Stream(range.into_stream());
        }
        Ok(result)
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let bytes = self.listing.store.get_ranges(location, ranges).await;
        if let Some(meta) = self.files.get(location) {
            self.listing.check(meta).await?;
        }
        bytes
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.listing.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listing.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.listing.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.listing.store.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests;
