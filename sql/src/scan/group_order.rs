//! Order in which a top-n's scan reads row groups: those that may have the first rows come first.
//!
//! The threshold is then close to its last value after one row group, and statistics exclude most
//! of the others. (DataFusion #21956 orders row groups alike.)

use std::cmp::Ordering;

use arrow::{
    compute::SortOptions,
    datatypes::{DataType, Schema},
};
use datafusion::{
    common::ScalarValue, parquet::arrow::arrow_reader::statistics::StatisticsConverter,
    physical_expr::expressions::Column,
};

use super::{filters::ScanThreshold, morsels::FileMorsel};

/// Order of row groups by their bound of the top-n's first sort key.
#[derive(Debug)]
pub(super) struct GroupOrder {
    column: String,
    /// The column's type in the table.
    kind: DataType,
    options: SortOptions,
}

/// Place of a row group in the order.
#[derive(Debug)]
pub(super) enum GroupRank {
    /// It may have NULLs, which are sorted first.
    Nulls,
    /// The first value of the sort's order that the row group may have.
    Bound(ScalarValue),
    Unknown,
}

impl GroupOrder {
    /// Returns the order for a threshold; `None` if the first sort key is not a column of the files
    /// of a `table`.
    pub(super) fn of(threshold: &ScanThreshold, table: &Schema) -> Option<Self> {
        let column = threshold.key.downcast_ref::<Column>()?.name().to_owned();
        let kind = table.field_with_name(&column).ok()?.data_type().clone();
        Some(Self { column, kind, options: threshold.options })
    }

    /// Returns the place of a morsel from its row group's statistics.
    pub(super) fn rank(&self, morsel: &FileMorsel) -> GroupRank {
        self.try_rank(morsel).unwrap_or(GroupRank::Unknown)
    }

    fn try_rank(&self, morsel: &FileMorsel) -> Option<GroupRank> {
        let group = morsel.group.as_ref()?;
        let columns = group.footer.file_metadata().schema_descr();
        let schema = group.schema.as_ref()?;
        let statistics = StatisticsConverter::try_new(&self.column, schema, columns).ok()?;
        let chunk = group.metadata().column(statistics.parquet_column_index()?);
        let nulls = chunk.statistics().and_then(|bounds| bounds.null_count_opt());
        if self.options.nulls_first && nulls != Some(0) {
            return Some(GroupRank::Nulls);
        }
        let groups = [group.metadata()];
        let bounds = match self.options.descending {
            true => statistics.row_group_maxes(groups),
            false => statistics.row_group_mins(groups),
        };
        let bound = ScalarValue::try_from_array(&bounds.ok()?, 0).ok()?.cast_to(&self.kind).ok()?;
        (!bound.is_null()).then_some(GroupRank::Bound(bound))
    }

    pub(super) fn compare(&self, one: &GroupRank, other: &GroupRank) -> Ordering {
        use GroupRank::{Bound, Nulls, Unknown};
        match (one, other) {
            (Bound(one), Bound(other)) => {
                let order = one.partial_cmp(other).unwrap_or(Ordering::Equal);
                if self.options.descending { order.reverse() } else { order }
            }
            (Nulls, Nulls) | (Unknown, Unknown) => Ordering::Equal,
            (Nulls, _) | (_, Unknown) => Ordering::Less,
            (_, Nulls) | (Unknown, _) => Ordering::Greater,
        }
    }
}
