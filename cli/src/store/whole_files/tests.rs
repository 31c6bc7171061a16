//! Ranges of unchanged files, and of a file that shrinks.

use std::fs::{self, OpenOptions};

use datafusion::object_store::local::LocalFileSystem;
use futures::TryStreamExt;

use super::*;

fn ranged(range: Range<u64>) -> GetOptions {
    GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() }
}

/// A file of 200,000 bytes, and its store.
fn file() -> (tempfile::TempDir, std::path::PathBuf, Path, WholeFiles) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    fs::write(&path, vec![b'x'; 200_000]).unwrap();
    let location = Path::from_absolute_path(&path).unwrap();
    (folder, path, location, WholeFiles::new(Arc::new(LocalFileSystem::new())))
}

#[tokio::test]
async fn ranges_are_read() {
    let (_folder, _, location, store) = file();
    for range in [0..200_000, 5..6, 1..131_073, 199_999..200_000] {
        let bytes = range.end - range.start;
        let read = store.get_opts(&location, ranged(range)).await.unwrap();
        assert_eq!(read.bytes().await.unwrap().len() as u64, bytes);
    }
    assert_eq!(store.get(&location).await.unwrap().bytes().await.unwrap().len(), 200_000);
}

#[tokio::test]
async fn a_file_that_becomes_shorter_is_an_error() {
    let (_folder, path, location, store) = file();
    let read = store.get_opts(&location, ranged(0..200_000)).await.unwrap();
    let mut chunks = read.into_stream();
    assert!(chunks.try_next().await.unwrap().is_some());
    OpenOptions::new().write(true).open(&path).unwrap().set_len(100_000).unwrap();
    let said = chunks.try_collect::<Vec<_>>().await.unwrap_err().to_string();
    assert!(said.contains("it has 100000 bytes, and 200000 are expected"), "{said}");
    for range in [0..200_000, 150_000..200_000] {
        let said = store.get_opts(&location, ranged(range)).await.unwrap_err().to_string();
        assert!(said.contains("it has 100000 bytes, and 200000 are expected"), "{said}");
    }
}
