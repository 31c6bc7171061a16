//! Plans with several output partitions, made by DataFusion's own planner: the rows of each
//! partition in any read order, and the other partitions after one is dropped.

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use gatework::verify::{ResultOrder, compare};

use crate::{
    query_end::fixture::{Fixture, idle},
    support::{Case, Planned, executor, guarded, plan, rows},
};

const PARTITIONS: usize = 4;
/// Its rows are partitioned by hash, so the partition of each row is part of the contract.
const HASHED: &str = "SELECT b, count(*) AS n, sum(a) AS s FROM t GROUP BY b";
/// Any partition may have any row.
const FREE: &str = "SELECT a, d FROM t JOIN u ON b = c";

fn fixture() -> Fixture {
    Fixture::on(executor(2), PARTITIONS)
}

async fn planned(case: &Case, fixture: &Fixture, sql: &str) -> Planned {
    let planned = fixture.plan(case, sql).await;
    assert!(planned.partitions() > 1, "{sql} has one partition only");
    planned
}

fn assert_same(name: &str, actual: &[RecordBatch], expected: &[RecordBatch]) {
    if let Err(difference) = compare(actual, expected, &ResultOrder::unordered()) {
        panic!("{name}: {difference}");
    }
}

#[test]
fn every_partition_has_the_rows_it_has_in_datafusion() {
    guarded(|case| async move {
        case.begin(HASHED);
        let fixture = fixture();
        let reference = plan(&case, &fixture.reference, HASHED).await.unwrap();
        let ours = planned(&case, &fixture, HASHED).await;
        assert_eq!(ours.partitions(), reference.partitions());
        let partitions = 0..ours.partitions();
        let actual = try_join_all(partitions.clone().map(|n| ours.collect_partition(n)));
        for (partition, actual) in actual.await.unwrap().into_iter().enumerate() {
            let expected = reference.collect_partition(partition).await.unwrap();
            assert_same(&format!("partition {partition}"), &actual, &expected);
        }
        fixture.assert_clean(HASHED);
    });
}

#[test]
fn partitions_read_one_after_another() {
    guarded(|case| async move {
        let fixture = fixture();
        for sql in [HASHED, FREE] {
            case.begin(sql);
            let expected = fixture.expected(sql).await;
            let ours = planned(&case, &fixture, sql).await;
            let forwards: Vec<usize> = (0..ours.partitions()).collect();
            let backwards = forwards.iter().rev().copied().collect();
            for order in [forwards, backwards] {
                let (mut batches, mut streams) = (Vec::new(), Vec::new());
                for partition in &order {
                    let context = ours.context.clone();
                    streams.push(ours.plan.execute(*partition, context).unwrap());
                }
                for stream in streams {
                    batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
                }
                expected.check(&format!("{sql}, {order:?}"), &batches);
                fixture.assert_clean(sql);
            }
        }
    });
}

/// The other partitions return their rows: exactly their own where the partitioning is fixed.
#[test]
fn one_partition_is_dropped() {
    guarded(|case| async move {
        let fixture = fixture();
        for sql in [HASHED, FREE] {
            let count = planned(&case, &fixture, sql).await.partitions();
            let whole = planned(&case, &fixture, sql).await;
            let whole = try_join_all((0..count).map(|n| whole.collect_partition(n))).await.unwrap();
            let total: usize = whole.iter().map(|partition| rows(partition)).sum();
            for (dropped, taken) in (0..count).flat_map(|n| [(n, 0), (n, 1), (n, 2)]) {
                let name = format!("{sql}, partition {dropped} dropped after {taken} batches");
                case.begin(&name);
                let ours = planned(&case, &fixture, sql).await;
                let mut streams: Vec<_> = (0..count)
                    .map(|n| ours.plan.execute(n, ours.context.clone()).unwrap())
                    .collect();
                let query = gatework::query(&ours.plan).unwrap();
                let mut gone = streams.remove(dropped);
                for _ in 0..taken {
                    if let Some(batch) = gone.next().await {
                        batch.unwrap();
                    }
                }
                drop(gone);
                let read = try_join_all(streams.into_iter().map(TryStreamExt::try_collect));
                let read: Vec<Vec<RecordBatch>> = read.await.unwrap();
                idle(&query).await;
                assert!(query.error().is_none(), "{name}: {:?}", query.error());
                let others = whole.iter().enumerate().filter(|(n, _)| *n != dropped);
                for (actual, (partition, expected)) in read.iter().zip(others) {
                    if sql == HASHED {
                        assert_same(&format!("{name}: partition {partition}"), actual, expected);
                    }
                }
                assert!(read.iter().map(|batches| rows(batches)).sum::<usize>() <= total, "{name}");
                drop((query, ours));
                fixture.assert_clean(&name);
            }
        }
    });
}

/// A caller that reads one partition only gets its rows; the others are dropped with the plan.
#[test]
fn partitions_that_nobody_asks_for() {
    guarded(|case| async move {
        let fixture = fixture();
        for sql in [HASHED, FREE] {
            for partition in 0..PARTITIONS {
                let name = format!("{sql}, partition {partition} alone");
                case.begin(&name);
                let ours = planned(&case, &fixture, sql).await;
                if partition < ours.partitions() {
                    ours.collect_partition(partition).await.unwrap();
                }
                drop(ours);
                // The guard keeps plans for its report; a new case drops them.
                case.begin("next");
                fixture.assert_clean_soon(&name);
            }
        }
    });
}
