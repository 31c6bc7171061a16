//! The 22 queries of TPC-H return plain DataFusion's results for all numbers of threads, batch
//! sizes and storages. The command line checks the same at scale factor 1.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use crate::support::{Case, Expected, QUERIES, Storage, Tpch, executor, guarded, plan, settle};
use datafusion::prelude::SessionConfig;
use gatework::{Executor, session_with};

const THREADS: [usize; 4] = [1, 2, 3, 7];

/// The expected results over `data`; computed once for all compared sessions.
async fn expected(data: &Tpch) -> Vec<Expected> {
    let session = crate::support::reference_session();
    data.register(&session, Storage::Memory).await;
    let mut expected = Vec::new();
    for sql in QUERIES {
        expected.push(Expected::of(&session, sql).await.unwrap());
    }
    let with_rows = expected.iter().filter(|expected| expected.rows() > 0).count();
    assert!(with_rows >= 14, "only {with_rows} of the queries return rows: too little data");
    expected
}

async fn run_all(
    case: &Case,
    executor: &Executor,
    data: &Tpch,
    storage: Storage,
    batch_rows: usize,
    expected: &[Expected],
) {
    let config = SessionConfig::new().with_batch_size(batch_rows);
    let session = session_with(executor, config);
    data.register(&session, storage).await;
    for (number, (sql, expected)) in (1..).zip(QUERIES.iter().zip(expected)) {
        let threads = executor.threads();
        let name = format!("q{number}, {threads} threads, batches of {batch_rows}, {storage:?}");
        case.begin(&name);
        let planned = plan(case, &session, sql).await.unwrap();
        assert_eq!(gatework::fallbacks(&planned.plan), Vec::<String>::new(), "{name}");
        let batches = planned.collect().await.unwrap();
        expected.check(&name, &batches);
    }
    settle(executor);
}

fn equal_results(storage: Storage, batch_rows: usize) {
    guarded(move |case| async move {
        let data: Arc<Tpch> = Tpch::new(10);
        let expected = expected(&data).await;
        for threads in THREADS {
            let executor = executor(threads);
            run_all(&case, &executor, &data, storage, batch_rows, &expected).await;
        }
    });
}

#[test]
fn parquet_in_batches_of_8192_rows() {
    equal_results(Storage::Parquet, 8192);
}

#[test]
fn memory_in_batches_of_8192_rows() {
    equal_results(Storage::Memory, 8192);
}

#[test]
fn parquet_in_batches_of_3_rows() {
    equal_results(Storage::Parquet, 3);
}

#[test]
fn memory_in_batches_of_3_rows() {
    equal_results(Storage::Memory, 3);
}

#[test]
fn memory_in_batches_of_1_row() {
    equal_results(Storage::Memory, 1);
}

#[test]
fn parquet_in_batches_of_1_row() {
    equal_results(Storage::Parquet, 1);
}
