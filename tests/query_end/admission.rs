//! A query of several regions, on an executor that runs one query at a time.

use std::sync::Arc;

use arrow::{
    array::{Int64Array, RecordBatch},
    compute::SortOptions,
};
use datafusion::{
    common::NullEquality,
    logical_expr::JoinType,
    physical_expr::expressions::Column,
    physical_plan::{ExecutionPlan, collect, joins::SortMergeJoinExec},
    prelude::{SessionConfig, SessionContext},
};
use gatework::{Executor, Settings};

use crate::support::guarded;

const ROWS: i64 = 50_000;

async fn numbers(session: &SessionContext) -> Arc<dyn ExecutionPlan> {
    let rows = Arc::new(Int64Array::from_iter_values((0..ROWS).rev()));
    let rows = RecordBatch::try_from_iter([("n", rows as _)]).unwrap();
    let rows = session.read_batch(rows).unwrap().sort_by(vec![datafusion::prelude::col("n")]);
    rows.unwrap().create_physical_plan().await.unwrap()
}

/// DataFusion's merge join reads two regions alternately, so neither can wait until the other has
/// ended.
#[test]
fn regions_below_a_foreign_root_take_one_turn() {
    guarded(|case| async move {
        case.begin("two regions");
        let executor = Executor::builder().threads(2).max_queries(1.try_into().unwrap());
        let executor = executor.build().unwrap();
        let settings = Settings { result_buffer_bytes: 1, ..Settings::default() };
        let config = SessionConfig::new().with_target_partitions(1).with_batch_size(100);
        let session = SessionContext::new_with_config(settings.into_config(config));
        let (left, right) = (numbers(&session).await, numbers(&session).await);
        let key = || Arc::new(Column::new("n", 0)) as _;
        let join = SortMergeJoinExec::try_new(
            left,
            right,
            vec![(key(), key())],
            None,
            JoinType::Inner,
            vec![SortOptions::default()],
            NullEquality::NullEqualsNothing,
        );
        let plan = gatework::sql::wrap_until(Arc::new(join.unwrap()), &executor, &|_| false);
        let plan = plan.unwrap();
        for _ in 0..2 {
            let batches = collect(plan.clone(), session.task_ctx()).await.unwrap();
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows, ROWS as usize);
        }
    });
}
