//! No way to end a query leaves anything behind: no task, no reserved byte, no temporary file. The
//! executor keeps working, and other queries are not affected.
//!
//! Steps are the calls of a user-defined function, [`fault_udf`]; the tests sweep the faulty call
//! over all of them.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod admission;
pub(crate) mod fault_udf;
pub(crate) mod fixture;
mod messages;
mod partitions;
pub(crate) mod queries;

use self::fault_udf::{FaultKind, MESSAGE};
use self::fixture::{Fixture, idle, read_to_end};
use self::queries::{END_QUERIES, steps};
use crate::support::{guarded, rows};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

#[test]
fn all_rows() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for (name, sql) in END_QUERIES {
            case.begin(name);
            let expected = fixture.expected(sql).await;
            let calls = fixture.count_calls(&case, sql).await;
            assert!(calls > 0, "{name} never calls `fuse`");
            let planned = fixture.plan(&case, sql).await;
            let batches = read_to_end(&fixture, name, &planned).await.unwrap();
            expected.check(name, &batches);
            fixture.assert_clean(name);
        }
    });
}

/// Without reservations, the checks of memory in the other tests would be void.
#[test]
fn breakers_reserve_what_is_given_back() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for name in ["groups", "sort", "build side", "window"] {
            case.begin(name);
            let (_, sql) = END_QUERIES.into_iter().find(|(shape, _)| *shape == name).unwrap();
            let planned = fixture.plan(&case, sql).await;
            let stream = planned.stream().unwrap();
            let query = gatework::query(&planned.plan).unwrap();
            drain(stream).await;
            let peak = query.profile().peak_memory_bytes;
            assert!(peak > 0, "{name} reserved nothing");
            fixture.assert_clean(name);
        }
    });
}

async fn drain(mut stream: SendableRecordBatchStream) {
    while let Some(batch) = stream.next().await {
        batch.unwrap();
    }
}

/// Injects a fault at every call of every shape.
fn sweep_failures(how: FaultKind, says: &'static [&'static str]) {
    guarded(move |case| async move {
        let fixture = Fixture::new();
        let mut blown = 0;
        for (shape, sql) in END_QUERIES {
            let expected = fixture.expected(sql).await;
            for step in steps(fixture.count_calls(&case, sql).await) {
                let name = format!("{shape}, {how:?} at call {step}");
                case.begin(&name);
                let planned = fixture.plan(&case, sql).await;
                fixture.fault_udf.set(how, step);
                let result = read_to_end(&fixture, &name, &planned).await;
                let triggered = fixture.fault_udf.was_triggered();
                // The query may have made fewer calls than the fault waits for.
                fixture.fault_udf.set(how, 0);
                match result {
                    Err(error) => {
                        let error = error.to_string();
                        assert!(says.iter().all(|part| error.contains(part)), "{name}: {error}");
                        assert!(triggered, "{name}: {error}");
                        blown += 1;
                    }
                    // The number of calls may differ, since batches may be cut differently.
                    Ok(batches) => {
                        assert!(!triggered, "{name}: the failure is lost");
                        expected.check(&name, &batches);
                    }
                }
                fixture.assert_clean(&name);
            }
            fixture.assert_works(&case, shape).await;
        }
        assert!(blown > 100, "only {blown} queries failed");
    });
}

#[test]
fn an_error_at_every_step() {
    sweep_failures(FaultKind::Error, &[MESSAGE]);
}

#[test]
fn a_panic_at_every_step() {
    sweep_failures(FaultKind::Panic, &["panicked", MESSAGE]);
}

/// Queries that end before their inputs.
#[test]
fn ends_before_the_input() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for sql in [
            "SELECT a FROM t LIMIT 5",
            "SELECT a FROM t LIMIT 0",
            "SELECT a FROM t WHERE b > 3 LIMIT 100 OFFSET 30",
            "SELECT a, d FROM t JOIN u ON b = c LIMIT 70",
            "SELECT a FROM (SELECT a FROM t UNION ALL SELECT c FROM u) LIMIT 65",
            "SELECT x FROM (SELECT unnest([a, b]) AS x FROM t) LIMIT 65",
            // SQL leaves open which rows a LIMIT takes, but not how many.
            "SELECT count(*) AS n FROM ((SELECT a FROM t LIMIT 70) UNION ALL SELECT c FROM u)",
            "SELECT count(*) AS n FROM t JOIN (SELECT c FROM u UNION ALL SELECT a FROM t LIMIT \
             70) x ON true",
            "SELECT count(*) AS n FROM (SELECT a FROM t LIMIT 70) x JOIN u ON true",
            "SELECT a FROM t JOIN nothing ON b = e",
            "SELECT a FROM nothing JOIN t ON b = e",
            "SELECT a FROM t JOIN (SELECT c FROM u WHERE d < 0) ON b = c",
            "SELECT a FROM t WHERE b IN (SELECT e FROM nothing)",
            "SELECT a FROM t, nothing WHERE a < e",
            "SELECT sum(e) AS s FROM nothing",
            "SELECT e, count(*) AS n FROM nothing GROUP BY e ORDER BY e",
            "SELECT a FROM t WHERE a = (SELECT max(e) FROM nothing)",
        ] {
            case.begin(sql);
            let expected = fixture.expected(sql).await;
            let planned = fixture.plan(&case, sql).await;
            let batches = read_to_end(&fixture, sql, &planned).await.unwrap();
            expected.check(sql, &batches);
            fixture.assert_clean(sql);
        }
    });
}

/// An error below a satisfied LIMIT may be lost; any other failure is a bug.
#[test]
fn an_error_at_every_step_under_a_limit() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        let sql = "SELECT fuse(a) AS x FROM t LIMIT 200";
        for step in 1..=32 {
            let name = format!("{sql}, error at call {step}");
            case.begin(&name);
            let planned = fixture.plan(&case, sql).await;
            fixture.fault_udf.set(FaultKind::Error, step);
            match read_to_end(&fixture, &name, &planned).await {
                Ok(batches) => assert_eq!(rows(&batches), 200, "{name}"),
                Err(error) => assert!(error.to_string().contains(MESSAGE), "{name}: {error}"),
            }
            fixture.assert_clean(&name);
        }
    });
}

/// Drops the stream after each possible number of batches, including zero.
#[test]
fn a_dropped_stream() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for (shape, sql) in END_QUERIES {
            fixture.fault_udf.set(FaultKind::Error, 0);
            let all = fixture.plan(&case, sql).await.collect().await.unwrap().len();
            for taken in std::iter::once(0).chain(steps(all)) {
                let name = format!("{shape}, dropped after {taken} of about {all} batches");
                case.begin(&name);
                let planned = fixture.plan(&case, sql).await;
                let mut stream = planned.stream().unwrap();
                let query = gatework::query(&planned.plan).unwrap();
                for _ in 0..taken {
                    if let Some(batch) = stream.next().await {
                        batch.unwrap();
                    }
                }
                drop(stream);
                idle(&query).await;
                assert_eq!(query.reserved_bytes(), 0, "{name}");
                drop(query);
                fixture.assert_clean(&name);
            }
            fixture.assert_works(&case, shape).await;
        }
    });
}

/// A query that is planned and never executed, and one whose plan is dropped before its stream.
#[test]
fn plans_that_are_dropped() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for (name, sql) in END_QUERIES {
            case.begin(name);
            drop(fixture.plan(&case, sql).await);
            fixture.assert_clean(name);
            let stream = fixture.plan(&case, sql).await.stream().unwrap();
            drain(stream).await;
            fixture.assert_clean(name);
        }
    });
}

/// Cancels before the first read, while a call is blocked, and after the end.
#[test]
fn cancelled_by_its_handle() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for (shape, sql) in END_QUERIES {
            let calls = fixture.count_calls(&case, sql).await;
            // Below a join the number of calls varies; the first half is always reached.
            for step in steps(calls / 2 + 1) {
                let name = format!("{shape}, cancelled at call {step}");
                case.begin(&name);
                fixture.fault_udf.set(FaultKind::Hold, step);
                let planned = fixture.plan(&case, sql).await;
                let mut stream = planned.stream().unwrap();
                let query = gatework::query(&planned.plan).unwrap();
                // Unread rows fit the result buffer, so the call is reached.
                fixture.fault_udf.reached.wait();
                query.cancel();
                fixture.fault_udf.resumed.wait();
                let error = loop {
                    match stream.next().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break error.to_string(),
                        None => panic!("{name}: the cancelled query came to its end"),
                    }
                };
                assert!(error.contains("cancelled"), "{name}: {error}");
                idle(&query).await;
                query.cancel();
                assert_eq!(query.reserved_bytes(), 0, "{name}");
                fixture.assert_clean(&name);
            }
            fixture.assert_works(&case, shape).await;
        }
    });
}

#[test]
fn cancelled_after_its_end() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        let (name, sql) = END_QUERIES[2];
        case.begin(name);
        let expected = fixture.expected(sql).await;
        let planned = fixture.plan(&case, sql).await;
        let mut stream = planned.stream().unwrap();
        let query = gatework::query(&planned.plan).unwrap();
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch.unwrap());
        }
        query.cancel();
        assert!(stream.next().await.is_none());
        expected.check(name, &batches);
        fixture.assert_clean(name);
    });
}

/// Drops the stream while a call is blocked, so the error has no receiver.
#[test]
fn dropped_while_a_task_runs() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for (shape, sql) in END_QUERIES {
            let calls = fixture.count_calls(&case, sql).await;
            for step in [1, calls / 4 + 1, calls / 2 + 1] {
                let name = format!("{shape}, dropped at call {step}");
                case.begin(&name);
                fixture.fault_udf.set(FaultKind::Hold, step);
                let planned = fixture.plan(&case, sql).await;
                let stream = planned.stream().unwrap();
                let query = gatework::query(&planned.plan).unwrap();
                fixture.fault_udf.reached.wait();
                drop(stream);
                fixture.fault_udf.resumed.wait();
                idle(&query).await;
                assert_eq!(query.reserved_bytes(), 0, "{name}");
                fixture.assert_clean(&name);
            }
        }
        fixture.assert_works(&case, "afterwards").await;
    });
}

/// An executor that is shut down ends its queries with an error, and refuses new ones.
#[test]
fn an_executor_that_is_shut_down() {
    guarded(|case| async move {
        case.begin("shut down at call 3");
        let fixture = Fixture::new();
        let (_, sql) = END_QUERIES[2];
        fixture.fault_udf.set(FaultKind::Hold, 3);
        let planned = fixture.plan(&case, sql).await;
        let stream = planned.stream().unwrap();
        fixture.fault_udf.reached.wait();
        let executor = fixture.executor.clone();
        let shutdown = std::thread::spawn(move || executor.shutdown());
        let query = gatework::query(&planned.plan).unwrap();
        // Shutdown cancels first, and then waits for the blocked task.
        while query.error().is_none() {
            std::thread::yield_now();
        }
        fixture.fault_udf.resumed.wait();
        shutdown.join().unwrap();
        let results: Vec<_> = stream.collect().await;
        let error = results.into_iter().find_map(Result::err).unwrap().to_string();
        assert!(error.contains("shut down"), "{error}");
        fixture.assert_clean("after the shutdown");

        case.begin("executed after the shutdown");
        let refused = fixture.plan(&case, sql).await.collect().await.unwrap_err().to_string();
        assert!(refused.contains("shut down"), "{refused}");
        fixture.assert_clean("refused");
    });
}

/// One query fails repeatedly while another one runs on the same workers.
#[test]
fn errors_of_one_query_do_not_touch_another() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        let good_sql =
            "SELECT t.b, sum(d) AS s, count(*) AS n FROM t JOIN u ON t.b = u.c GROUP BY t.b";
        let expected = fixture.expected(good_sql).await;
        for (shape, bad_sql) in END_QUERIES {
            let calls = fixture.count_calls(&case, bad_sql).await;
            for (how, step) in
                [(FaultKind::Error, 1), (FaultKind::Panic, 1), (FaultKind::Error, calls / 2 + 1)]
            {
                let name = format!("beside {shape}, {how:?} at call {step}");
                case.begin(&name);
                let good = fixture.plan(&case, good_sql).await;
                let bad = fixture.plan(&case, bad_sql).await;
                fixture.fault_udf.set(how, step);
                let (good, bad) = futures::join!(good.collect(), bad.collect());
                let error = bad.unwrap_err().to_string();
                assert!(error.contains(MESSAGE), "{name}: {error}");
                expected.check(&name, &good.unwrap());
                fixture.assert_clean(&name);
            }
        }
    });
}
