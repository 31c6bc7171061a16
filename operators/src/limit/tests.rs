//! Skips and counts over batches and tasks; sources end when their limit is reached.

use std::sync::Arc;

use arrow::array::RecordBatch;
use proptest::prelude::*;

use super::Limit;
use crate::test_support::{FailingScan, ints, result_of, rows, run, scan, table};

fn limited(table: &RecordBatch, limit: Limit, morsel: usize, tasks: usize) -> Vec<String> {
    let source = scan(table, morsel);
    let batches = run(|graph| result_of(graph, tasks, 1, source, vec![Arc::new(limit)])).unwrap();
    assert!(batches.iter().all(|batch| batch.num_rows() > 0));
    rows(&batches)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn one_task_passes_rows_in_order(
        total in 0..30_i32,
        skip in 0..35_usize,
        fetch in prop::option::of(0..35_usize),
        morsel in 1..9_usize,
    ) {
        let table = table([("row", ints((0..total).map(Some)))]);
        let answer = limited(&table, Limit::new(skip, fetch), morsel, 1);
        let wanted = (0..total).skip(skip).take(fetch.unwrap_or(usize::MAX));
        assert_eq!(answer, wanted.map(|row| row.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn tasks_draw_from_one_budget(
        total in 0..40_i32,
        skip in 0..20_usize,
        fetch in 0..30_usize,
        morsel in 1..9_usize,
        tasks in 1..4_usize,
    ) {
        let table = table([("row", ints((0..total).map(Some)))]);
        let mut answer = limited(&table, Limit::new(skip, Some(fetch)), morsel, tasks);
        assert_eq!(answer.len(), (total as usize).saturating_sub(skip).min(fetch));
        answer.sort_unstable();
        answer.dedup();
        assert_eq!(answer.len(), (total as usize).saturating_sub(skip).min(fetch));
    }
}

#[test]
fn nothing_is_read_for_no_rows() {
    let limit = Arc::new(Limit::new(3, Some(0)));
    let answer = run(|graph| result_of(graph, 2, 1, Arc::new(FailingScan), vec![limit]));
    assert!(answer.unwrap().is_empty());
}
