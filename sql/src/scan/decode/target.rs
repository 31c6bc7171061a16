//! The supported columns, and the decoder for each type.

use super::fixed::{BigEndian, Booleans, FromStored, LittleEndian, Primitive, Stored};
use super::strings::{Output, Strings};
use super::values::{TypedDecoder, ValueDecoder};
use arrow_array::types::*;
use arrow_schema::{DataType, TimeUnit};
use parquet::basic::{
    Compression, ConvertedType, Encoding, LogicalType, TimeUnit as StoredUnit, Type,
};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::schema::types::ColumnDescriptor;

/// Returns whether a column chunk can be decoded to arrays of type `target`. It must be flat, of
/// the type that corresponds to `target`, and in supported encodings and compressions.
pub(in super::super) fn supports(chunk: &ColumnChunkMetaData, target: &DataType) -> bool {
    let column = chunk.column_descr();
    let flat = column.max_rep_level() == 0
        && column.max_def_level() <= 1
        // A required field of a nullable struct has a definition level, but that of its parent.
        && column.path().parts().len() == 1;
    let decodable = chunk.encodings().all(|encoding| {
        match encoding {
            Encoding::PLAIN | Encoding::RLE => true,
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => true,
            // Some writers use this name for the encoding of levels that a column does not have.
            #[expect(deprecated, reason = "files still name it")]
            Encoding::BIT_PACKED => true,
            _ => false,
        }
    });
    let compression = matches!(
        chunk.compression(),
        Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::ZSTD(_)
            | Compression::LZ4
            | Compression::LZ4_RAW
    );
    let in_same_file = chunk.file_path().is_none();
    flat && decodable && compression && in_same_file && value_decoder(column, target).is_some()
}

/// Returns the decoder of a column's values to arrays of type `target`; `None` if unsupported.
pub(crate) fn value_decoder(
    column: &ColumnDescriptor,
    target: &DataType,
) -> Option<Box<dyn ValueDecoder>> {
    let logical = logical_type(column);
    match column.physical_type() {
        Type::BOOLEAN => (*target == DataType::Boolean && logical.is_none())
            .then(|| Box::new(TypedDecoder::new(Booleans)) as Box<dyn ValueDecoder>),
        Type::INT32 => from_i32(logical, target),
        Type::INT64 => from_i64(logical, target),
        Type::FLOAT => {
            (*target == DataType::Float32).then(|| primitive::<f32, f32, Float32Type>(target))
        }
        Type::DOUBLE => {
            (*target == DataType::Float64).then(|| primitive::<f64, f64, Float64Type>(target))
        }
        Type::BYTE_ARRAY => strings(logical, target),
        Type::FIXED_LEN_BYTE_ARRAY => {
            let width = usize::try_from(column.type_length()).ok()?;
            let known = (1..=16).contains(&width) && is_decimal(logical.as_ref(), target);
            known.then(|| {
                let encoding =
                    Primitive::<_, Decimal128Type>::new(BigEndian::new(width), target.clone());
                Box::new(TypedDecoder::new(encoding)) as Box<dyn ValueDecoder>
            })
        }
        Type::INT96 => None,
    }
}

/// Returns the decoder of little-endian values stored as `S` to arrays of type `T`.
fn primitive<S, N, T>(target: &DataType) -> Box<dyn ValueDecoder>
where
    S: Stored + 'static,
    N: FromStored<S> + 'static,
    T: ArrowPrimitiveType<Native = N> + Send,
{
    let encoding = Primitive::<_, T>::new(LittleEndian::<S, N>::new(), target.clone());
    Box::new(TypedDecoder::new(encoding))
}

/// Returns the decoder of 32-bit integers.
fn from_i32(logical: Option<LogicalType>, target: &DataType) -> Option<Box<dyn ValueDecoder>> {
    let logical = logical.unwrap_or(LogicalType::integer(32, true));
    Some(match (target, &logical) {
        (DataType::Decimal128(_, _), _) if is_decimal(Some(&logical), target) => {
            primitive::<i32, i128, Decimal128Type>(target)
        }
        (DataType::Date32, LogicalType::Date) => primitive::<i32, i32, Date32Type>(target),
        (DataType::Time32(TimeUnit::Millisecond), LogicalType::Time(time))
            if time.unit == StoredUnit::MILLIS =>
        {
            primitive::<i32, i32, Time32MillisecondType>(target)
        }
        (target, LogicalType::Integer(int)) => match (target, int.bit_width, int.is_signed) {
            (DataType::Int8, 8, true) => primitive::<i32, i8, Int8Type>(target),
            (DataType::Int16, 16, true) => primitive::<i32, i16, Int16Type>(target),
            (DataType::Int32, 32, true) => primitive::<i32, i32, Int32Type>(target),
            (DataType::UInt8, 8, false) => primitive::<i32, u8, UInt8Type>(target),
            (DataType::UInt16, 16, false) => primitive::<i32, u16, UInt16Type>(target),
            (DataType::UInt32, 32, false) => primitive::<i32, u32, UInt32Type>(target),
            _ => return None,
        },
        _ => return None,
    })
}

/// Returns the decoder of 64-bit integers.
fn from_i64(logical: Option<LogicalType>, target: &DataType) -> Option<Box<dyn ValueDecoder>> {
    let logical = logical.unwrap_or(LogicalType::integer(64, true));
    Some(match (target, &logical) {
        (DataType::Decimal128(_, _), _) if is_decimal(Some(&logical), target) => {
            primitive::<i64, i128, Decimal128Type>(target)
        }
        (DataType::Timestamp(unit, _), LogicalType::Timestamp(stored)) => {
            match (unit, stored.unit) {
                (TimeUnit::Millisecond, StoredUnit::MILLIS) => {
                    primitive::<i64, i64, TimestampMillisecondType>(target)
                }
                (TimeUnit::Microsecond, StoredUnit::MICROS) => {
                    primitive::<i64, i64, TimestampMicrosecondType>(target)
                }
                (TimeUnit::Nanosecond, StoredUnit::NANOS) => {
                    primitive::<i64, i64, TimestampNanosecondType>(target)
                }
                _ => return None,
            }
        }
        (DataType::Time64(unit), LogicalType::Time(stored)) => match (unit, stored.unit) {
            (TimeUnit::Microsecond, StoredUnit::MICROS) => {
                primitive::<i64, i64, Time64MicrosecondType>(target)
            }
            (TimeUnit::Nanosecond, StoredUnit::NANOS) => {
                primitive::<i64, i64, Time64NanosecondType>(target)
            }
            _ => return None,
        },
        (target, LogicalType::Integer(int)) => match (target, int.bit_width, int.is_signed) {
            (DataType::Int64, 64, true) => primitive::<i64, i64, Int64Type>(target),
            (DataType::UInt64, 64, false) => primitive::<i64, u64, UInt64Type>(target),
            _ => return None,
        },
        _ => return None,
    })
}

/// Returns the decoder of byte arrays.
fn strings(logical: Option<LogicalType>, target: &DataType) -> Option<Box<dyn ValueDecoder>> {
    use LogicalType::{Bson, Enum, Json, String};
    let output = match (target, logical) {
        (DataType::Utf8View, None | Some(String | Enum | Json)) => Output::StringView,
        (DataType::Utf8, None | Some(String | Enum | Json)) => Output::String,
        (DataType::BinaryView, None | Some(String | Enum | Json | Bson)) => Output::BinaryView,
        (DataType::Binary, None | Some(String | Enum | Json | Bson)) => Output::Binary,
        _ => return None,
    };
    Some(Box::new(TypedDecoder::new(Strings::new(output))))
}

/// Returns whether both are decimals of the same precision and scale.
fn is_decimal(logical: Option<&LogicalType>, target: &DataType) -> bool {
    match (logical, target) {
        (Some(LogicalType::Decimal(stored)), DataType::Decimal128(precision, scale)) => {
            stored.precision == i32::from(*precision) && stored.scale == i32::from(*scale)
        }
        _ => false,
    }
}

/// Returns a column's logical type; older files state only a converted type.
fn logical_type(column: &ColumnDescriptor) -> Option<LogicalType> {
    if let Some(logical) = column.logical_type_ref() {
        return Some(logical.clone());
    }
    Some(match column.converted_type() {
        ConvertedType::UTF8 => LogicalType::String,
        ConvertedType::ENUM => LogicalType::Enum,
        ConvertedType::JSON => LogicalType::Json,
        ConvertedType::BSON => LogicalType::Bson,
        ConvertedType::DATE => LogicalType::Date,
        ConvertedType::DECIMAL => {
            LogicalType::decimal(column.type_scale(), column.type_precision())
        }
        ConvertedType::TIME_MILLIS => LogicalType::time(true, StoredUnit::MILLIS),
        ConvertedType::TIME_MICROS => LogicalType::time(true, StoredUnit::MICROS),
        ConvertedType::TIMESTAMP_MILLIS => LogicalType::timestamp(true, StoredUnit::MILLIS),
        ConvertedType::TIMESTAMP_MICROS => LogicalType::timestamp(true, StoredUnit::MICROS),
        ConvertedType::UINT_8 => LogicalType::integer(8, false),
        ConvertedType::UINT_16 => LogicalType::integer(16, false),
        ConvertedType::UINT_32 => LogicalType::integer(32, false),
        ConvertedType::UINT_64 => LogicalType::integer(64, false),
        ConvertedType::INT_8 => LogicalType::integer(8, true),
        ConvertedType::INT_16 => LogicalType::integer(16, true),
        ConvertedType::INT_32 => LogicalType::integer(32, true),
        ConvertedType::INT_64 => LogicalType::integer(64, true),
        ConvertedType::NONE => return None,
        // The values of these columns have no counterpart among the targets.
        _ => LogicalType::Unknown,
    })
}
