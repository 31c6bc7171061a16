//! Files with wrong footers or pages: an error that names the file, at once.

use std::{fs, io::Write, path::PathBuf, sync::Arc};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use parquet::{
    arrow::ArrowWriter,
    file::{
        metadata::{
            ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter,
            RowGroupMetaData,
        },
        properties::{EnabledStatistics, WriterProperties},
    },
};

use super::with_sessions;
use crate::against_datafusion::{Sessions, run};

/// Rows of the file; each page has ten.
const ROWS: i64 = 40;

fn bytes() -> Vec<u8> {
    let column =
        |first: i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(first..first + ROWS)) };
    let batch = RecordBatch::try_from_iter([("a", column(0)), ("b", column(1000))]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        // The page index is read in planning, and would not be at the footer's offset.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_data_page_row_count_limit(10)
        .set_write_batch_size(10);
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn footer(bytes: &[u8]) -> ParquetMetaData {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    ParquetMetaDataReader::new().parse_and_finish(&file).unwrap()
}

/// `bytes` with another footer after the pages, or with other pages.
fn with_footer(pages: &[u8], footer: ParquetMetaData, group: RowGroupMetaData) -> Vec<u8> {
    let mut bytes = pages.to_vec();
    let footer = footer.into_builder().set_row_groups(vec![group]).build();
    ParquetMetaDataWriter::new(&mut bytes, &footer).finish().unwrap();
    bytes
}

/// The file with a changed chunk of its last column.
fn with_chunk(change: impl Fn(ColumnChunkMetaData) -> ColumnChunkMetaData) -> Vec<u8> {
    let bytes = bytes();
    let footer = footer(&bytes);
    let group = footer.row_group(0).clone();
    let (mut columns, end) = (group.columns().to_vec(), pages_end(&group));
    let last = columns.pop().unwrap();
    columns.push(change(last));
    let group = group.into_builder().set_column_metadata(columns).build().unwrap();
    with_footer(&bytes[..end], footer, group)
}

fn with_rows(rows: i64) -> Vec<u8> {
    let bytes = bytes();
    let footer = footer(&bytes);
    let group = footer.row_group(0).clone();
    let end = pages_end(&group);
    let group = group.into_builder().set_num_rows(rows).build().unwrap();
    with_footer(&bytes[..end], footer, group)
}

fn pages_end(group: &RowGroupMetaData) -> usize {
    let (start, length) = group.columns().last().unwrap().byte_range();
    (start + length) as usize
}

/// The file with the last page of its last column duplicated.
fn with_a_page_twice() -> Vec<u8> {
    let bytes = bytes();
    let footer = footer(&bytes);
    let group = footer.row_group(0).clone();
    let (start, length) = group.columns().last().unwrap().byte_range();
    let (start, end) = (start as usize, (start + length) as usize);
    // All pages have the same length, since they have the same number of values.
    let page = length as usize / 4;
    assert_eq!(length as usize % 4, 0);
    assert_eq!(bytes[start..start + 8], bytes[end - page..end - page + 8]);
    let pages = [&bytes[..end], &bytes[end - page..end]].concat();
    let mut columns = group.columns().to_vec();
    let last = columns.pop().unwrap().into_builder();
    let last = last.set_total_compressed_size((end - start + page) as i64).build().unwrap();
    columns.push(last);
    let group = group.into_builder().set_column_metadata(columns).build().unwrap();
    with_footer(&pages, footer, group)
}

fn place(sessions: &Sessions, name: &str, bytes: Vec<u8>) -> PathBuf {
    let folder = sessions.shared().join(name);
    fs::create_dir(&folder).unwrap();
    for good in ["first", "last"] {
        fs::write(folder.join(good).with_extension("parquet"), self::bytes()).unwrap();
    }
    let path = folder.join("middle.parquet");
    fs::write(&path, bytes).unwrap();
    folder
}

/// Asserts that all sessions refuse `sql` with an error that names the bad file of three and has
/// one of `words`.
fn refused(sessions: &Sessions, name: &str, bytes: Vec<u8>, words: &[&str]) {
    let folder = place(sessions, name, bytes);
    for tested in &sessions.tested {
        let table = format!(
            "CREATE EXTERNAL TABLE {name} (a BIGINT NOT NULL, b BIGINT NOT NULL) STORED AS PARQUET \
             LOCATION '{}/'",
            folder.display()
        );
        sessions.block_on(async { tested.context.sql(&table).await?.collect().await }).unwrap();
        for sql in ["SELECT sum(a * b) FROM {t}", "SELECT a, b FROM {t} WHERE a >= 0 AND b > 3"] {
            let sql = sql.replace("{t}", name);
            sessions.doing(&sql);
            let ran = sessions.block_on(async { run(tested.context.sql(&sql).await?).await });
            let text = match ran {
                Ok(_) => "an answer".to_owned(),
                Err(error) => error.to_string(),
            };
            let wrong = ["first.parquet", "last.parquet", "panicked"];
            let named = text.contains("middle.parquet");
            if !named
                || wrong.iter().any(|word| text.contains(word))
                || !words.iter().any(|word| text.contains(word))
            {
                sessions.fail(format!("{name}: {sql}\n    {}: '{text}'", tested.name));
            }
        }
    }
}

#[test]
fn footers_that_lie() {
    with_sessions(|sessions| {
        refused(sessions, "many_rows", with_rows(1 << 60), &["rows"]);
        refused(sessions, "few_rows", with_rows(10), &["rows"]);
        let sizes = [("two_gibibytes", i64::from(i32::MAX)), ("a_tebibyte", 1 << 40), ("less", -5)];
        for (name, size) in sizes {
            let bytes = with_chunk(|chunk| {
                chunk.into_builder().set_total_compressed_size(size).build().unwrap()
            });
            refused(sessions, name, bytes, &["bytes"]);
        }
        let bytes =
            with_chunk(|chunk| chunk.into_builder().set_data_page_offset(1 << 50).build().unwrap());
        refused(sessions, "far_away", bytes, &["bytes"]);
        let all = with_chunk(|chunk| chunk.into_builder().set_num_values(1 << 60).build().unwrap());
        refused(sessions, "many_values", all, &["values"]);
    });
}

#[test]
fn a_page_too_many() {
    with_sessions(|sessions| {
        refused(sessions, "twice", with_a_page_twice(), &["rows"]);
    });
}

#[test]
fn a_header_of_nonsense() {
    with_sessions(|sessions| {
        let mut bytes = bytes();
        // The first page's header.
        bytes[4..40].fill(0xff);
        refused(sessions, "no_header", bytes, &["damaged"]);
    });
}
