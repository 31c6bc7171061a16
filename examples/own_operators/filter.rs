//! A streaming operator: keeps the even numbers.

use arrow::{
    array::{Array, AsArray},
    datatypes::Int64Type,
};
use gatework::operators::{harness::Report, prelude::*};

struct Even;

impl LocalOperator for Even {
    fn execute(
        &mut self,
        input: Option<Batch>,
        _: &DriverContext,
    ) -> PipelineResult<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let numbers = batch.data().column(0).as_primitive::<Int64Type>().clone();
        let is_even = |row| numbers.is_valid(row) && numbers.value(row) % 2 == 0;
        Ok(OperatorResult::Batch(batch.refine(is_even)))
    }
}

/// Runs the operator in every mode that affects it.
pub fn test() -> Report {
    Harness::operator(|_case| operator_from_fn("even", |_context| Ok(Even)))
        .input(numbers(0..100, 8))
        .expect_rows(&numbers((0..100).step_by(2), 8))
        .check(Mode::without_memory())
}
