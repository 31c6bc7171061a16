//! Files that change while they are read.

use std::fs;

use datafusion::{
    datasource::physical_plan::{FileScanConfigBuilder, ParquetSource},
    object_store::local::LocalFileSystem,
};
use datafusion_datasource::table_schema::TableSchema;
use futures::TryStreamExt;

use super::*;

struct Folder {
    folder: tempfile::TempDir,
    store: Arc<dyn ObjectStore>,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        Self { folder, store }
    }

    fn write(&self, bytes: usize) {
        fs::write(self.folder.path().join("x"), vec![b'x'; bytes]).unwrap();
    }

    /// Returns the store, with the listing of the file as it is now.
    async fn listed(&self, text: bool) -> ListedVersions {
        let head_options = GetOptions::new().with_head(true);
        let meta = self.store.get_opts(&Path::from("x"), head_options).await.unwrap().meta;
        let files = HashMap::from([(meta.location.clone(), meta)]);
        let listing = Listing { store: self.store.clone(), lists: None };
        ListedVersions { listing, files, text }
    }
}

async fn read(store: &ListedVersions) -> object_store::Result<usize> {
    let result = store.get_opts(&Path::from("x"), GetOptions::new()).await?;
    let chunks: Vec<Bytes> = result.into_stream().try_collect().await?;
    Ok(chunks.iter().map(Bytes::len).sum())
}

#[tokio::test]
async fn a_file_is_read_in_the_version_that_was_listed() {
    let folder = Folder::new();
    folder.write(3_000_000);
    for text in [false, true] {
        let store = folder.listed(text).await;
        assert_eq!(read(&store).await.unwrap(), 3_000_000);
        assert_eq!(store.get_ranges(&Path::from("x"), &[1..5, 7..9]).await.unwrap()[0].len(), 4);
        folder.write(3_000_001);
        for error in [
            read(&store).await.unwrap_err(),
            store.get_ranges(&Path::from("x"), &[1..5, 7..9]).await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("/x has changed"), "{error}");
        }
        folder.write(3_000_000);
    }
}

/// The store's own stream never ends: it returns empty chunks.
#[tokio::test]
async fn a_text_file_that_shrinks_while_it_is_read() {
    let folder = Folder::new();
    folder.write(3_000_000);
    let store = folder.listed(true).await;
    let result = store.get_opts(&Path::from("x"), GetOptions::new()).await.unwrap();
    let mut stream = result.into_stream();
    assert_eq!(stream.try_next().await.unwrap().unwrap().len(), CHUNK_BYTES as usize);
    folder.write(0);
    let error = stream.try_next().await.unwrap_err();
    assert!(error.to_string().contains("/x has changed"), "{error}");
}

#[test]
fn only_text_files_become_streams() {
    let schema = TableSchema::from(Arc::new(arrow::datatypes::Schema::empty()));
    let source = Arc::new(ParquetSource::new(schema));
    let url = datafusion::execution::object_store::ObjectStoreUrl::local_filesystem();
    let config = FileScanConfigBuilder::new(url, source).build();
    let listing = Listing { store: Folder::new().store, lists: None };
    let store = ListedVersions::new(listing, &config);
    assert!(!store.text);
}
