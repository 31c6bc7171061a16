//! Schemas of Arrow files, checked before the arrow crate converts them.
//!
//! `arrow::ipc::convert` panics on a field with an unknown type, with a type whose parameters are
//! missing or unknown, and with a wrong number of children.

use arrow::ipc::{Endianness, Field, Int, Precision, Schema, TimeUnit, Type, UnionMode};
use datafusion::{common::exec_err, error::Result};

/// Maximum depth of nested fields; the conversion recurses once for each level.
const MAX_DEPTH: usize = 64;

/// Checks that `arrow::ipc::convert` has a data type for every field of `schema`.
///
/// # Errors
/// Names the first column that has none.
pub(super) fn check_schema(schema: &Schema<'_>) -> Result<()> {
    let Some(fields) = schema.fields() else {
        return exec_err!("it is damaged: its schema has no list of fields");
    };
    for field in fields {
        let big = schema.endianness() == Endianness::Big && field.type_type() == Type::Decimal;
        if big || !is_readable(&field, MAX_DEPTH) {
            let (name, kind) = (field.name().unwrap_or_default(), field.type_type());
            return exec_err!("it is damaged: column {name:?} has no readable type ({kind:?})");
        }
    }
    Ok(())
}

/// Returns whether `arrow::ipc::convert` has a data type for `field`.
fn is_readable(field: &Field<'_>, depth: usize) -> bool {
    let index_type = field.dictionary().map(|dictionary| dictionary.indexType());
    let has_index = index_type.is_none_or(|index| index.is_some_and(|index| is_integer(&index)));
    let children = field.children();
    has_index
        && has_parameters(field, children.map_or(0, |children| children.len()))
        && depth > 0
        && children.iter().flatten().all(|child| is_readable(&child, depth - 1))
}

/// Returns whether the parameters of the field's type are present and known.
fn has_parameters(field: &Field<'_>, children: usize) -> bool {
    match field.type_type() {
        Type::Null | Type::Bool | Type::Struct_ => true,
        Type::Binary | Type::BinaryView | Type::LargeBinary => true,
        Type::Utf8 | Type::Utf8View | Type::LargeUtf8 => true,
        Type::Int => field.type_as_int().is_some_and(|int| is_integer(&int)),
        Type::FixedSizeBinary => field.type_as_fixed_size_binary().is_some(),
        Type::FloatingPoint => field.type_as_floating_point().is_some_and(|float| {
            [Precision::HALF, Precision::SINGLE, Precision::DOUBLE].contains(&float.precision())
        }),
        Type::Date => field.type_as_date().is_some_and(|date| (0..2).contains(&date.unit().0)),
        Type::Time => field.type_as_time().is_some_and(|time| {
            let units = match time.bitWidth() {
                32 => [TimeUnit::SECOND, TimeUnit::MILLISECOND],
                64 => [TimeUnit::MICROSECOND, TimeUnit::NANOSECOND],
                _ => return false,
            };
            units.contains(&time.unit())
        }),
        Type::Timestamp => field.type_as_timestamp().is_some_and(|time| is_unit(time.unit())),
        Type::Duration => field.type_as_duration().is_some_and(|time| is_unit(time.unit())),
        Type::Interval => {
            field.type_as_interval().is_some_and(|interval| (0..3).contains(&interval.unit().0))
        }
        Type::List | Type::LargeList | Type::ListView | Type::LargeListView => children == 1,
        Type::FixedSizeList => children == 1 && field.type_as_fixed_size_list().is_some(),
        Type::Map => children == 1 && field.type_as_map().is_some(),
        Type::RunEndEncoded => children == 2,
        Type::Decimal => field.type_as_decimal().is_some_and(|decimal| {
            let fits = u8::try_from(decimal.precision()).is_ok();
            let fits = fits && i8::try_from(decimal.scale()).is_ok();
            fits && [32, 64, 128, 256].contains(&decimal.bitWidth())
        }),
        Type::Union => field.type_as_union().is_some_and(|union| {
            let known = [UnionMode::Dense, UnionMode::Sparse].contains(&union.mode());
            known && union.typeIds().is_none_or(|ids| are_union_ids(ids.iter(), children))
        }),
        _ => false,
    }
}

fn is_integer(int: &Int<'_>) -> bool {
    [8, 16, 32, 64].contains(&int.bitWidth())
}

fn is_unit(unit: TimeUnit) -> bool {
    (TimeUnit::SECOND.0..=TimeUnit::NANOSECOND.0).contains(&unit.0)
}

/// Returns whether each child has a distinct id from 0 to 127.
fn are_union_ids(ids: impl ExactSizeIterator<Item = i32>, children: usize) -> bool {
    let mut seen = [false; 128];
    ids.len() == children
        && ids.into_iter().all(|id| {
            let slot = usize::try_from(id).ok().and_then(|id| seen.get_mut(id));
            slot.is_some_and(|seen| !std::mem::replace(seen, true))
        })
}
