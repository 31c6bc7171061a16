//! Workarounds for faults of Arrow's kernels that small batches expose.
//!
//! * A cast of lists to lists of a fixed size reads values from index 0, although a slice of lists
//!   starts later (`cast_list_to_fixed_size_list`, arrow-cast 59). The result is wrong values, or a
//!   panic.
//! * `LIKE` panics on a dictionary without values, which is what all-NULL rows produce
//!   (`normalized_keys`, arrow-array 59).
//!
//! Arguments of such kernels are normalized to a layout that the kernels read correctly.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, GenericListArray, MutableArrayData, OffsetSizeTrait, RecordBatch,
        make_array, new_null_array,
    },
    datatypes::{DataType, Schema},
};
use datafusion::{
    common::tree_node::{Transformed, TransformedResult, TreeNode},
    error::Result,
    logical_expr::ColumnarValue,
    physical_expr::{
        PhysicalExpr,
        expressions::{CastExpr, LikeExpr, TryCastExpr},
    },
};

/// Wraps the arguments of faulty kernels in `expr`, an expression over columns of `schema`.
pub(super) fn with_kernel_workarounds(
    expr: Arc<dyn PhysicalExpr>,
    schema: &Schema,
) -> Result<Arc<dyn PhysicalExpr>> {
    expr.transform_up(|node| {
        let cast = node.downcast_ref::<CastExpr>().map(CastExpr::cast_type);
        let cast = cast.or(node.downcast_ref::<TryCastExpr>().map(TryCastExpr::cast_type));
        let casts_lists = matches!(cast, Some(DataType::FixedSizeList(..)));
        if !casts_lists && !node.is::<LikeExpr>() {
            return Ok(Transformed::no(node));
        }
        let mut changed = false;
        let mut normalize_child = |child: &Arc<dyn PhysicalExpr>| {
            let needs_normalization = match child.data_type(schema)? {
                DataType::List(_) | DataType::LargeList(_) => casts_lists,
                DataType::Dictionary(..) => !casts_lists,
                _ => false,
            };
            changed |= needs_normalization;
            Ok(match needs_normalization {
                true => Arc::new(NormalizedArg(child.clone())) as Arc<dyn PhysicalExpr>,
                false => child.clone(),
            })
        };
        let children =
            node.children().into_iter().map(&mut normalize_child).collect::<Result<_>>()?;
        Ok(match changed {
            true => Transformed::yes(node.with_new_children(children)?),
            false => Transformed::no(node),
        })
    })
    .data()
}

/// A normalized argument: lists start at the first of their values, dictionaries have a value.
#[derive(Debug, Clone)]
struct NormalizedArg(Arc<dyn PhysicalExpr>);

impl PartialEq for NormalizedArg {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq(&other.0)
    }
}

impl Eq for NormalizedArg {}

impl Hash for NormalizedArg {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

fn normalize(values: ArrayRef) -> Result<ArrayRef> {
    Ok(match values.data_type() {
        DataType::List(_) if has_nonzero_first_offset(values.as_list::<i32>()) => {
            copied(values.as_ref())?
        }
        DataType::LargeList(_) if has_nonzero_first_offset(values.as_list::<i64>()) => {
            copied(values.as_ref())?
        }
        DataType::Dictionary(_, of) if values.as_any_dictionary().values().is_empty() => {
            // All keys are NULL.
            values.as_any_dictionary().with_values(new_null_array(of, 1))
        }
        _ => values,
    })
}

fn has_nonzero_first_offset<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> bool {
    lists.value_offsets().first().is_some_and(|first| first.as_usize() > 0)
}

fn copied(values: &dyn Array) -> Result<ArrayRef> {
    let data = values.to_data();
    let mut copy = MutableArrayData::new(vec![&data], false, values.len());
    copy.try_extend(0, 0, values.len())?;
    Ok(make_array(copy.freeze()))
}

impl fmt::Display for NormalizedArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PhysicalExpr for NormalizedArg {
    fn data_type(&self, input: &Schema) -> Result<DataType> {
        self.0.data_type(input)
    }

    fn nullable(&self, input: &Schema) -> Result<bool> {
        self.0.nullable(input)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        Ok(match self.0.evaluate(batch)? {
            ColumnarValue::Array(values) => ColumnarValue::Array(normalize(values)?),
            scalar => scalar,
        })
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.0]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self(children.swap_remove(0))))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{DictionaryArray, ListArray, StringArray},
        datatypes::{Field, Int32Type, Int64Type},
    };
    use datafusion::physical_expr::expressions::{Column, cast, like, try_cast};

    use super::*;

    fn evaluate(expr: Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
        with_kernel_workarounds(expr, &batch.schema())?
            .evaluate(batch)?
            .into_array(batch.num_rows())
    }

    #[test]
    fn slices_of_lists_keep_their_values() -> Result<()> {
        let lists = (0..6).map(|row| Some(vec![Some(row), Some(row + 10)]));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
        let batch = RecordBatch::try_from_iter([("l", lists)])?.slice(3, 2);
        let item = Arc::new(Field::new("item", DataType::Int64, true));
        let fixed = DataType::FixedSizeList(item, 2);
        let lists = || Arc::new(Column::new("l", 0));
        let casts = [
            cast(lists(), &batch.schema(), fixed.clone())?,
            try_cast(lists(), &batch.schema(), fixed)?,
        ];
        for cast in casts {
            let fixed = evaluate(cast, &batch)?;
            let values = fixed.as_fixed_size_list().values().as_primitive::<Int64Type>().clone();
            assert_eq!(values.values(), &[3, 13, 4, 14]);
        }
        Ok(())
    }

    #[test]
    fn a_dictionary_without_values_is_like_nothing() -> Result<()> {
        let nulls: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::from_iter([None::<&str>; 2]));
        assert!(nulls.as_any_dictionary().values().is_empty(), "the dictionary must be empty");
        let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        let batch =
            RecordBatch::try_from_iter_with_nullable([("d", nulls, true), ("t", text, true)])?;
        let column = |name, index| Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>;
        let expr = like(false, false, column("d", 0), column("t", 1), &batch.schema());
        assert_eq!(evaluate(expr?, &batch)?.null_count(), 2);
        Ok(())
    }
}
