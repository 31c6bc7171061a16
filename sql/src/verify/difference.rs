//! The result of a comparison: a value to decide on, and a sentence for a person to read.
//!
//! It owns copies of the few rows it shows, never the results themselves.

use std::fmt;

/// A row that has no partner on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MismatchExample {
    /// Index of the row in its own result, from 0.
    pub row: usize,
    /// The row as text, `(1, a, NULL)`.
    pub text: String,
}

impl fmt::Display for MismatchExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // People count rows from one.
        write!(f, "row {} {}", self.row + 1, self.text)
    }
}

/// The first thing in which two results differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Columns differ in number, name or logical type.
    Schema(String),
    /// The results have different numbers of rows.
    RowCount {
        /// Number of rows of the actual result.
        actual: usize,
        /// Number of rows of the expected result.
        expected: usize,
        /// The first actual row that was not expected, if one was found.
        surplus: Option<MismatchExample>,
        /// The first expected row that is missing, if one was found.
        missing: Option<MismatchExample>,
    },
    /// At this position the results have different order keys.
    OrderKey {
        /// The order key that differs.
        key: String,
        /// The actual row.
        actual: MismatchExample,
        /// The expected row at the same position.
        expected: MismatchExample,
    },
    /// Equal numbers of rows, but different rows.
    Rows {
        /// Range of all rows, or of the rows that tie on the order keys: first index, and one after
        /// the last.
        within: (usize, usize),
        /// Whether `within` is a tie of an ordered result.
        tie: bool,
        /// The first actual row without a partner.
        surplus: Option<MismatchExample>,
        /// The first expected row without a partner.
        missing: Option<MismatchExample>,
    },
    /// A limit cuts through rows that tie, and other rows of the tie were chosen. Only the
    /// reference's result without that limit can decide whether they are right.
    Undecided {
        /// Range of the tie: first index, and one after the last.
        within: (usize, usize),
    },
    /// A limit cuts through rows that tie, and the actual result has a row that the unlimited
    /// reference lacks.
    NotInUnlimited(MismatchExample),
    /// One of the results cannot be brought into a comparable form.
    Incomparable(String),
}

impl Difference {
    /// Returns whether only the reference's result without `LIMIT` and `OFFSET` can decide this
    /// case.
    pub fn needs_unlimited(&self) -> bool {
        matches!(self, Self::Undecided { .. })
    }
}

impl std::error::Error for Difference {}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schema(sentence) | Self::Incomparable(sentence) => f.write_str(sentence),
            Self::RowCount { actual, expected, surplus, missing } => {
                write!(f, "{actual} rows where {expected} are expected")?;
                write_examples(f, surplus.as_ref(), missing.as_ref())
            }
            Self::OrderKey { key, actual, expected } => {
                write!(
                    f,
                    "the order differs in key {key}: {actual} stands where {} is expected",
                    expected.text
                )
            }
            Self::Rows { within: (start, end), tie, surplus, missing } => {
                match tie {
                    true => write!(
                        f,
                        "rows {} to {end}, which tie on the order keys, differ",
                        start + 1
                    )?,
                    false => f.write_str("the rows differ")?,
                }
                write_examples(f, surplus.as_ref(), missing.as_ref())
            }
            Self::Undecided { within: (start, end) } => write!(
                f,
                "rows {} to {end} are a choice among equals made by LIMIT, \
                 and differ from the reference's choice; \
                 only the result without LIMIT can decide",
                start + 1
            ),
            Self::NotInUnlimited(example) => {
                write!(f, "{example} is not among the rows that LIMIT chooses from")
            }
        }
    }
}

/// Appends those rows without a partner that are known.
fn write_examples(
    f: &mut fmt::Formatter<'_>,
    surplus: Option<&MismatchExample>,
    missing: Option<&MismatchExample>,
) -> fmt::Result {
    if let Some(example) = surplus {
        write!(f, "; {example} is not expected")?;
    }
    if let Some(example) = missing {
        write!(f, "; the expected {example} is missing")?;
    }
    Ok(())
}
