//! Small graphs of one operator each, over tables with a key of any type.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion_common::{JoinType, NullEquality};
use datafusion_physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr, expressions::Column};
use gatework_runtime::pipeline::{Operator, QueryOptions};

use crate::{
    hash_aggregate::{self, AggregateConfig, AggregateInput, AggregateResult, GroupBy},
    join::hash_join::{self, HashJoinConfig},
    sort::{self, SortConfig},
    test_support::{ints, result_of, run_with, scan, table},
};

/// Default rows of a scan's morsel.
pub(super) const MORSEL: usize = 7;

/// Creates a table of a key and a row number column.
pub(super) fn keyed(key: ArrayRef) -> RecordBatch {
    let rows = key.len() as i32;
    table([("key", key), ("row", ints((0..rows).map(Some)))])
}

pub(super) fn column(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("c", index))
}

/// Runs `operators` behind a scan of `input`.
pub(super) fn streamed(
    input: &RecordBatch,
    morsel: usize,
    operators: Vec<Arc<dyn Operator>>,
) -> Vec<RecordBatch> {
    run_with(QueryOptions::default(), |graph| {
        result_of(graph, 1, 1, scan(input, morsel), operators)
    })
    .unwrap()
    .remove(0)
}

/// Sorts `input` by `key`.
pub(super) fn sorted(
    options: QueryOptions,
    input: &RecordBatch,
    key: Arc<dyn PhysicalExpr>,
    order: SortOptions,
    fetch: Option<usize>,
    sinks: usize,
) -> Vec<RecordBatch> {
    let ordering = LexOrdering::new(vec![PhysicalSortExpr::new(key, order)]).unwrap();
    let config = SortConfig { ordering, fetch, schema: input.schema(), batch_rows: 1000 };
    let (runs, merge) = sort::new(config, sinks).unwrap();
    run_with(options, |graph| {
        graph.add_pipeline("runs", sinks, scan(input, 100), vec![], Arc::new(runs)).unwrap();
        result_of(graph, 1, 1, Arc::new(merge), vec![])
    })
    .unwrap()
    .remove(0)
}

/// Groups `input` by `key`.
pub(super) fn grouped(
    options: QueryOptions,
    input: &RecordBatch,
    key: Arc<dyn PhysicalExpr>,
    sinks: usize,
) -> Vec<RecordBatch> {
    let kind = key.data_type(&input.schema()).unwrap();
    let group_by = GroupBy { keys: vec![key], sets: vec![vec![false]], ..GroupBy::default() };
    let config = AggregateConfig {
        group_by,
        aggregates: vec![],
        input: AggregateInput::Raw,
        output: AggregateResult::Final,
        input_schema: input.schema(),
        schema: Arc::new(Schema::new(vec![Field::new("key", kind, true)])),
        batch_rows: 1000,
        memory_is_limited: true,
    };
    let (build, output) = hash_aggregate::new(config, sinks, sinks).unwrap();
    run_with(options, |graph| {
        graph.add_pipeline("aggregate", sinks, scan(input, 100), vec![], Arc::new(build)).unwrap();
        result_of(graph, sinks, 1, Arc::new(output), vec![])
    })
    .unwrap()
    .remove(0)
}

/// Join under test.
pub(super) struct Join {
    pub(super) kind: JoinType,
    pub(super) nulls_equal: bool,
    pub(super) null_aware: bool,
    pub(super) keys: (Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>),
    pub(super) batch_rows: usize,
}

impl Join {
    /// Creates a join by the first columns.
    pub(super) fn plain(kind: JoinType) -> Self {
        let keys = (column(0), column(0));
        Self { kind, nulls_equal: false, null_aware: false, keys, batch_rows: 1000 }
    }

    pub(super) fn schema(&self, left: &RecordBatch, right: &RecordBatch) -> SchemaRef {
        let mark = Arc::new(Field::new("mark", DataType::Boolean, true));
        let (left, right) = (left.schema(), right.schema());
        let (left, right) = (left.fields().iter().cloned(), right.fields().iter().cloned());
        Arc::new(Schema::new(match self.kind {
            JoinType::LeftSemi | JoinType::LeftAnti => left.collect::<Vec<_>>(),
            JoinType::RightSemi | JoinType::RightAnti => right.collect(),
            JoinType::LeftMark => left.chain([mark]).collect(),
            JoinType::RightMark => right.chain([mark]).collect(),
            _ => left.chain(right).collect(),
        }))
    }

    pub(super) fn run(
        &self,
        options: QueryOptions,
        left: &RecordBatch,
        right: &RecordBatch,
    ) -> Vec<RecordBatch> {
        let config = HashJoinConfig {
            on: vec![self.keys.clone()],
            join_type: self.kind,
            filter: None,
            null_equality: match self.nulls_equal {
                true => NullEquality::NullEqualsNull,
                false => NullEquality::NullEqualsNothing,
            },
            null_aware: self.null_aware,
            projection: None,
            left_schema: left.schema(),
            right_schema: right.schema(),
            schema: self.schema(left, right),
            batch_rows: self.batch_rows,
            in_order: false,
        };
        let (build, probe) = hash_join::new(config, 2, 2, None).unwrap();
        run_with(options, |graph| {
            graph.add_pipeline("build", 2, scan(left, MORSEL), vec![], Arc::new(build)).unwrap();
            result_of(graph, 2, 1, scan(right, MORSEL), vec![Arc::new(probe)])
        })
        .unwrap()
        .remove(0)
    }
}
