//! The operators of `examples/own_operators`, each in every mode; they use `operators::prelude` and
//! Arrow only, and that module's names beside DataFusion's.

#[allow(dead_code, unreachable_pub, reason = "the example's main function is not called")]
#[path = "../examples/own_operators/main.rs"]
mod examples;

#[test]
fn filter() {
    examples::filter::test();
}

#[test]
fn source_that_is_fed_from_outside() {
    examples::feed::test();
}

#[test]
fn distinct_count() {
    examples::distinct_count::test();
}

#[test]
fn broadcast() {
    examples::broadcast::test();
}

#[test]
fn breaker_that_spills_and_ends_early() {
    examples::hold::test();
}

/// The names that this test uses mean the same beside the other prelude.
#[test]
fn both_preludes_in_one_file() {
    use datafusion::prelude::*;
    use gatework::operators::prelude::*;

    let executor = gatework::Executor::builder().threads(1).build().unwrap();
    let query = QueryContext::new(&executor, QueryOptions::default());
    let expression: Expr = col("n").gt(lit(3));
    let context: SessionContext = gatework::session(&executor);
    let batch: Batch = numbers(0..3, 8).remove(0).into();
    let result: PipelineResult<SourceResult> = SourceResult::after(ProducerEnd::Finished);
    assert!(matches!(result, Ok(SourceResult::Finished)));
    assert_eq!((batch.num_rows(), query.live_tasks()), (3, 0));
    assert!(context.catalog("datafusion").is_some() && !expression.to_string().is_empty());
}
