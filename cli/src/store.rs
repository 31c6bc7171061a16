//! Stores as DataFusion lists and reads them: without hidden files, and on the local file system
//! with an error if a file shrinks while it is read.
//!
//! A name that begins with `.` or `_` belongs to the system that wrote the folder: unfinished files
//! of Spark, checksums, logs. Such names are skipped in listings, at every level below the table's
//! folder. A folder `_column=value` is not hidden, since columns may have such names. A hidden file
//! or folder that a path names is read like any other.

pub(crate) mod objects;
mod whole_files;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::object_store::{ObjectStoreRegistry, ObjectStoreUrl};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::path::Path;
use datafusion::object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use whole_files::WholeFiles;

/// Whether listings skip a file or folder of this name.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// The stores of a runtime: object stores are opened when a URL names them.
pub(crate) fn registry() -> Arc<dyn ObjectStoreRegistry> {
    Arc::new(objects::Stores::default())
}

/// Registers this store in a runtime.
pub(crate) fn register(runtime: &RuntimeEnv) {
    let url = ObjectStoreUrl::local_filesystem();
    let files = Arc::new(WholeFiles::new(Arc::new(LocalFileSystem::new())));
    runtime.register_object_store(url.as_ref(), Arc::new(VisibleFiles { files }));
}

/// A store, with listings that skip hidden files.
#[derive(Debug)]
struct VisibleFiles {
    files: Arc<dyn ObjectStore>,
}

impl fmt::Display for VisibleFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

/// Whether no name of `object` below `folder` is hidden. `_column=value` counts as visible for
/// folders only.
fn is_visible(folder: Option<&Path>, object: &Path) -> bool {
    let above = folder.map_or(0, Path::parts_count);
    let hidden_file = object.filename().is_some_and(|name| name.starts_with('_'));
    let mut names = object.parts().skip(above);
    (object.parts_count() <= above || !hidden_file) && !names.any(|name| is_hidden(name.as_ref()))
}

#[async_trait]
impl ObjectStore for VisibleFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.files.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let folder = prefix.cloned();
        let visible =
            move |object: &ObjectMeta| ready(is_visible(folder.as_ref(), &object.location));
        self.files.list(prefix).try_filter(visible).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut list = self.files.list_with_delimiter(prefix).await?;
        list.objects.retain(|object| is_visible(prefix, &object.location));
        list.common_prefixes.retain(|folder| folder.filename().is_none_or(|name| !is_hidden(name)));
        Ok(list)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests;
