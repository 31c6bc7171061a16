//! Joins that do not fit into memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::array::RecordBatch;
use datafusion_common::JoinType;
use gatework_runtime::{
    Error, Result,
    pipeline::{Graph, GreedyPool, MemoryPool, QueryOptions, UnboundedPool},
};
use proptest::prelude::*;

use super::{
    Case, KeyKind, Side, TYPES, any_case,
    large::{LEFT_ROWS, cases, expected, left_key, numbers, numbers_and_mark, rows_of},
    not_in_case, rows,
    runtime_filter::{Recorder, expected as expected_mask},
};
use crate::{
    runtime_filter::FilterProducer,
    test_support::{
        InMemorySpill, RandomDenialPool, random_refusals, run_with, run_with_reclaim_requests,
        scan, sorted_rows,
    },
};

/// Runs the join with `memory`, and with spilling enabled.
fn run_short(
    case: &Case,
    [left, right]: [&RecordBatch; 2],
    projection: Option<&[usize]>,
    memory: Arc<dyn MemoryPool>,
    spill: &Arc<InMemorySpill>,
) -> Result<Vec<RecordBatch>> {
    let options = QueryOptions { memory, spill: Some(spill.clone()), ..QueryOptions::default() };
    let config = case.config(left, right, projection);
    let (left, right) = (scan(left, case.morsel), scan(right, case.morsel));
    let add = |graph: &mut Graph| case.add(graph, config, left, right, None);
    let answer =
        if spill.eager { run_with_reclaim_requests(options, add) } else { run_with(options, add) };
    Ok(answer?.concat())
}

#[test]
fn every_join_type_spills() {
    for (case, left, right) in cases() {
        let kind = case.kind;
        let columns = numbers_and_mark(&case, &left, &right);
        // At the lowest limit, restored rows do not fit either.
        for limit in [4 << 20, 1 << 20, 1 << 17] {
            let memory = Arc::new(GreedyPool::new(limit));
            let spill = Arc::new(InMemorySpill::default());
            let both = [&left, &right];
            let batches = run_short(&case, both, Some(&columns), memory.clone(), &spill).unwrap();
            let spilled = spill.writes.load(Ordering::Relaxed) > 0;
            assert!(spilled || limit > 1 << 20, "{case:?} with {limit} bytes");
            assert!(numbers(kind, &batches) == expected(kind), "{case:?} with {limit} bytes");
            assert_eq!(memory.reserved(), 0);
        }
    }
}

#[test]
fn every_join_type_spills_on_reclaim_requests() {
    // A request may come before a task has rows, or after it has published them.
    let spilled = (0..20).any(|_| {
        let runs = cases().map(|(case, left, right)| {
            let kind = case.kind;
            let columns = numbers_and_mark(&case, &left, &right);
            let spill = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
            let both = [&left, &right];
            let batches =
                run_short(&case, both, Some(&columns), Arc::new(UnboundedPool), &spill).unwrap();
            assert!(numbers(kind, &batches) == expected(kind), "{case:?}");
            spill.writes.load(Ordering::Relaxed)
        });
        runs.sum::<usize>() > 0
    });
    assert!(spilled);
}

/// Half of each side is one key; the residual filter passes few of its pairs.
#[test]
fn one_key_that_does_not_fit_is_joined_in_chunks() {
    let key = |row: i32| Some(if row % 2 == 0 { 7 } else { row });
    let both = |rows: i32| rows_of(KeyKind::Int, rows, key);
    let (left, right) = (both(60_000), both(300));
    for kind in TYPES {
        let case = Case { residual: true, morsel: 1000, batch_rows: 8192, ..Case::plain(kind) };
        let whole = case.run(&left, &right, None).unwrap();
        let memory = Arc::new(GreedyPool::new(1 << 17));
        let spill = Arc::new(InMemorySpill::default());
        let chunked = run_short(&case, [&left, &right], None, memory.clone(), &spill).unwrap();
        assert!(sorted_rows(&chunked) == sorted_rows(&whole), "{kind}");
        assert!(spill.writes.load(Ordering::Relaxed) > 0);
        assert_eq!(memory.reserved(), 0);
    }
}

/// The output must be in probe order, which spilled partitions do not preserve.
#[test]
fn a_join_in_order_fails_instead() {
    let rows = rows_of(KeyKind::Int, LEFT_ROWS, left_key);
    let case = Case { morsel: 7001, probes: 1, ..Case::plain(JoinType::Inner) };
    let options = QueryOptions {
        memory: Arc::new(GreedyPool::new(1 << 20)),
        spill: Some(Arc::new(InMemorySpill::default())),
        ..QueryOptions::default()
    };
    let config = super::HashJoinConfig { in_order: true, ..case.config(&rows, &rows, None) };
    let (left, right) = (scan(&rows, 7001), scan(&rows, 7001));
    let answer = run_with(options, |graph| case.add(graph, config, left, right, None));
    assert!(matches!(answer, Err(Error::OutOfMemory { .. })), "{answer:?}");
}

/// Number of cases that spilled.
static SPILLED: AtomicUsize = AtomicUsize::new(0);

/// The filter of a build with spilled rows passes all rows that have a match.
fn check_filter(case: &Case, left: &Side, right: &Side, seed: u64) {
    let (_, _, options) = random_refusals(seed);
    let target = Recorder::new(case.key, &right.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let config = case.config(&left.batch, &right.batch, None);
    let sources = (scan(&left.batch, case.morsel), scan(&right.batch, case.morsel));
    run_with(options, |graph| case.add(graph, config, sources.0, sources.1, Some(producer)))
        .unwrap();
    assert!(gate.is_ready());
    match (target.only(), expected_mask(case, left, right)) {
        (Some(passes), Some(must)) => {
            let lost = passes.iter().zip(must).any(|(passes, must)| must && passes != Some(true));
            assert!(!lost, "{case:?}");
        }
        (said, None) => assert!(said.is_none() || !filters(case), "{case:?}"),
        (None, _) => {}
    }
}

/// Returns whether right rows without a match are dropped.
fn filters(case: &Case) -> bool {
    !matches!(
        case.kind,
        JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
    )
}

/// Runs the join with random denials. No spill is too small for a file, so that few rows cover all
/// code paths.
fn check(case: &Case, left: &Side, right: &Side, seed: u64) {
    let memory = Arc::new(RandomDenialPool::new(seed));
    let spill = Arc::new(InMemorySpill { eager: true, ..InMemorySpill::default() });
    let both = [&left.batch, &right.batch];
    let batches = run_short(case, both, None, memory.clone(), &spill).unwrap();
    assert_eq!(sorted_rows(&batches), case.model(left, right), "{case:?}");
    assert_eq!(memory.reserved(), 0);
    check_filter(case, left, right, seed);
    SPILLED.fetch_add(spill.writes.load(Ordering::Relaxed).min(1), Ordering::Relaxed);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn denied_memory_changes_no_row(
        case in any_case(),
        left in rows(0.2),
        right in rows(0.2),
        seed in any::<u64>(),
    ) {
        check(&case, &Side::new(case.key, &left), &Side::new(case.key, &right), seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn denied_memory_changes_no_row_of_not_in(
        case in not_in_case(),
        left in rows(0.2),
        right in prop_oneof![rows(0.01), rows(0.1)],
        seed in any::<u64>(),
    ) {
        check(&case, &Side::new(case.key, &left), &Side::new(case.key, &right), seed);
    }
}

#[test]
fn denied_memory_makes_small_joins_spill() {
    let rows: Vec<_> = (0..12).map(|row| (Some(row % 6), None, Some(0))).collect();
    let side = Side::new(KeyKind::Int, &rows);
    for seed in 0..40 {
        check(&Case::plain(JoinType::Full), &side, &side, seed);
    }
    assert!(SPILLED.load(Ordering::Relaxed) > 10);
}
