//! Values of generated columns: NULL, NaN, both zeros, extremes, empty and huge texts, duplicates,
//! skew, sorted runs.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, FixedSizeBinaryArray, Float64Array, Int64Array, Int64Builder,
        IntervalMonthDayNanoArray, ListBuilder, MapBuilder, NullArray, StringArray, StringBuilder,
        StructArray,
    },
    buffer::NullBuffer,
    compute::cast,
    datatypes::{DataType, Fields, IntervalMonthDayNano, TimeUnit},
};

use super::{random::Random, types::Class};

/// Distribution of the values of a column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    percent_null: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This many distinct values.
    Few(i64),
    /// Nine of ten values are equal.
    Skewed,
    /// Distinct ascending values.
    Ascending,
    /// Values with the bounds of the type's range among them.
    Extreme,
}

impl Spread {
    /// Distinct ascending values without NULL.
    pub(crate) const UNIQUE: Self = Self { percent_null: 0, kind: Kind::Ascending };

    /// Picks a distribution.
    pub(crate) fn random(random: &mut Random) -> Self {
        let kinds = [
            Kind::Few(2),
            Kind::Few(5),
            Kind::Few(5),
            Kind::Few(40),
            Kind::Skewed,
            Kind::Ascending,
            Kind::Extreme,
        ];
        let percent_null = *random.one(&[0, 0, 0, 10, 10, 50, 100]);
        Self { percent_null, kind: *random.one(&kinds) }
    }

    /// Returns the numbers that values are derived from; `None` is NULL.
    fn numbers(self, rows: usize, random: &mut Random) -> Vec<Option<i64>> {
        let number = |row: usize, random: &mut Random| match self.kind {
            Kind::Few(count) => random.between(0, count - 1),
            Kind::Skewed => match random.chance(90) {
                true => 1,
                false => random.between(0, 20),
            },
            Kind::Ascending => row as i64,
            Kind::Extreme => *random.one(&[i64::MIN, i64::MAX, -1, 0, 1, 7]),
        };
        (0..rows)
            .map(|row| {
                let number = number(row, random);
                (!random.chance(self.percent_null)).then_some(number)
            })
            .collect()
    }
}

/// Creates a column.
pub(crate) fn column(
    class: Class,
    data_type: &DataType,
    spread: Spread,
    rows: usize,
    random: &mut Random,
) -> ArrayRef {
    let numbers = spread.numbers(rows, random);
    match class {
        Class::Bool => {
            let values = numbers.iter().map(|number| number.map(|number| number % 2 == 0));
            Arc::new(values.collect::<BooleanArray>())
        }
        Class::Int => ints(&numbers, data_type),
        Class::Float => {
            let values = numbers.iter().map(|number| number.map(|number| float(number, random)));
            cast(&values.collect::<Float64Array>(), data_type).unwrap()
        }
        Class::Decimal => {
            let small = limited(&numbers, -99_999, 99_999);
            let quarters = small.iter().map(|number| number.map(|number| number as f64 / 4.0));
            cast(&quarters.collect::<Float64Array>(), data_type).unwrap()
        }
        Class::Text => {
            let values = numbers.iter().map(|number| number.map(text));
            cast(&values.collect::<StringArray>(), data_type).unwrap()
        }
        Class::Date => {
            let days = limited(&numbers, -1000, 40_000);
            let days = cast(&Int64Array::from(days), &DataType::Int32).unwrap();
            cast(&cast(&days, &DataType::Date32).unwrap(), data_type).unwrap()
        }
        Class::Stamp => stamps(&numbers, data_type),
        Class::Time => times(&numbers, data_type),
        Class::Span => spans(&numbers, data_type),
        Class::Binary => binaries(&numbers, data_type),
        Class::Ints => int_lists(&numbers, data_type),
        Class::Texts => text_lists(&numbers, data_type),
        Class::Struct => structs(&numbers, data_type),
        Class::Map => maps(&numbers),
        Class::Null => Arc::new(NullArray::new(rows)),
    }
}

/// Returns the numbers, clamped to the range.
fn limited(numbers: &[Option<i64>], first: i64, last: i64) -> Vec<Option<i64>> {
    numbers.iter().map(|number| number.map(|number| number.clamp(first, last))).collect()
}

fn ints(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let (first, last) = match data_type {
        DataType::Int8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DataType::Int16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::UInt8 => (0, i64::from(u8::MAX)),
        DataType::UInt16 => (0, i64::from(u16::MAX)),
        DataType::UInt32 => (0, i64::from(u32::MAX)),
        DataType::UInt64 => (0, i64::MAX),
        _ => (i64::MIN, i64::MAX),
    };
    cast(&Int64Array::from(limited(numbers, first, last)), data_type).unwrap()
}

/// Quarters, whose sums are exact, and the special values of floats.
fn float(number: i64, random: &mut Random) -> f64 {
    match number {
        i64::MIN => *random.one(&[f64::NEG_INFINITY, -0.0, f64::NAN]),
        i64::MAX => *random.one(&[f64::INFINITY, f64::NAN]),
        0 => *random.one(&[0.0, -0.0]),
        number => number as f64 / 4.0,
    }
}

fn text(number: i64) -> String {
    match number {
        i64::MIN => String::new(),
        i64::MAX => "huge ".repeat(900),
        0 => String::new(),
        2 => "%_\\'\"".to_owned(),
        3 => "ÄÖÜ €uro 🙂".to_owned(),
        4 => "a text of more than twelve bytes".to_owned(),
        5 => "a text of more than twelve bytex".to_owned(),
        number => format!("t{number}"),
    }
}

fn stamps(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let DataType::Timestamp(unit, _) = data_type else { unreachable!("{data_type}") };
    let scale = match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    };
    // Steps of an hour and a second, in this century.
    let second = |number: i64| (1_700_000_000 + number.clamp(-10_000, 10_000) * 3601) * scale;
    let values = numbers.iter().map(|number| number.map(second)).collect::<Int64Array>();
    cast(&values, data_type).unwrap()
}

fn times(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let values = Int64Array::from(limited(numbers, 0, 86_399));
    match data_type {
        DataType::Time64(_) => cast(&values, data_type).unwrap(),
        _ => cast(&cast(&values, &DataType::Int32).unwrap(), data_type).unwrap(),
    }
}

fn spans(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let small = limited(numbers, -9, 999);
    if matches!(data_type, DataType::Duration(_)) {
        return cast(&Int64Array::from(small), data_type).unwrap();
    }
    let span = |number: i64| IntervalMonthDayNano::new(number as i32, (number % 7) as i32, number);
    let values = small.into_iter().map(|number| number.map(span));
    Arc::new(values.collect::<IntervalMonthDayNanoArray>())
}

fn binaries(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    if let DataType::FixedSizeBinary(size) = data_type {
        let bytes = |number: i64| number.to_le_bytes()[..3].to_vec();
        let values = numbers.iter().map(|number| number.map(bytes));
        let array = FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, *size);
        return Arc::new(array.unwrap());
    }
    let values = numbers.iter().map(|number| number.map(text)).collect::<StringArray>();
    cast(&cast(&values, &DataType::Binary).unwrap(), data_type).unwrap()
}

/// Length of a list: two items if its size is fixed, sometimes with a NULL item.
fn size_of_list(number: i64, data_type: &DataType) -> i64 {
    match data_type {
        DataType::FixedSizeList(..) => 2,
        _ => number.rem_euclid(4),
    }
}

fn int_lists(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let mut builder = ListBuilder::new(Int64Builder::new());
    for number in numbers {
        for item in 0..size_of_list(number.unwrap_or(0), data_type) {
            let value = number.unwrap_or(0).clamp(-99, 99) + item;
            builder.values().append_option((value % 5 != 3).then_some(value));
        }
        builder.append(number.is_some());
    }
    cast(&builder.finish(), data_type).unwrap()
}

fn text_lists(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for number in numbers {
        for item in 0..size_of_list(number.unwrap_or(0), data_type) {
            builder.values().append_value(text(number.unwrap_or(0).clamp(-9, 9) + item));
        }
        builder.append(number.is_some());
    }
    cast(&builder.finish(), data_type).unwrap()
}

fn structs(numbers: &[Option<i64>], data_type: &DataType) -> ArrayRef {
    let DataType::Struct(fields) = data_type else { unreachable!("{data_type}") };
    let fields: Fields = fields.clone();
    let ints: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    let texts = numbers.iter().map(|number| number.filter(|number| number % 3 != 0).map(text));
    let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
    let nulls = NullBuffer::from_iter(numbers.iter().map(Option::is_some));
    Arc::new(StructArray::try_new(fields, vec![ints, texts], Some(nulls)).unwrap())
}

fn maps(numbers: &[Option<i64>]) -> ArrayRef {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for number in numbers {
        for item in 0..number.unwrap_or(0).rem_euclid(3) {
            builder.keys().append_value(format!("k{item}"));
            builder.values().append_option((item > 0).then_some(item));
        }
        builder.append(number.is_some()).unwrap();
    }
    Arc::new(builder.finish())
}
