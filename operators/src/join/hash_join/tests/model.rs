//! The naive model: rows with coded keys, and the expected rows of their join.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    UInt8Array,
};
use datafusion_common::JoinType;

use super::Case;
use crate::test_support::{ints, rows, table};

/// Number of key codes.
pub(super) const CODES: u8 = 6;

/// Two key codes, of which some kinds use only the first, and a value for the residual filter.
pub(super) type Row = (Option<u8>, Option<u8>, Option<i32>);

/// The types of the key columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// One `u64`.
    Int,
    /// Two columns in one `u64`.
    Flags,
    /// 128 bits, or arrow rows where NULL is a value.
    Longs,
    /// Arrow rows.
    Text,
    /// One `u64`; equal values may differ in their bits.
    Float,
    /// Arrow rows of two columns.
    Mixed,
}

const FLOATS: [f64; CODES as usize] = [0.0, -0.0, f64::NAN, 1.5, f64::NEG_INFINITY, -1.5];
const TEXTS: [&str; CODES as usize] = ["", "a", "ab", "a\0", "a rather long text, not inline", "b"];

impl KeyKind {
    pub(super) const ALL: [Self; 6] =
        [Self::Int, Self::Flags, Self::Longs, Self::Text, Self::Float, Self::Mixed];

    pub(super) fn columns(self) -> usize {
        match self {
            Self::Int | Self::Text | Self::Float => 1,
            Self::Flags | Self::Longs | Self::Mixed => 2,
        }
    }

    /// Returns the column of `codes` at `index`. Codes of flags fold, so that keys repeat more
    /// often.
    fn column(self, index: usize, codes: &[Option<u8>]) -> ArrayRef {
        let codes = || codes.iter().copied();
        let text = |code: Option<u8>| code.map(|code| TEXTS[usize::from(code)]);
        match (self, index) {
            (Self::Int, _) | (Self::Mixed, 1) => {
                let value = |code: Option<u8>| code.map(|code| i32::from(code) * 1_000_003 - 7);
                Arc::new(codes().map(value).collect::<Int32Array>())
            }
            (Self::Flags, 0) => Arc::new(
                codes().map(|code| code.map(|code| code % 2 == 1)).collect::<BooleanArray>(),
            ),
            (Self::Flags, _) => Arc::new(codes().collect::<UInt8Array>()),
            (Self::Longs, _) => {
                let value =
                    |code: Option<u8>| code.map(|code| i64::from(code).wrapping_mul(1 << 61));
                Arc::new(codes().map(value).collect::<Int64Array>())
            }
            (Self::Text | Self::Mixed, _) => Arc::new(codes().map(text).collect::<StringArray>()),
            (Self::Float, _) => {
                let value = |code: Option<u8>| code.map(|code| FLOATS[usize::from(code)]);
                Arc::new(codes().map(value).collect::<Float64Array>())
            }
        }
    }

    /// Returns the class of a code; equal values have equal classes.
    fn class(self, index: usize, code: u8) -> u8 {
        match (self, index) {
            (Self::Float, _) => code.max(1),
            (Self::Flags, 0) => code % 2,
            _ => code,
        }
    }
}

/// One side: its key columns, then `value` and `row`.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) batch: RecordBatch,
    keys: Vec<Vec<Option<u8>>>,
    values: Vec<Option<i32>>,
}

impl Side {
    pub(super) fn new(kind: KeyKind, rows: &[Row]) -> Self {
        let codes = |index| -> Vec<Option<u8>> {
            rows.iter().map(|row| if index == 0 { row.0 } else { row.1 }).collect()
        };
        let column = |index| kind.column(index, &codes(index));
        let values: Vec<_> = rows.iter().map(|row| row.2).collect();
        let value = ("value", ints(values.iter().copied()));
        let row = ("row", ints((0..rows.len() as i32).map(Some)));
        let batch = match kind.columns() {
            1 => table([("key", column(0)), value, row]),
            _ => table([("key", column(0)), ("key2", column(1)), value, row]),
        };
        let class = |(index, code): (usize, &Option<u8>)| code.map(|code| kind.class(index, code));
        let key =
            |row: &Row| [row.0, row.1][..kind.columns()].iter().enumerate().map(class).collect();
        Self { batch, keys: rows.iter().map(key).collect(), values }
    }

    /// Returns whether the key of `row` has a NULL.
    pub(super) fn has_null(&self, row: usize) -> bool {
        self.keys[row].contains(&None)
    }

    pub(super) fn rows(&self) -> usize {
        self.keys.len()
    }
}

impl Case {
    /// Returns whether the keys match; the residual filter is ignored.
    pub(super) fn keys_match(&self, left: &Side, l: usize, right: &Side, r: usize) -> bool {
        (self.nulls_equal || !left.has_null(l)) && left.keys[l] == right.keys[r]
    }

    fn matches(&self, left: &Side, l: usize, right: &Side, r: usize) -> bool {
        let passes = || left.values[l].zip(right.values[r]).is_some_and(|(l, r)| l < r);
        self.keys_match(left, l, right, r) && (!self.residual || passes())
    }

    /// Returns the join's rows as sorted text.
    pub(super) fn model(&self, left: &Side, right: &Side) -> Vec<String> {
        let left_rows = rows(std::slice::from_ref(&left.batch));
        let right_rows = rows(std::slice::from_ref(&right.batch));
        let left_match: Vec<bool> = (0..left.rows())
            .map(|l| (0..right.rows()).any(|r| self.matches(left, l, right, r)))
            .collect();
        let right_match: Vec<bool> = (0..right.rows())
            .map(|r| (0..left.rows()).any(|l| self.matches(left, l, right, r)))
            .collect();
        let nulls = vec!["NULL"; left.batch.num_columns()].join("|");
        let mut rows: Vec<String> = match self.kind {
            JoinType::LeftSemi => pick(&left_rows, &left_match, true),
            JoinType::LeftAnti if self.null_aware => {
                self.not_in(left, right, &left_rows, &left_match)
            }
            JoinType::LeftAnti => pick(&left_rows, &left_match, false),
            JoinType::LeftMark => marked(&left_rows, &left_match),
            JoinType::RightSemi => pick(&right_rows, &right_match, true),
            JoinType::RightAnti => pick(&right_rows, &right_match, false),
            JoinType::RightMark => marked(&right_rows, &right_match),
            _ => (0..left.rows())
                .flat_map(|l| (0..right.rows()).map(move |r| (l, r)))
                .filter(|(l, r)| self.matches(left, *l, right, *r))
                .map(|(l, r)| format!("{}|{}", left_rows[l], right_rows[r]))
                .collect(),
        };
        if let JoinType::Left | JoinType::Full = self.kind {
            let unmatched = pick(&left_rows, &left_match, false);
            rows.extend(unmatched.iter().map(|row| format!("{row}|{nulls}")));
        }
        if let JoinType::Right | JoinType::Full = self.kind {
            let unmatched = pick(&right_rows, &right_match, false);
            rows.extend(unmatched.iter().map(|row| format!("{nulls}|{row}")));
        }
        rows.sort_unstable();
        rows
    }

    /// Returns whether `left.key NOT IN right` is true, not NULL.
    fn not_in(
        &self,
        left: &Side,
        right: &Side,
        left_rows: &[String],
        found: &[bool],
    ) -> Vec<String> {
        let unknown = (0..right.rows()).any(|r| right.has_null(r));
        let holds = |l: &usize| right.rows() == 0 || (!unknown && !found[*l] && !left.has_null(*l));
        (0..left.rows()).filter(holds).map(|l| left_rows[l].clone()).collect()
    }
}

fn pick(side: &[String], found: &[bool], wanted: bool) -> Vec<String> {
    let chosen = side.iter().zip(found).filter(|(_, found)| **found == wanted);
    chosen.map(|(row, _)| row.clone()).collect()
}

fn marked(side: &[String], found: &[bool]) -> Vec<String> {
    side.iter().zip(found).map(|(row, found)| format!("{row}|{found}")).collect()
}
