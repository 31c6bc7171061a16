//! Pruning by float columns, whose statistics leave NaN out.
//!
//! A row group whose bounds are 1 and 2 may contain a NaN, and NaN has a position in the order of
//! floats. NaN is greater than all numbers if its sign is positive, and less if it is negative (0.0
//! / 0.0 is negative on x86). So `x > 5` may be true in that row group. The conjuncts over one
//! float column prune only if no NaN passes all of them. `x = 5` and `x BETWEEN 3 AND 5` satisfy
//! this, `x > 5` alone does not. (DuckDB prunes if neither the bounds nor NaN can match.)

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Float32Array, Float64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    parquet::file::{
        metadata::ParquetMetaData, page_index::column_index::ColumnIndexMetaData,
        statistics::Statistics,
    },
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{Column, IsNotNullExpr, IsNullExpr},
        utils::collect_columns,
    },
};
use gatework_operators::{filter::evaluate_predicate, remap_columns};

type Exprs = Vec<Arc<dyn PhysicalExpr>>;

/// The float columns whose values a conjunct reads.
enum Floats {
    None,
    /// One float column, the conjunct's only column.
    One(usize),
    /// Several columns, at least one of them float.
    Some,
}

/// Removes those `conjuncts`, over `schema`, that a NaN may pass, and those over columns that
/// `has_nan_bounds`.
pub(in super::super) fn without_nan(
    conjuncts: Exprs,
    schema: &Schema,
    has_nan_bounds: impl Fn(&str) -> bool,
) -> Exprs {
    let mut over_one: Vec<(usize, Exprs)> = Vec::new();
    for conjunct in &conjuncts {
        let Floats::One(column) = floats(conjunct, schema) else { continue };
        match over_one.iter_mut().find(|(known, _)| *known == column) {
            Some((_, known)) => known.push(conjunct.clone()),
            None => over_one.push((column, vec![conjunct.clone()])),
        }
    }
    let sound = |(column, parts): (usize, Exprs)| {
        let field = schema.field(column);
        let sound = !has_nan_bounds(field.name()) && rejects_nan(parts, column, field);
        sound.then_some(column)
    };
    let sound: HashSet<usize> = over_one.into_iter().filter_map(sound).collect();
    let keep = |conjunct: &Arc<dyn PhysicalExpr>| match floats(conjunct, schema) {
        Floats::None => true,
        Floats::One(column) => sound.contains(&column),
        Floats::Some => false,
    };
    conjuncts.into_iter().filter(keep).collect()
}

fn floats(conjunct: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Floats {
    // Null counts are independent of the values.
    let is_null = conjunct.downcast_ref::<IsNullExpr>().map(IsNullExpr::arg);
    let operand = is_null.or(conjunct.downcast_ref::<IsNotNullExpr>().map(IsNotNullExpr::arg));
    if operand.is_some_and(|operand| operand.is::<Column>()) {
        return Floats::None;
    }
    let columns = collect_columns(conjunct);
    let is_float = |column: &Column| {
        schema.fields().get(column.index()).is_none_or(|field| has_floats(field.data_type()))
    };
    match columns.iter().next() {
        _ if !columns.iter().any(is_float) => Floats::None,
        Some(column) if columns.len() == 1 => Floats::One(column.index()),
        _ => Floats::Some,
    }
}

fn has_floats(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => has_floats(values),
        DataType::RunEndEncoded(_, values) => has_floats(values.data_type()),
        kind => kind.is_floating() || kind.is_nested(),
    }
}

/// Returns whether no NaN passes all of `conjuncts`, which are over the column at `index`.
fn rejects_nan(conjuncts: Exprs, index: usize, field: &Field) -> bool {
    let Some(values) = nans(field.data_type()) else { return false };
    let schema = Arc::new(Schema::new(vec![field.clone().with_nullable(true)]));
    let Ok(batch) = RecordBatch::try_new(schema, vec![values]) else { return false };
    let Ok(predicate) = remap_columns(conjunction(conjuncts), &[index]) else { return false };
    let passed = evaluate_predicate(predicate.as_ref(), &batch);
    passed.is_ok_and(|passed| passed.count_set_bits() == 0)
}

/// Returns the NaNs that processors produce, and the greatest and the least NaN. All other NaNs
/// compare like one of them.
fn nans(kind: &DataType) -> Option<ArrayRef> {
    match kind {
        DataType::Float32 => {
            let bits = [0x7fc0_0000, 0xffc0_0000, 0x7fff_ffff, 0xffff_ffff];
            Some(Arc::new(Float32Array::from(bits.map(f32::from_bits).to_vec())))
        }
        DataType::Float64 => {
            let bits = [0x7ff8 << 48, 0xfff8 << 48, u64::MAX >> 1, u64::MAX];
            Some(Arc::new(Float64Array::from(bits.map(f64::from_bits).to_vec())))
        }
        _ => None,
    }
}

/// Returns whether a bound of the column `leaf` in row group `group` is NaN. Some writers treated
/// NaN as a number, so their bounds are not usable.
pub(super) fn has_nan_bounds(footer: &ParquetMetaData, group: usize, leaf: usize) -> bool {
    let of_group = match footer.row_group(group).column(leaf).statistics() {
        Some(Statistics::Float(bounds)) => {
            [bounds.min_opt(), bounds.max_opt()].into_iter().flatten().any(|bound| bound.is_nan())
        }
        Some(Statistics::Double(bounds)) => {
            [bounds.min_opt(), bounds.max_opt()].into_iter().flatten().any(|bound| bound.is_nan())
        }
        _ => false,
    };
    let pages = footer.column_index().and_then(|groups| groups.get(group)?.get(leaf));
    of_group
        || match pages {
            Some(ColumnIndexMetaData::FLOAT(pages)) => {
                pages.min_values().iter().chain(pages.max_values()).any(|bound| bound.is_nan())
            }
            Some(ColumnIndexMetaData::DOUBLE(pages)) => {
                pages.min_values().iter().chain(pages.max_values()).any(|bound| bound.is_nan())
            }
            _ => false,
        }
}
