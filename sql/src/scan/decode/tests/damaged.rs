//! Handmade pages whose headers contradict their contents.

use super::super::ColumnDecoder;
use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Repetition, Type};
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::schema::types::{ColumnDescriptor, ColumnPath, Type as SchemaType};
use std::sync::Arc;

/// Appends an integer in Thrift's compact protocol.
fn integer(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Returns a struct of integers in Thrift's compact protocol.
fn integers(fields: &[(u8, i64)]) -> Vec<u8> {
    let (mut out, mut last) = (Vec::new(), 0);
    for (field, value) in fields {
        out.push((field - last) << 4 | 5);
        integer(*value, &mut out);
        last = *field;
    }
    out.push(0);
    out
}

/// Returns a page of kind `kind`, whose details are field `outer` of its header.
fn page(kind: i64, crc: Option<u32>, outer: u8, details: &[(u8, i64)], body: &[u8]) -> Vec<u8> {
    let len = body.len() as i64;
    let mut sizes = vec![(1, kind), (2, len), (3, len)];
    sizes.extend(crc.map(|crc| (4, i64::from(crc as i32))));
    let mut page = integers(&sizes);
    page.pop();
    page.push((outer - sizes.len() as u8) << 4 | 12);
    page.extend(integers(details));
    page.push(0);
    page.extend(body);
    page
}

/// Returns a page of version 1 with `rows` plain values.
fn plain(rows: i64, crc: Option<u32>, values: &[u8]) -> Vec<u8> {
    page(0, crc, 5, &[(1, rows), (2, 0), (3, 3), (4, 3)], values)
}

/// Returns a page of version 2 whose header states `nulls` nulls.
fn version_2(rows: i64, nulls: i64, levels: &[u8], values: &[u8]) -> Vec<u8> {
    let len = levels.len() as i64;
    let details = [(1, rows), (2, nulls), (3, rows), (4, 0), (5, len), (6, 0)];
    page(3, None, 8, &details, &[levels, values].concat())
}

fn numbers(values: std::ops::Range<i64>) -> Vec<u8> {
    values.flat_map(i64::to_le_bytes).collect()
}

fn chunk(kind: Type, nullable: bool, len: usize, compression: Compression) -> ColumnChunkMetaData {
    let repetition = if nullable { Repetition::OPTIONAL } else { Repetition::REQUIRED };
    let field = SchemaType::primitive_type_builder("a", kind).with_repetition(repetition);
    let path = ColumnPath::new(vec!["a".to_owned()]);
    let field = Arc::new(field.build().unwrap());
    let column = Arc::new(ColumnDescriptor::new(field, i16::from(nullable), 0, path));
    let builder = ColumnChunkMetaData::builder(column).set_compression(compression);
    let builder = builder.set_encodings(vec![Encoding::PLAIN, Encoding::RLE]);
    builder.set_total_compressed_size(len as i64).build().unwrap()
}

/// Reads the whole chunk of these pages, in a row group of `rows` rows.
fn read(pages: &[Vec<u8>], kind: Type, nullable: bool, rows: usize) -> Result<ArrayRef> {
    let bytes = pages.concat();
    let chunk = chunk(kind, nullable, bytes.len(), Compression::UNCOMPRESSED);
    let target = if kind == Type::BOOLEAN { DataType::Boolean } else { DataType::Int64 };
    let mut decoder = ColumnDecoder::new(&chunk, rows, Bytes::from(bytes), 0, target)?;
    let array = decoder.read(rows, None)?;
    decoder.finish()?;
    Ok(array)
}

#[test]
fn nulls_are_where_the_levels_are() {
    // Rows 2, 5 and 6 of 8 are null: a packed run of one group.
    let levels = [3, 0b1001_1011];
    let rows = [Some(0), Some(1), None, Some(2), Some(3), None, None, Some(4)];
    for nulls in [0, 3, 8] {
        let pages = [version_2(8, nulls, &levels, &numbers(0..5))];
        let read = read(&pages, Type::INT64, true, 8).unwrap();
        assert_eq!(&read, &(Arc::new(Int64Array::from(rows.to_vec())) as ArrayRef), "{nulls}");
    }
    let flags: Vec<Option<bool>> = rows.map(|row| row.map(|value| value % 2 == 1)).to_vec();
    let pages = [version_2(8, 0, &levels, &[0b0000_1010])];
    let flagged = read(&pages, Type::BOOLEAN, true, 8).unwrap();
    assert_eq!(&flagged, &(Arc::new(BooleanArray::from(flags)) as ArrayRef));
    let without = [version_2(8, 0, &[], &numbers(0..8))];
    assert_eq!(read(&without, Type::INT64, true, 8).unwrap().null_count(), 0);
    assert!(read(&[version_2(8, 3, &[], &numbers(0..5))], Type::INT64, true, 8).is_err());
}

#[test]
fn chunks_end_with_their_row_group() {
    let (first, second) = (plain(10, None, &numbers(0..10)), plain(10, None, &numbers(10..20)));
    let empty = plain(0, None, &[]);
    let index = page(1, None, 6, &[], b"abcd");
    let pages = [first.clone(), index.clone(), empty.clone(), second.clone(), empty, index];
    let all: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20));
    assert_eq!(&read(&pages, Type::INT64, false, 20).unwrap(), &all);

    let doubled = [first.clone(), first.clone(), second.clone()];
    let error = read(&doubled, Type::INT64, false, 20).unwrap_err().to_string();
    assert!(error.contains("more rows"), "{error}");
    let longer = [first.clone(), plain(11, None, &numbers(10..21))];
    assert!(read(&longer, Type::INT64, false, 20).unwrap_err().to_string().contains("more rows"));
    let error = read(&[first], Type::INT64, false, 20).unwrap_err().to_string();
    assert!(error.contains("fewer rows"), "{error}");
}

#[test]
fn rows_that_are_passed_over_count() {
    let pages = [plain(10, None, &numbers(0..10)), plain(10, None, &numbers(10..20))];
    let finish = |pages: &[Vec<u8>], rows: usize, read: usize| {
        let bytes = Bytes::from(pages.concat());
        let chunk = chunk(Type::INT64, false, bytes.len(), Compression::UNCOMPRESSED);
        let mut decoder = ColumnDecoder::new(&chunk, rows, bytes, 0, DataType::Int64).unwrap();
        decoder.read(read, None).unwrap();
        decoder.skip(rows - read).unwrap();
        decoder.finish()
    };
    for read in [0, 4, 10, 13, 20] {
        finish(&pages, 20, read).unwrap();
    }
    for read in [0, 4, 10] {
        assert!(finish(&pages, 15, read).unwrap_err().to_string().contains("more rows"));
        assert!(finish(&pages, 21, read).unwrap_err().to_string().contains("fewer rows"));
    }
}

#[test]
fn checksums_are_compared() {
    let values = numbers(0..10);
    let crc = crc32fast::hash(&values);
    let good = [plain(10, Some(crc), &values)];
    assert_eq!(read(&good, Type::INT64, false, 10).unwrap().len(), 10);
    let mut flipped = values;
    flipped[33] ^= 4;
    let error = read(&[plain(10, Some(crc), &flipped)], Type::INT64, false, 10).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn pages_do_not_become_larger_than_their_codec_allows() {
    for compression in
        [Compression::SNAPPY, Compression::LZ4_RAW, Compression::ZSTD(Default::default())]
    {
        let (kind, len) = (0, i64::from(i32::MAX));
        let mut bytes = integers(&[(1, kind), (2, len), (3, 40)]);
        bytes.pop();
        bytes.push(2 << 4 | 12);
        bytes.extend(integers(&[(1, 10), (2, 0), (3, 3), (4, 3)]));
        bytes.extend([0; 41]);
        let chunk = chunk(Type::INT64, false, bytes.len(), compression);
        let mut decoder =
            ColumnDecoder::new(&chunk, 10, Bytes::from(bytes), 0, DataType::Int64).unwrap();
        let error = decoder.read(10, None).unwrap_err().to_string();
        assert!(error.contains("implausible"), "{compression}: {error}");
    }
}
