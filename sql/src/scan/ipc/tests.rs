//! Replaces every length in a file or a stream, one after the other, by a larger one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch as Batch},
    datatypes::{DataType, Field, Fields, Int32Type, IntervalUnit, Schema, TimeUnit, UnionMode},
    ipc::{
        CompressionType,
        reader::StreamReader,
        writer::{FileWriter, IpcWriteOptions, StreamWriter},
    },
};
use datafusion::object_store::{ObjectStoreExt, PutPayload, memory::InMemory, path::Path};

use super::*;

fn batch() -> Batch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1001));
    let words = (0..1001).map(|row| Some(["one", "two", "three"][row % 3]));
    let words: ArrayRef = Arc::new(words.collect::<DictionaryArray<Int32Type>>());
    Batch::try_from_iter([("a", numbers), ("b", words)]).unwrap()
}

fn stream() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch().schema()).unwrap();
    writer.write(&batch()).unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn file(compression: Option<CompressionType>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let mut writer =
        FileWriter::try_new_with_options(&mut bytes, &batch().schema(), options).unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    bytes
}

/// Checks all of `bytes` as a file or a stream.
fn checked(bytes: Vec<u8>, is_file: bool, part: Part) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, path) = (InMemory::new(), Path::from("a.arrow"));
        store.put(&path, PutPayload::from(bytes)).await.unwrap();
        let object = store.head(&path).await.unwrap();
        check_arrow_schema(&store, &object).await?;
        check(&store, &object, is_file, &part).await
    })
}

/// Returns `bytes` with the `nth` number equal to `length` replaced.
fn replaced(bytes: &[u8], length: i64, nth: usize, with: i64) -> Option<Vec<u8>> {
    let offsets = bytes.windows(8).enumerate();
    let mut offsets = offsets.filter(|(_, window)| **window == length.to_le_bytes());
    let (offset, _) = offsets.nth(nth)?;
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + 8].copy_from_slice(&with.to_le_bytes());
    Some(bytes)
}

#[test]
fn sound_files_pass() {
    checked(stream(), false, Part::All).unwrap();
    checked(Vec::new(), false, Part::All).unwrap();
    for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        checked(file(compression), true, Part::All).unwrap();
        checked(file(compression), true, Part::Range(FileRange { start: 0, end: 9 })).unwrap();
    }
}

#[test]
fn messages_longer_than_the_file() {
    let long = [&[0xff; 4][..], &[0, 0, 0, 0x7f], &[0; 40]].concat();
    assert!(checked(long, false, Part::Schema).is_err());
    // "ARRO" is the length of a message where the file format is not known.
    let cut = file(None);
    assert!(checked(cut[..cut.len() - 20].to_vec(), true, Part::Schema).is_err());
    assert!(checked(cut[..6].to_vec(), true, Part::Schema).is_err());
}

#[test]
fn bodies_longer_than_the_file() {
    let bytes = stream();
    let reader = StreamReader::try_new(bytes.as_slice(), None).unwrap();
    assert_eq!(reader.count(), 2);
    let mut seen = 0;
    // Bodies are multiples of 64 or 8 bytes, and few other numbers are.
    for body in (8..bytes.len() as i64).step_by(8) {
        for nth in 0.. {
            let Some(bytes) = replaced(&bytes, body, nth, 1 << 46) else { break };
            seen += usize::from(checked(bytes, false, Part::All).is_err());
        }
    }
    assert!(seen >= 3, "only {seen} lengths were reported");
}

/// A batch without columns would have that many rows.
#[test]
fn batches_of_more_rows_than_there_can_be() {
    let errors = |rows: i64| {
        let damaged = (0..).map_while(|nth| replaced(&stream(), 1001, nth, rows));
        let errors = damaged.map(|bytes| checked(bytes, false, Part::All).err());
        errors.collect::<Vec<_>>()
    };
    // The lengths of two batches, and of the two arrays in each.
    assert_eq!(errors(-1).iter().flatten().count(), 6);
    let errors = errors(1 << 32);
    assert_eq!(errors.iter().flatten().count(), 2);
    for error in errors.into_iter().flatten() {
        assert!(error.to_string().contains("a batch of 4294967296 rows"), "{error}");
    }
}

#[test]
fn compressed_buffers_longer_than_they_can_be() {
    for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        // The 1001 numbers of eight bytes each.
        let bytes = replaced(&file(Some(compression)), 8008, 0, 1 << 46).unwrap();
        let error = checked(bytes, true, Part::All).unwrap_err().to_string();
        assert!(error.contains("bytes decompress to"), "{error}");
    }
}

/// A stream whose only message is the schema of many types.
fn schema_message() -> Vec<u8> {
    let of = |data_type: DataType| Arc::new(Field::new("item", data_type, true));
    let entries = Fields::from(vec![
        Field::new("keys", DataType::Utf8, false),
        Field::new("values", DataType::Int64, true),
    ]);
    let entries = Arc::new(Field::new("entries", DataType::Struct(entries), false));
    let members = [(0, of(DataType::Int8)), (3, of(DataType::Utf8))];
    let types = [
        DataType::Int32,
        DataType::Float16,
        DataType::FixedSizeBinary(3),
        DataType::Date64,
        DataType::Time32(TimeUnit::Second),
        DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        DataType::Duration(TimeUnit::Microsecond),
        DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Decimal128(30, 4),
        DataType::List(of(DataType::Utf8View)),
        DataType::FixedSizeList(of(DataType::Int64), 2),
        DataType::Map(entries, false),
        DataType::Union(members.into_iter().collect(), UnionMode::Dense),
        DataType::Dictionary(Box::new(DataType::Int16), Box::new(DataType::Utf8)),
    ];
    let field =
        |(index, data_type): (usize, DataType)| Field::new(format!("c{index}"), data_type, true);
    let schema = Schema::new(types.into_iter().enumerate().map(field).collect::<Vec<_>>());
    let mut bytes = Vec::new();
    StreamWriter::try_new(&mut bytes, &schema).unwrap().finish().unwrap();
    bytes
}

/// Every byte of a schema is replaced by several others. What the check lets pass, the reader
/// must read or refuse; without the check it panics on some of them.
#[test]
fn no_schema_that_passes_makes_the_reader_panic() {
    let bytes = schema_message();
    assert!(checked(bytes.clone(), false, Part::All).is_ok());
    let mut refused = 0;
    for at in 8..bytes.len() {
        for value in [0, 1, 2, 3, 18, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            match checked(damaged.clone(), false, Part::All) {
                Ok(()) => drop(StreamReader::try_new(damaged.as_slice(), None)),
                Err(error) => {
                    refused += usize::from(error.to_string().contains("no readable type"));
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
