//! Errors in expressions have DataFusion's texts.

use crate::{
    query_end::fixture::Fixture,
    support::{guarded, plan},
};

/// One row of each table fails, so the order of evaluation does not matter.
const FAULTS: [&str; 14] = [
    "SELECT 10 / (n - 77) AS q FROM texts",
    "SELECT 10 % (n - 77) AS q FROM texts",
    "SELECT n FROM texts WHERE 10 / (n - 77) > 3",
    "SELECT n % 5 AS k, sum(10 / (n - 77)) AS s FROM texts GROUP BY n % 5",
    "SELECT n FROM texts ORDER BY 10 / (n - 77)",
    "SELECT a FROM t JOIN texts ON a = 10 / (n - 77)",
    "SELECT CAST(text AS BIGINT) AS q FROM texts",
    "SELECT sum(CAST(text AS BIGINT)) AS q FROM texts",
    "SELECT CAST(text AS DATE) AS q FROM texts WHERE n = 77",
    "SELECT CAST(CASE WHEN n = 77 THEN 300 ELSE 1 END AS TINYINT) AS q FROM texts",
    "SELECT CAST(CASE WHEN n = 77 THEN 12345 ELSE 1 END AS DECIMAL(4, 1)) AS q FROM texts",
    "SELECT abs(CASE WHEN n = 77 THEN -9223372036854775807 - 1 ELSE n END) AS q FROM texts",
    "SELECT -(CASE WHEN n = 77 THEN -9223372036854775807 - 1 ELSE n END) AS q FROM texts",
    "SELECT n FROM texts WHERE n > (SELECT d FROM u)",
];

#[test]
fn errors_say_what_datafusion_says() {
    guarded(|case| async move {
        let fixture = Fixture::new();
        for sql in FAULTS {
            case.begin(sql);
            let reference = plan(&case, &fixture.reference, sql).await.unwrap().collect().await;
            let ours = fixture.plan(&case, sql).await.collect().await;
            match (reference, ours) {
                (Err(expected), Err(actual)) => {
                    assert_eq!(actual.strip_backtrace(), expected.strip_backtrace(), "{sql}");
                }
                // Values that wrap around in DataFusion wrap around in gatework.
                (Ok(_), Ok(_)) => {}
                (expected, actual) => panic!("{sql}: {actual:?} where {expected:?} is expected"),
            }
            fixture.assert_clean(sql);
            fixture.assert_works(&case, sql).await;
        }
    });
}
