//! Random arrays, files that contain them, and random selections.

use super::super::ColumnDecoder;
use arrow_array::builder::*;
use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::sync::Arc;

/// A small generator of random numbers (splitmix64).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// Returns all types that can be decoded.
pub(super) fn types() -> Vec<DataType> {
    use DataType::*;
    vec![
        Int8,
        Int16,
        Int32,
        UInt8,
        UInt16,
        UInt32,
        Date32,
        Time32(TimeUnit::Millisecond),
        Decimal128(7, 2),
        Int64,
        UInt64,
        Timestamp(TimeUnit::Millisecond, None),
        Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Timestamp(TimeUnit::Nanosecond, Some("+02:00".into())),
        Time64(TimeUnit::Microsecond),
        Time64(TimeUnit::Nanosecond),
        Decimal128(15, 2),
        Float32,
        Float64,
        Utf8View,
        BinaryView,
        Utf8,
        Binary,
        Decimal128(30, 4),
        Decimal128(38, 0),
        Boolean,
    ]
}

/// Returns numbers with and without runs, some of them null, with few or many distinct values.
fn seeds(random: &mut Random, rows: usize, nullable: bool, distinct: usize) -> Vec<Option<u64>> {
    let mut seeds = Vec::with_capacity(rows);
    while seeds.len() < rows {
        let len = if random.one_in(3) { 1 + random.below(300) } else { 1 };
        let limit = if random.one_in(4) { 400 } else { 1 };
        let alone = 1 + random.below(limit);
        let nulls_here = nullable && random.one_in(2);
        for _ in 0..if len > 1 { 1 } else { alone } {
            let value = Random(random.below(distinct) as u64).next();
            let null = nulls_here && random.one_in(3);
            seeds.extend((0..len).map(|_| (!null).then_some(value)));
        }
    }
    seeds.truncate(rows);
    seeds
}

fn string(seed: u64) -> String {
    let mut random = Random(seed);
    let len = match random.below(8) {
        0 => 0,
        1 => 12,
        2 => 13,
        3 if random.one_in(4) => 200,
        _ => random.below(40),
    };
    let letters = if random.one_in(3) { "aé€𝄞b" } else { "abcde" };
    (0..len).filter_map(|_| letters.chars().nth(random.below(5))).collect()
}

/// Returns a random array of type `target`.
pub(super) fn array(
    random: &mut Random,
    target: &DataType,
    rows: usize,
    nullable: bool,
    distinct: usize,
) -> ArrayRef {
    let seeds = seeds(random, rows, nullable, distinct);
    let integers: PrimitiveArray<Int64Type> =
        seeds.iter().map(|seed| seed.map(|seed| seed as i64)).collect();
    macro_rules! number {
        ($t:ty) => {
            Arc::new(
                integers
                    .unary::<_, $t>(|value| value as <$t as ArrowPrimitiveType>::Native)
                    .with_data_type(target.clone()),
            )
        };
        ($t:ty, $limit:expr) => {
            Arc::new(
                integers
                    .unary::<_, $t>(|value| {
                        (value as <$t as ArrowPrimitiveType>::Native)
                            % <$t as ArrowPrimitiveType>::Native::try_from($limit).unwrap()
                    })
                    .with_data_type(target.clone()),
            )
        };
    }
    let strings = || seeds.iter().map(|seed| seed.map(string));
    let binary = || {
        seeds.iter().map(|seed| {
            seed.map(|seed| {
                string(seed).into_bytes().into_iter().map(|b| b ^ seed as u8).collect::<Vec<u8>>()
            })
        })
    };
    match target {
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::Date32 => number!(Date32Type),
        DataType::Time32(_) => number!(Time32MillisecondType, 86_400_000),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Timestamp(TimeUnit::Millisecond, _) => number!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => number!(TimestampMicrosecondType),
        DataType::Timestamp(_, _) => number!(TimestampNanosecondType),
        DataType::Time64(TimeUnit::Microsecond) => number!(Time64MicrosecondType),
        DataType::Time64(_) => number!(Time64NanosecondType),
        DataType::Decimal128(7, _) => number!(Decimal128Type, 9_999_999i64),
        DataType::Decimal128(15, _) => number!(Decimal128Type, 999_999_999_999_999i64),
        DataType::Decimal128(_, _) => number!(Decimal128Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Boolean => {
            Arc::new(seeds.iter().map(|s| s.map(|s| s & 1 == 1)).collect::<BooleanArray>())
        }
        DataType::Utf8 => Arc::new(strings().collect::<StringArray>()),
        DataType::Utf8View => Arc::new(strings().collect::<StringViewArray>()),
        DataType::Binary => {
            let mut builder = BinaryBuilder::new();
            binary().for_each(|value| builder.append_option(value));
            Arc::new(builder.finish())
        }
        DataType::BinaryView => {
            let mut builder = BinaryViewBuilder::new();
            binary().for_each(|value| builder.append_option(value));
            Arc::new(builder.finish())
        }
        other => panic!("no arrays of {other}"),
    }
}

/// The options with which a file is written.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) nullable: bool,
    pub(super) dictionary: bool,
    /// Whether the dictionary exceeds its size limit.
    pub(super) overflow: bool,
    pub(super) version: WriterVersion,
    pub(super) compression: Compression,
    pub(super) small_pages: bool,
}

impl Layout {
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for bits in 0..48 {
            let mode = bits >> 4;
            all.push(Self {
                nullable: bits & 1 == 1,
                small_pages: bits & 2 == 2,
                version: if bits & 4 == 4 {
                    WriterVersion::PARQUET_2_0
                } else {
                    WriterVersion::PARQUET_1_0
                },
                compression: if bits & 8 == 8 {
                    Compression::SNAPPY
                } else {
                    Compression::UNCOMPRESSED
                },
                dictionary: mode > 0,
                overflow: mode == 2,
            });
        }
        all
    }
}

/// Writes a file with one column.
pub(super) fn write(array: &ArrayRef, layout: &Layout) -> Bytes {
    let field = Field::new("a", array.data_type().clone(), layout.nullable);
    let schema = Arc::new(Schema::new(vec![field]));
    let mut properties = WriterProperties::builder()
        .set_writer_version(layout.version)
        .set_compression(layout.compression)
        .set_dictionary_enabled(layout.dictionary)
        .set_max_row_group_row_count(Some(2500));
    if *array.data_type() != DataType::Boolean || layout.overflow {
        properties = properties.set_encoding(Encoding::PLAIN);
    }
    if layout.small_pages {
        properties = properties
            .set_data_page_row_count_limit(150)
            .set_data_page_size_limit(1000)
            .set_write_batch_size(50);
    }
    if layout.overflow {
        properties = properties.set_dictionary_page_size_limit(600).set_write_batch_size(50);
    }
    let mut file = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut file, Arc::clone(&schema), Some(properties.build())).unwrap();
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)]).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file.into()
}

pub(super) fn metadata(file: &Bytes) -> ParquetMetaData {
    SerializedFileReader::new(file.clone()).unwrap().metadata().clone()
}

/// Opens a decoder of a file's only column in a row group.
pub(super) fn open(
    file: &Bytes,
    metadata: &ParquetMetaData,
    group: usize,
    t: &DataType,
) -> ColumnDecoder {
    let group = metadata.row_group(group);
    let chunk = group.column(0);
    let (start, len) = chunk.byte_range();
    let data = file.slice(start as usize..(start + len) as usize);
    ColumnDecoder::new(chunk, group.num_rows() as usize, data, start, t.clone()).unwrap()
}

/// Returns a selection of one of several patterns; `None` selects all rows.
pub(super) fn selection(random: &mut Random, rows: usize) -> Option<BooleanBuffer> {
    let share = [0, 1, 2, 4, 50, 1000][random.below(6)];
    match share {
        0 => None,
        1000 if random.one_in(2) => Some(BooleanBuffer::new_unset(rows)),
        1 | 1000 => {
            let mut bits = Vec::new();
            let mut set = random.one_in(2);
            while bits.len() < rows {
                let limit = [5, 100, 1000][random.below(3)];
                bits.extend(std::iter::repeat_n(set, 1 + random.below(limit)));
                set = !set;
            }
            bits.truncate(rows);
            Some(bits.into())
        }
        4 => Some((0..rows).map(|_| !random.one_in(4)).collect()),
        share => {
            // A slice, so that the bits do not begin at a byte boundary.
            let lead = random.below(70);
            let bits: BooleanBuffer = (0..rows + lead).map(|_| random.one_in(share)).collect();
            Some(bits.slice(lead, rows))
        }
    }
}
