//! Generating data, finding it again, and detecting other data.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;

use parquet::file::reader::{FileReader, SerializedFileReader};
use tempfile::tempdir;

use super::super::generate::generate;
use super::super::table::Table;
use super::{find_or_make, path, scale_of};

const THREADS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

#[tokio::test]
async fn missing_tables_are_made_once_and_recognised() {
    let folder = tempdir().unwrap();
    let data = find_or_make(Some(folder.path().to_owned()), Some(0.005), THREADS).await.unwrap();
    assert_eq!((data.scale, data.has_answers), (Some(0.005), false));
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected =
        ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
            .map(|t| format!("{t}.parquet"));
    assert_eq!(names, expected);
    let made = fs::metadata(data.path(Table::Orders)).unwrap().modified().unwrap();
    fs::remove_file(data.path(Table::Part)).unwrap();
    let again = find_or_make(Some(folder.path().to_owned()), None, THREADS).await.unwrap();
    assert_eq!(again.scale, Some(0.005));
    assert!(
        again.path(Table::Part).exists(),
        "the missing table is generated at the scale of the others"
    );
    assert_eq!(fs::metadata(data.path(Table::Orders)).unwrap().modified().unwrap(), made);
    let other = find_or_make(Some(folder.path().to_owned()), Some(1.0), THREADS).await.unwrap_err();
    assert!(other.sentence().unwrap().contains("has other data: orders has 7500 rows"));
    fs::write(data.path(Table::Orders), "broken").unwrap();
    let broken = find_or_make(Some(folder.path().to_owned()), None, THREADS).await.unwrap_err();
    assert!(broken.sentence().unwrap().contains("remove it to generate it again"));
}

#[test]
fn parts_are_row_groups_in_the_order_of_their_keys() {
    let folder = tempdir().unwrap();
    generate(folder.path(), &[Table::Orders], 0.4, THREADS, &AtomicBool::new(false)).unwrap();
    let file = fs::File::open(path(folder.path(), Table::Orders)).unwrap();
    let metadata = SerializedFileReader::new(file).unwrap().metadata().clone();
    assert_eq!(metadata.file_metadata().num_rows(), 600_000);
    assert_eq!(metadata.num_row_groups(), 3);
    let bounds: Vec<_> = metadata
        .row_groups()
        .iter()
        .map(|group| {
            let statistics = group.column(0).statistics().unwrap();
            let key = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().unwrap());
            (key(statistics.min_bytes_opt().unwrap()), key(statistics.max_bytes_opt().unwrap()))
        })
        .collect();
    assert!(bounds.windows(2).all(|pair| pair[0].1 < pair[1].0), "{bounds:?}");
}

#[test]
fn a_stopped_run_leaves_nothing() {
    let folder = tempdir().unwrap();
    let stopped = generate(folder.path(), &Table::ALL, 0.01, THREADS, &AtomicBool::new(true));
    assert!(stopped.is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn sizes_tell_the_scale() {
    let sizes = |scale| {
        Table::ALL.into_iter().filter(|table| table.tells_scale()).map(move |t| (t, t.rows(scale)))
    };
    for scale in [0.001, 0.01, 0.1, 1.0, 3.0, 100.0] {
        assert_eq!(scale_of(&sizes(scale).collect::<Vec<_>>()), Some(scale));
    }
    let mut odd: Vec<_> = sizes(1.0).collect();
    odd[0].1 += 1;
    assert_eq!(scale_of(&odd), None);
    assert_eq!(scale_of(&[]), None);
}
