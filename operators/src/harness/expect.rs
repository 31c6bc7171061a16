//! What a run must end with: rows, rows that pass a check, or an error.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::rows::{Row, contained_rows, rows_of, same_rows, same_sequence};

/// Batches of all inputs.
pub(super) type Inputs = [Vec<RecordBatch>];

/// Returns the expected rows for these inputs and this number of tasks.
type Model = dyn Fn(&Inputs, usize) -> Result<Arc<Vec<Row>>, String>;

/// Check of the rows of a run.
type Check = dyn Fn(&[RecordBatch]) -> Result<(), String>;

/// The expectation of a test.
pub(super) enum Expected {
    /// These rows; in this order if `ordered`. `from_inputs` tells whether they depend on the
    /// inputs, so that smaller inputs have expected rows as well.
    Rows { model: Box<Model>, ordered: bool, from_inputs: bool },
    /// Rows that pass a check.
    Check(Box<Check>),
    /// An error whose text contains this.
    Error(String),
}

impl Expected {
    /// Expects the rows of `batches`.
    pub(super) fn rows(batches: &[RecordBatch], ordered: bool) -> Self {
        let rows = match rows_of(batches) {
            Ok(rows) => Arc::new(rows),
            Err(error) => panic!("the expected rows cannot be compared: {error}"),
        };
        let model = Box::new(move |_: &Inputs, _| Ok(rows.clone()));
        Self::Rows { model, ordered, from_inputs: false }
    }

    /// Expects, in any order, the rows that `model` returns.
    pub(super) fn model(
        model: impl Fn(&Inputs, usize) -> Vec<RecordBatch> + 'static,
        from_inputs: bool,
    ) -> Self {
        let model = Box::new(move |inputs: &Inputs, num_tasks| {
            rows_of(&model(inputs, num_tasks)).map(Arc::new).map_err(|error| error.to_string())
        });
        Self::Rows { model, ordered: false, from_inputs }
    }

    /// Returns whether the expectation holds for other inputs, too.
    pub(super) fn is_for_all_inputs(&self) -> bool {
        matches!(self, Self::Rows { from_inputs: true, .. })
    }

    /// Checks all rows of a run.
    pub(super) fn check(
        &self,
        inputs: &Inputs,
        num_tasks: usize,
        actual: &[RecordBatch],
    ) -> Result<(), String> {
        match self {
            Self::Rows { model, ordered, .. } => {
                let (expected, actual) = (model(inputs, num_tasks)?, comparable(actual)?);
                match ordered {
                    true => same_sequence(&expected, &actual),
                    false => same_rows(&expected, &actual),
                }
            }
            Self::Check(check) => check(actual),
            Self::Error(text) => Err(format!("the run did not fail with '{text}'")),
        }
    }

    /// Checks the rows of a run whose reader wanted only some of them.
    pub(super) fn check_part(
        &self,
        inputs: &Inputs,
        num_tasks: usize,
        actual: &[RecordBatch],
    ) -> Result<(), String> {
        let Self::Rows { model, ordered, .. } = self else { return Ok(()) };
        let (expected, actual) = (model(inputs, num_tasks)?, comparable(actual)?);
        match ordered {
            true => same_sequence(&expected[..expected.len().min(actual.len())], &actual),
            false => contained_rows(&expected, &actual),
        }
    }
}

fn comparable(batches: &[RecordBatch]) -> Result<Vec<Row>, String> {
    rows_of(batches).map_err(|error| error.to_string())
}
