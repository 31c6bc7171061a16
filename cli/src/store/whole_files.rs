//! Text files that shrink while they are read.
//!
//! DataFusion's readers of CSV and JSON read a byte range of a local file as a stream that ends
//! after all of its bytes (`AlignedBoundaryStream`, and object_store's stream of a local file). If
//! the file has shrunk, these streams return empty chunks without end and are never pending.
//! Neither a time limit nor a cancellation then takes effect. This store reads ranges itself, and
//! fails if bytes are missing.

use std::{
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::object_store::{
    self, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions, Result, path::Path,
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};

/// Bytes per read.
const CHUNK_BYTES: u64 = 64 << 10;

/// A store for text files, which are read by ranges or as a whole.
#[derive(Debug)]
pub(crate) struct WholeFiles {
    store: Arc<dyn ObjectStore>,
}

impl WholeFiles {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }
}

impl fmt::Display for WholeFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

/// The error of a file that ends at byte `size`, but had at least `end` bytes when the query was
/// planned.
fn changed(location: &Path, end: u64, size: u64) -> object_store::Error {
    object_store::Error::Generic {
        store: "file",
        source: format!(
            "'/{location}' changed while it was read: it has {size} bytes, and {end} are expected; \
             run the query again once nothing writes the file"
        )
        .into(),
    }
}

/// The bytes of `range`, read on demand. Fails if the file ends earlier.
fn chunks(
    mut file: File,
    location: Path,
    range: Range<u64>,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let failed = |error: std::io::Error| object_store::Error::Generic {
        store: "file",
        source: Box::new(error),
    };
    file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
    let read = move |(mut file, location, at): (File, Path, u64)| async move {
        let wanted = CHUNK_BYTES.min(range.end - at);
        if wanted == 0 {
            return Ok(None);
        }
        let mut chunk = Vec::with_capacity(wanted as usize);
        (&mut file).take(wanted).read_to_end(&mut chunk).map_err(failed)?;
        let at = at + chunk.len() as u64;
        match (chunk.len() as u64) < wanted {
            true => Err(changed(&location, range.end, at)),
            false => Ok(Some((Bytes::from(chunk), (file, location, at)))),
        }
    };
    Ok(stream::try_unfold((file, location, range.start), read).boxed())
}

#[async_trait]
impl ObjectStore for WholeFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let wanted = match &options.range {
            Some(GetRange::Bounded(range)) => range.clone(),
            _ => return self.store.get_opts(location, options).await,
        };
        let mut result = match self.store.get_opts(location, options).await {
            Ok(result) => result,
            Err(error) => {
                let size = self.store.head(location).await.map(|meta| meta.size);
                return Err(match size {
                    Ok(size) if size < wanted.end => changed(location, wanted.end, size),
                    _ => error,
                });
            }
        };
        if result.meta.size < wanted.end {
            return Err(changed(location, wanted.end, result.meta.size));
        }
        result.payload = match result.payload {
            GetResultPayload::File(file, _) => {
                GetResultPayload::Stream(chunks(file, location.clone(), wanted)?)
            }
            stream => stream,
        };
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests;
