//! Files of every format as tables, and the errors for files that are none.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::ipc::writer::FileWriter;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use tempfile::{TempDir, tempdir};

use super::{TableArg, register_all};
use crate::{formats, store};

fn batch(values: &[i64]) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
    RecordBatch::try_from_iter([("n", column)]).unwrap()
}

fn parquet(path: &Path, values: &[i64]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = batch(values);
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn session() -> SessionContext {
    let session = SessionContext::new();
    formats::register(&session);
    store::register(&session.runtime_env());
    session
}

/// The number of rows of table `t` and the sum of column `n`, or the error's sentence.
async fn rows_and_sum(path: &str) -> Result<(usize, i64), String> {
    let session = session();
    let table = TableArg { name: "t".to_owned(), path: path.to_owned() };
    register_all(&session, &[table], None).await.map_err(|error| error.sentence().unwrap())?;
    let batches =
        session.sql("SELECT CAST(n AS BIGINT) AS n FROM t").await.unwrap().collect().await.unwrap();
    let column = |batch: &RecordBatch| {
        batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().clone()
    };
    let sum = batches.iter().filter_map(|batch| arrow::compute::sum(&column(batch))).sum();
    Ok((batches.iter().map(RecordBatch::num_rows).sum(), sum))
}

fn folder() -> TempDir {
    tempdir().unwrap()
}

fn at(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn files_of_every_format() {
    let folder = folder();
    parquet(&folder.path().join("a.parquet"), &[1, 2]);
    fs::write(at(&folder, "a.csv"), "n,s\n1,x\n2,y\n").unwrap();
    fs::write(at(&folder, "a.tsv"), "n\ts\n1\tx\n2\ty\n").unwrap();
    fs::write(at(&folder, "a.ndjson"), "{\"n\":1}\n{\"n\":2}\n").unwrap();
    let rows = batch(&[1, 2]);
    let mut writer =
        FileWriter::try_new(File::create(at(&folder, "a.arrow")).unwrap(), &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    for name in ["a.parquet", "a.csv", "a.tsv", "a.ndjson", "a.arrow"] {
        assert_eq!(rows_and_sum(&at(&folder, name)).await, Ok((2, 3)), "{name}");
    }
}

#[tokio::test]
async fn folders_globs_and_names_with_brackets() {
    let folder = folder();
    for (name, values) in [
        ("d/a.parquet", [1]),
        ("d/b.parquet", [2]),
        ("d/_SUCCESS.parquet", [9]),
        ("x[1].parquet", [4]),
    ] {
        parquet(&folder.path().join(name), &values);
    }
    fs::write(at(&folder, "d/.hidden"), "").unwrap();
    fs::write(at(&folder, "d/_SUCCESS"), "").unwrap();
    assert_eq!(rows_and_sum(&at(&folder, "d")).await, Ok((2, 3)));
    assert_eq!(rows_and_sum(&at(&folder, "d/")).await, Ok((2, 3)));
    assert_eq!(rows_and_sum(&at(&folder, "d/[ab].parquet")).await, Ok((2, 3)));
    assert_eq!(rows_and_sum(&at(&folder, "*/b*")).await, Ok((1, 2)));
    assert_eq!(rows_and_sum(&at(&folder, "x[1].parquet")).await, Ok((1, 4)));
}

#[tokio::test]
async fn hidden_files_are_left_out_unless_they_are_named() {
    let folder = folder();
    for (name, value) in [
        ("flat/x.parquet", 1),
        ("flat/_x.parquet", 2),
        ("flat/.x.parquet", 4),
        ("flat/.h/x.parquet", 8),
        ("hive/k=1/x.parquet", 1),
        ("hive/k=1/_x.parquet", 2),
        ("hive/k=1/.x.parquet", 4),
        ("hive/.k=1/x.parquet", 8),
        ("hive/_temporary/k=1/x.parquet", 16),
        ("named/_k=1/x.parquet", 1),
        ("named/_k=2/x.parquet", 2),
    ] {
        parquet(&folder.path().join(name), &[value]);
    }
    for (path, expected) in [
        ("flat", (1, 1)),
        ("flat/*.parquet", (1, 1)),
        ("*/*.parquet", (1, 1)),
        ("flat/**/*.parquet", (1, 1)),
        ("flat/_*.parquet", (1, 2)),
        ("flat/.*.parquet", (1, 4)),
        ("flat/_x.parquet", (1, 2)),
        ("flat/.h/*.parquet", (1, 8)),
        ("flat/.h", (1, 8)),
        ("hive", (1, 1)),
        ("hive/k=*/*", (1, 1)),
        ("named", (2, 3)),
    ] {
        assert_eq!(rows_and_sum(&at(&folder, path)).await, Ok(expected), "{path}");
    }
}

#[tokio::test]
async fn files_that_come_later_belong_to_their_folder() {
    let folder = folder();
    parquet(&folder.path().join("a.parquet"), &[1]);
    let session = session();
    let path = folder.path().to_str().unwrap().to_owned();
    register_all(&session, &[TableArg { name: "t".to_owned(), path }], None).await.unwrap();
    parquet(&folder.path().join("b.parquet"), &[2]);
    let rows = session.sql("SELECT n FROM t ORDER BY n").await.unwrap().collect().await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
}

#[tokio::test]
async fn folders_named_after_values_are_columns() {
    let folder = folder();
    parquet(&folder.path().join("year=2024/a.parquet"), &[1]);
    parquet(&folder.path().join("year=2025/a.parquet"), &[2]);
    let session = session();
    let path = folder.path().to_str().unwrap().to_owned();
    register_all(&session, &[TableArg { name: "t".to_owned(), path }], None).await.unwrap();
    let rows =
        session.sql("SELECT n FROM t WHERE year = '2025'").await.unwrap().collect().await.unwrap();
    assert_eq!(rows, [batch(&[2])]);
}

#[tokio::test]
async fn empty_tables_and_columns_of_nulls_are_tables() {
    let folder = folder();
    parquet(&folder.path().join("empty.parquet"), &[]);
    fs::write(at(&folder, "header.csv"), "n\n").unwrap();
    fs::write(at(&folder, "nulls.csv"), "n,m\n,1\n,2\n").unwrap();
    assert_eq!(rows_and_sum(&at(&folder, "empty.parquet")).await, Ok((0, 0)));
    assert_eq!(rows_and_sum(&at(&folder, "header.csv")).await, Ok((0, 0)));
    assert_eq!(rows_and_sum(&at(&folder, "nulls.csv")).await, Ok((2, 0)));
}

#[tokio::test]
async fn what_is_no_table_is_named() {
    let folder = folder();
    parquet(&folder.path().join("whole.parquet"), &[1, 2, 3]);
    let whole = fs::read(at(&folder, "whole.parquet")).unwrap();
    fs::write(at(&folder, "cut.parquet"), &whole[..whole.len() - 5]).unwrap();
    let mut broken = whole.clone();
    let footer = broken.len() - 8;
    broken[footer - 20..footer].fill(0xFF);
    fs::create_dir(folder.path().join("some")).unwrap();
    fs::write(at(&folder, "some/broken.parquet"), &broken).unwrap();
    fs::write(at(&folder, "some/whole.parquet"), &whole).unwrap();
    fs::write(at(&folder, "text.parquet"), "no").unwrap();
    fs::write(at(&folder, "nothing.csv"), "").unwrap();
    fs::write(at(&folder, "notes.txt"), "hello").unwrap();
    fs::write(at(&folder, "broken.json"), "{\"n\": ").unwrap();
    fs::write(at(&folder, "text.arrow"), "hello, this is not Arrow").unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("mixed")).unwrap();
    fs::write(at(&folder, "mixed/a.csv"), "n\n1\n").unwrap();
    fs::write(at(&folder, "mixed/b.json"), "{\"n\":1}\n").unwrap();
    for (name, sentence) in [
        ("missing.csv", "there is no file or folder"),
        ("*.gone", "no file matches"),
        ("cut.parquet", "is not a whole Parquet file"),
        ("text.parquet", "is not a whole Parquet file"),
        ("some", "some/broken.parquet' cannot be read; it may be corrupt"),
        ("nothing.csv", "is empty"),
        ("notes.txt", "the format of"),
        ("broken.json", "JSON files must have one object per line"),
        ("text.arrow", "cannot be read; it may be corrupt"),
        ("empty", "has no files to read"),
        ("mixed", "mixes formats, as in"),
    ] {
        let said = rows_and_sum(&at(&folder, name)).await.unwrap_err();
        assert!(said.contains(sentence), "{name}: {said}");
        assert!(!said.contains('\n'), "{name}: {said}");
    }
    let said = rows_and_sum("ftp://host/x.parquet").await.unwrap_err();
    assert!(said.contains("cannot be read"), "{said}");
}

#[tokio::test]
async fn names_are_names_and_used_once() {
    let folder = folder();
    parquet(&folder.path().join("a.parquet"), &[1]);
    let table = |name: &str| TableArg { name: name.to_owned(), path: at(&folder, "a.parquet") };
    let said = async |tables: &[TableArg]| {
        register_all(&session(), tables, None).await.unwrap_err().sentence().unwrap()
    };
    assert!(said(&[table("a.b")]).await.contains("is not a valid table name"));
    assert!(said(&[table("a"), table("A")]).await.contains("two tables are named 'A'"));
}
