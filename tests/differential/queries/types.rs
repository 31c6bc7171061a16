//! The types of generated columns, and the classes of expressions that can use them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

use super::random::Random;

/// Types whose values can be mixed in an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Bool,
    Int,
    Float,
    Decimal,
    Text,
    Date,
    Stamp,
    Time,
    Span,
    Binary,
    Ints,
    Texts,
    Struct,
    Map,
    Null,
}

/// Frequent classes of columns.
const USUAL: [Class; 7] =
    [Class::Int, Class::Int, Class::Text, Class::Text, Class::Float, Class::Decimal, Class::Date];
const OTHERS: [Class; 10] = [
    Class::Bool,
    Class::Stamp,
    Class::Time,
    Class::Span,
    Class::Binary,
    Class::Ints,
    Class::Texts,
    Class::Struct,
    Class::Map,
    Class::Null,
];

impl Class {
    /// Picks the class of a column.
    pub(crate) fn random(random: &mut Random) -> Self {
        if random.chance(60) { *random.one(&USUAL) } else { *random.one(&OTHERS) }
    }

    /// Whether values have an order that both engines define.
    pub(crate) fn is_ordered(self) -> bool {
        !matches!(
            self,
            Self::Span | Self::Map | Self::Struct | Self::Ints | Self::Texts | Self::Null
        )
    }

    /// Whether rows can be grouped by values.
    pub(crate) fn is_key(self) -> bool {
        !matches!(self, Self::Map | Self::Null)
    }

    /// Returns the SQL type that values of the class are cast to where types must agree.
    pub(crate) fn common_type(self) -> Option<&'static str> {
        Some(match self {
            Self::Bool => "BOOLEAN",
            Self::Int => "BIGINT",
            Self::Float => "DOUBLE",
            Self::Decimal => "DECIMAL(38, 4)",
            Self::Text => "VARCHAR",
            Self::Date => "DATE",
            Self::Stamp => "TIMESTAMP",
            _ => return None,
        })
    }

    /// Picks an Arrow type of the class.
    pub(crate) fn data_type(self, random: &mut Random) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int => random.one(&INTS).clone(),
            Self::Float => random.one(&[DataType::Float64, DataType::Float32]).clone(),
            Self::Decimal => random.one(&DECIMALS).clone(),
            Self::Text => text(random),
            Self::Date => random.one(&[DataType::Date32, DataType::Date64]).clone(),
            Self::Stamp => stamp(random),
            Self::Time => random.one(&TIMES).clone(),
            Self::Span => random
                .one(&[
                    DataType::Interval(IntervalUnit::MonthDayNano),
                    DataType::Duration(TimeUnit::Millisecond),
                ])
                .clone(),
            Self::Binary => random.one(&BINARIES).clone(),
            Self::Ints => list(DataType::Int64, random),
            Self::Texts => list(DataType::Utf8, random),
            Self::Struct => DataType::Struct(
                vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]
                    .into(),
            ),
            Self::Map => map(),
            Self::Null => DataType::Null,
        }
    }
}

const INTS: [DataType; 10] = [
    DataType::Int64,
    DataType::Int64,
    DataType::Int32,
    DataType::Int32,
    DataType::Int16,
    DataType::Int8,
    DataType::UInt64,
    DataType::UInt32,
    DataType::UInt16,
    DataType::UInt8,
];
const DECIMALS: [DataType; 5] = [
    DataType::Decimal128(9, 2),
    DataType::Decimal128(30, 4),
    DataType::Decimal256(40, 3),
    DataType::Decimal32(7, 2),
    DataType::Decimal64(15, 1),
];
const TIMES: [DataType; 3] = [
    DataType::Time32(TimeUnit::Second),
    DataType::Time32(TimeUnit::Millisecond),
    DataType::Time64(TimeUnit::Nanosecond),
];
const BINARIES: [DataType; 4] =
    [DataType::Binary, DataType::LargeBinary, DataType::BinaryView, DataType::FixedSizeBinary(3)];

fn text(random: &mut Random) -> DataType {
    let keys = random.one(&[DataType::Int32, DataType::UInt16]).clone();
    let dictionary = DataType::Dictionary(Box::new(keys), Box::new(DataType::Utf8));
    random.one(&[DataType::Utf8, DataType::Utf8View, DataType::LargeUtf8, dictionary]).clone()
}

fn stamp(random: &mut Random) -> DataType {
    let units =
        [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond];
    let zone = random.one(&[None, None, Some("UTC"), Some("+02:00")]).map(Into::into);
    DataType::Timestamp(*random.one(&units), zone)
}

fn list(item: DataType, random: &mut Random) -> DataType {
    let item = Arc::new(Field::new_list_field(item, true));
    let choices = [
        DataType::List(Arc::clone(&item)),
        DataType::LargeList(Arc::clone(&item)),
        DataType::FixedSizeList(item, 2),
    ];
    random.one(&choices).clone()
}

fn map() -> DataType {
    let parts = vec![
        Field::new("keys", DataType::Utf8, false),
        Field::new("values", DataType::Int64, true),
    ];
    let entries = Field::new("entries", DataType::Struct(parts.into()), false);
    DataType::Map(Arc::new(entries), false)
}
