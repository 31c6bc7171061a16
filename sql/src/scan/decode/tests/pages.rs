//! Skipped pages are not decoded; strings that are not UTF-8 are errors.

use super::super::supports;
use super::common::{Layout, metadata, open, write};
use arrow_array::{Array, ArrayRef, BinaryArray, StringViewArray};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::properties::WriterVersion;
use std::sync::Arc;

fn layout(dictionary: bool, small_pages: bool) -> Layout {
    Layout {
        nullable: false,
        dictionary,
        overflow: false,
        version: WriterVersion::PARQUET_1_0,
        compression: Compression::UNCOMPRESSED,
        small_pages,
    }
}

#[test]
fn pages_passed_over_are_not_decoded() {
    let strings = (0..1000).map(|row| Some(format!("row {row:03}")));
    let array: ArrayRef = Arc::new(strings.collect::<StringViewArray>());
    let file = write(&array, &layout(false, true));
    let metadata = metadata(&file);
    let mut bytes = file.to_vec();
    // No value can be found after this length.
    let marker = bytes.windows(7).position(|window| window == b"row 500").unwrap();
    bytes[marker - 4..marker].fill(0xff);
    let file = Bytes::from(bytes);
    let decoder = || open(&file, &metadata, 0, &DataType::Utf8View);
    assert!(decoder().read(1000, None).is_err());
    let mut failed = decoder();
    assert!(failed.read(1000, None).is_err());
    assert!(failed.read(0, None).is_err() || failed.read(0, None).unwrap().is_empty());

    let mut skipping = decoder();
    assert_eq!(&skipping.read(300, None).unwrap(), &array.slice(0, 300));
    skipping.skip(400).unwrap();
    assert_eq!(&skipping.read(300, None).unwrap(), &array.slice(700, 300));
    assert!(skipping.skip(1).is_err());

    let ends = BooleanBuffer::collect_bool(1000, |row| !(300..700).contains(&row));
    let read = decoder().read(1000, Some(&ends)).unwrap();
    assert_eq!(&read.slice(300, 300), &array.slice(700, 300));
    let none = decoder().read(1000, Some(&BooleanBuffer::new_unset(1000))).unwrap();
    assert!(none.is_empty());
}

#[test]
fn invalid_strings_are_errors() {
    let long = [b'x'; 200];
    let cases: [(&[&[u8]], bool); 6] = [
        (&["aé".as_bytes(), b"b", &long, "𝄞".as_bytes()], true),
        (&[b"a", b"\xff"], false),
        (&[b"a", b"\x80"], false),
        (&[b"cut off \xc3"], false),
        // The first byte of the next length, 0x80, completes the truncated character.
        (&[b"cut off \xc3", &[b'y'; 128]], false),
        (&[&long, b"\xa9 goes on"], false),
    ];
    for (values, valid) in cases {
        for dictionary in [false, true] {
            let array: ArrayRef = Arc::new(BinaryArray::from(values.to_vec()));
            let file = write(&array, &layout(dictionary, false));
            let metadata = metadata(&file);
            for target in [DataType::Utf8View, DataType::Utf8] {
                let read = open(&file, &metadata, 0, &target).read(values.len(), None);
                assert_eq!(read.is_ok(), valid, "{values:?} {dictionary} {target}");
            }
            let read = open(&file, &metadata, 0, &DataType::Binary).read(values.len(), None);
            assert_eq!(&read.unwrap(), &array);
        }
    }
}

#[test]
fn other_types_are_not_supported() {
    let array: ArrayRef = Arc::new(StringViewArray::from(vec!["a"]));
    let file = write(&array, &layout(true, false));
    let metadata = metadata(&file);
    for target in [DataType::Int32, DataType::LargeUtf8, DataType::Decimal128(5, 2)] {
        assert!(!supports(metadata.row_group(0).column(0), &target));
    }
}

#[test]
fn decoders_go_to_other_threads() {
    fn is_send<T: Send>() {}
    is_send::<super::super::ColumnDecoder>();
}

#[test]
fn reads_other_compressions() {
    let strings = (0..2000).map(|row| Some(format!("string {row} of some length")));
    let array: ArrayRef = Arc::new(strings.collect::<StringViewArray>());
    for compression in [Compression::ZSTD(Default::default()), Compression::LZ4_RAW] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let layout = Layout { compression, version, ..layout(false, true) };
            let file = write(&array, &layout);
            let read = open(&file, &metadata(&file), 0, &DataType::Utf8View).read(2000, None);
            assert_eq!(&read.unwrap(), &array, "{layout:?}");
        }
    }
}
