//! Checks of a Parquet footer against its file, before any of its sizes is used.
//!
//! The parquet crate and DataFusion's reader allocate and read what the footer says. A size beyond
//! the file's end would be allocated, and a negative one panics.

use datafusion::{
    common::exec_err,
    error::Result,
    parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
};

/// Minimum size of a page with its header, in bytes. A page has at most [`i32::MAX`] values.
const MIN_PAGE_BYTES: i64 = 8;

/// Checks the row groups of a file of `file_bytes` bytes.
pub(super) fn check(footer: &ParquetMetaData, file_bytes: u64) -> Result<()> {
    let mut groups = footer.row_groups().iter().enumerate();
    groups.try_for_each(|(number, group)| check_group(group, number, file_bytes))
}

fn check_group(group: &RowGroupMetaData, number: usize, file_bytes: u64) -> Result<()> {
    if group.num_rows() < 0 {
        return exec_err!("row group {number} has {} rows", group.num_rows());
    }
    group.columns().iter().try_for_each(|chunk| {
        let wrong = match check_ranges(chunk, file_bytes) {
            Some(wrong) => Some(wrong),
            None => check_rows(chunk, group.num_rows()),
        };
        match wrong {
            None => Ok(()),
            Some(wrong) => {
                let column = chunk.column_path().string();
                exec_err!("column '{column}' of row group {number} {wrong}")
            }
        }
    })
}

/// Describes what is wrong with the byte ranges of a chunk, its page index and its bloom filter.
fn check_ranges(chunk: &ColumnChunkMetaData, file_bytes: u64) -> Option<String> {
    let pages = chunk.compressed_size();
    let first = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let length = |length: Option<i32>| Some(i64::from(length.unwrap_or(0)));
    let ranges = [
        ("data", Some(first), Some(pages)),
        ("data", Some(chunk.data_page_offset()), Some(0)),
        ("column index", chunk.column_index_offset(), length(chunk.column_index_length())),
        ("offset index", chunk.offset_index_offset(), length(chunk.offset_index_length())),
        ("bloom filter", chunk.bloom_filter_offset(), length(chunk.bloom_filter_length())),
    ];
    ranges.into_iter().find_map(|(what, start, length)| {
        let (start, length) = (start?, length?);
        let end = u64::try_from(start).ok().zip(u64::try_from(length).ok());
        let end = end.and_then(|(start, length)| start.checked_add(length));
        let within = end.is_some_and(|end| end <= file_bytes);
        (!within).then(|| {
            format!("has its {what} at {start}, {length} bytes, in a file of {file_bytes} bytes")
        })
    })
}

/// Describes what is wrong with the number of values of a chunk in a row group of `rows` rows.
fn check_rows(chunk: &ColumnChunkMetaData, rows: i64) -> Option<String> {
    let (values, bytes) = (chunk.num_values(), chunk.compressed_size());
    let flat = chunk.column_descr().max_rep_level() == 0;
    // An empty list counts as a value, so a nested column has at least one value for each row.
    if values < rows || flat && values != rows {
        return Some(format!("has {values} values, and the row group has {rows} rows"));
    }
    let max_values = (bytes / MIN_PAGE_BYTES).saturating_mul(i64::from(i32::MAX));
    (values > max_values).then(|| format!("has {values} values in {bytes} bytes"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::sync::Arc;

    use datafusion::parquet::{
        basic::{Repetition, Type as Physical},
        file::metadata::{ColumnChunkMetaDataBuilder, FileMetaData},
        schema::types::{SchemaDescriptor, Type},
    };

    use super::*;

    /// Returns the error for a file of 100 bytes and 5 rows after `change` has modified its only
    /// chunk.
    fn error(
        rows: i64,
        repetition: Repetition,
        change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
    ) -> Option<String> {
        let column = Type::primitive_type_builder("a", Physical::INT64);
        let column = Arc::new(column.with_repetition(repetition).build().unwrap());
        let root = Type::group_type_builder("root").with_fields(vec![column]).build().unwrap();
        let schema = Arc::new(SchemaDescriptor::new(Arc::new(root)));
        let chunk = ColumnChunkMetaData::builder(schema.column(0)).set_data_page_offset(4);
        let chunk = change(chunk.set_total_compressed_size(90).set_num_values(5));
        let group = RowGroupMetaData::builder(schema.clone()).set_num_rows(rows);
        let group = group.set_column_metadata(vec![chunk.build().unwrap()]).build().unwrap();
        let file = FileMetaData::new(1, rows, None, None, schema, None);
        let footer = ParquetMetaData::new(file, vec![group]);
        check(&footer, 100).err().map(|error| error.to_string())
    }

    #[test]
    fn sound_footers_pass() {
        assert_eq!(error(5, Repetition::REQUIRED, |chunk| chunk), None);
        assert_eq!(error(5, Repetition::OPTIONAL, |chunk| chunk), None);
        assert_eq!(error(3, Repetition::REPEATED, |chunk| chunk), None);
        let full = |chunk: ColumnChunkMetaDataBuilder| chunk.set_total_compressed_size(96);
        assert_eq!(error(5, Repetition::REQUIRED, full), None);
    }

    #[test]
    fn ranges_lie_within_the_file() {
        let sized = |size| error(5, Repetition::REQUIRED, |c| c.set_total_compressed_size(size));
        for size in [97, i64::MAX, -5] {
            assert!(sized(size).unwrap().contains("in a file of 100 bytes"), "{size}");
        }
        let at = |offset| error(5, Repetition::REQUIRED, |c| c.set_data_page_offset(offset));
        assert!(at(-1).and(at(101)).is_some());
        let dictionary =
            |offset| error(5, Repetition::REQUIRED, |c| c.set_dictionary_page_offset(Some(offset)));
        assert!(dictionary(-1).and(dictionary(50)).is_some());
        let index = error(5, Repetition::REQUIRED, |chunk| {
            chunk.set_column_index_offset(Some(4)).set_column_index_length(Some(i32::MAX))
        });
        assert!(index.unwrap().contains("column index"));
        let bloom = error(5, Repetition::REQUIRED, |c| c.set_bloom_filter_offset(Some(-2)));
        assert!(bloom.unwrap().contains("bloom filter"));
    }

    #[test]
    fn rows_have_values() {
        for (rows, repetition) in [
            (1 << 60, Repetition::REQUIRED),
            (6, Repetition::OPTIONAL),
            (4, Repetition::REQUIRED),
            (6, Repetition::REPEATED),
            (-1, Repetition::REQUIRED),
        ] {
            let error = error(rows, repetition, |chunk| chunk).unwrap();
            assert!(error.contains("rows"), "{error}");
        }
        let all = error(1 << 60, Repetition::REQUIRED, |chunk| chunk.set_num_values(1 << 60));
        assert!(all.unwrap().contains("values in 90 bytes"));
    }
}
