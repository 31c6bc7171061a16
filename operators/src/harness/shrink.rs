//! Shrinks the inputs of a failing case.

use std::time::{Duration, Instant};

use arrow::array::RecordBatch;

/// Time after which no smaller input is tried any more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Number of rows up to which an input is shown.
const SHOWN_ROWS: usize = 12;

/// Returns the smallest inputs found for which `fails` is true, starting with `inputs`, for which
/// it is: parts are taken away, halves first, then smaller ones, as long as it stays true.
pub(super) fn shrink(
    inputs: Vec<Vec<RecordBatch>>,
    mut fails: impl FnMut(&[Vec<RecordBatch>]) -> bool,
) -> Vec<Vec<RecordBatch>> {
    let started = Instant::now();
    let mut smallest = inputs;
    for input in 0..smallest.len() {
        let mut part = rows_in(&smallest[input]).div_ceil(2);
        while part > 0 {
            let (mut first, mut removed) = (0, false);
            while first < rows_in(&smallest[input]) {
                if started.elapsed() > PATIENCE {
                    return smallest;
                }
                let mut candidate = smallest.clone();
                candidate[input] = without(&candidate[input], first, part);
                if fails(&candidate) {
                    (smallest, removed) = (candidate, true);
                } else {
                    first += part;
                }
            }
            part = if part == 1 && removed { 1 } else { part / 2 };
        }
    }
    smallest
}

fn rows_in(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// Returns `batches` without the rows `first..first + count`. Keeps the bounds of the batches.
fn without(batches: &[RecordBatch], first: usize, count: usize) -> Vec<RecordBatch> {
    let (mut kept, mut start) = (Vec::new(), 0);
    for batch in batches {
        let end = start + batch.num_rows();
        let (cut_start, cut_end) = (first.clamp(start, end), (first + count).clamp(start, end));
        for (from, to) in [(start, cut_start), (cut_end, end)] {
            if from < to {
                kept.push(batch.slice(from - start, to - from));
            }
        }
        start = end;
    }
    kept
}

/// Describes inputs: their rows if they are few, else their number.
pub(super) fn describe(inputs: &[Vec<RecordBatch>]) -> String {
    let input = |(number, batches): (usize, &Vec<RecordBatch>)| {
        let rows = super::rows::rows_of(batches).unwrap_or_default();
        let shown = match rows.len() {
            ..=SHOWN_ROWS => rows.iter().map(super::rows::text).collect::<Vec<_>>().join(" "),
            count => format!("{count} rows"),
        };
        format!("input {number}, {} batches: {shown}", batches.len())
    };
    inputs.iter().enumerate().map(input).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::numbers;

    #[test]
    fn shrinks_to_the_rows_that_matter() {
        let fails = |inputs: &[Vec<RecordBatch>]| {
            let rows = super::super::rows::rows_of(&inputs[0]).unwrap();
            let has = |wanted: i64| rows.iter().any(|row| row[0] == wanted.into());
            has(3) && has(17)
        };
        let smallest = shrink(vec![numbers(0..20, 6), numbers(0..5, 5)], fails);
        assert_eq!(describe(&smallest), "input 0, 2 batches: (3) (17); input 1, 0 batches: ");
    }
}
