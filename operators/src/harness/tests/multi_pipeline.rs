//! Operators that connect several pipelines, under every mode.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion_common::{JoinType, NullEquality};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use gatework_runtime::{
    Result,
    pipeline::{Graph, Operator, Sink, WaitEdge},
};
use gatework_shared_state::BufferLimit;

use crate::{
    harness::{Case, Harness, Mode, numbers, rows_of, same_rows},
    join::{
        hash_join::{self, HashJoinConfig},
        nested_loop_join::NestedLoopJoin,
    },
    local_exchange::{self, Routing},
    multicast,
    set_operation::{self, SetKind},
};

fn n() -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("n", 0))
}

fn schema() -> SchemaRef {
    numbers(0..1, 1)[0].schema()
}

/// Expects the rows of `expected` in any order, independent of their task.
fn expect(harness: Harness, expected: Vec<RecordBatch>) -> Harness {
    harness.expect_with(move |actual| {
        let rows = |batches| rows_of(batches).map_err(|error| error.to_string());
        same_rows(&rows(&expected)?, &rows(actual)?)
    })
}

/// Builds a join of both inputs.
fn joined(
    case: &Case,
    build: impl Sink + 'static,
    probe: impl Operator + 'static,
) -> Result<Graph> {
    let (mut graph, tasks) = (Graph::new(), case.num_tasks());
    let producer = graph.add_pipeline("build", tasks, case.source(0), vec![], Arc::new(build))?;
    let probe = vec![Arc::new(probe) as _];
    let consumer = graph.add_pipeline("probe", tasks, case.source(1), probe, case.result(tasks))?;
    graph.add_edge(WaitEdge::Breaker { producer, consumer });
    Ok(graph)
}

#[test]
fn hash_join() {
    let both = [Field::new("n", DataType::Int64, false), Field::new("n", DataType::Int64, false)];
    let both = Arc::new(Schema::new(both.to_vec()));
    let harness = Harness::graph(move |case: &Case| {
        let config = HashJoinConfig {
            on: vec![(n(), n())],
            join_type: JoinType::LeftAnti,
            filter: None,
            null_equality: NullEquality::NullEqualsNothing,
            null_aware: false,
            projection: Some([0].into()),
            left_schema: schema(),
            right_schema: schema(),
            schema: Arc::new(both.project(&[0]).unwrap()),
            batch_rows: 4,
            in_order: false,
        };
        let tasks = case.num_tasks();
        let (build, probe) = hash_join::new(config, tasks, tasks, None)?;
        joined(case, build, probe)
    });
    let harness = harness.input(numbers(0..40, 6)).input(numbers(30..70, 6)).every_steps(3);
    expect(harness, numbers(0..30, 30)).check(Mode::all());
}

#[test]
fn nested_loop_join() {
    let harness = Harness::graph(|case: &Case| {
        let join = NestedLoopJoin {
            join_type: JoinType::LeftSemi,
            filter: None,
            left_columns: 1,
            right_columns: 1,
            projection: None,
            schema: schema(),
            batch_size: 4,
        };
        let tasks = case.num_tasks();
        let (build, probe) = join.operators(tasks, tasks);
        joined(case, build, probe)
    });
    let harness = harness.input(numbers(0..20, 6)).input(numbers(0..5, 2));
    expect(harness, numbers(0..20, 20)).check(Mode::without_spill());
}

/// Tests an exchange; an overflowing buffer spills, a blocking buffer does not.
fn exchange(allow_overflow: bool) -> Harness {
    let harness = Harness::graph(move |case: &Case| {
        let budget = case.budget();
        if allow_overflow {
            budget.allow_overflow();
        }
        let tasks = case.num_tasks();
        let (mut sinks, source) =
            local_exchange::new(Routing::Hash(vec![n()]), &[tasks], tasks, budget.clone())?;
        let mut graph = Graph::new();
        let sink = Arc::new(sinks.remove(0));
        let producer = graph.add_pipeline("in", tasks, case.source(0), vec![], sink)?;
        let consumer =
            graph.add_pipeline("out", tasks, Arc::new(source), vec![], case.result(tasks))?;
        graph.add_edge(WaitEdge::Buffer { producer, consumer, budget, ordered: false });
        Ok(graph)
    });
    expect(harness.input(numbers(0..40, 6)), numbers(0..40, 40))
}

#[test]
fn local_exchange() {
    exchange(false).check(Mode::without_memory());
    exchange(true).check(Mode::all());
}

/// Both readers write into one result.
#[test]
fn multicast_and_exchange() {
    let harness = Harness::graph(|case: &Case| -> Result<Graph> {
        let budget = case.budget();
        budget.allow_overflow();
        let (sink, mut readers) = multicast::new(2, budget.clone());
        let (mut children, both) =
            local_exchange::new(Routing::PassToOne, &[1, 1], 1, BufferLimit::new(1))?;
        let mut graph = Graph::new();
        let producer = graph.add_pipeline("in", 1, case.source(0), vec![], Arc::new(sink))?;
        let mut consumers = Vec::new();
        for _ in 0..2 {
            let (reader, child) = (Arc::new(readers.remove(0)), Arc::new(children.remove(0)));
            consumers.push(graph.add_pipeline("reader", 1, reader, vec![], child)?);
        }
        graph.add_pipeline("both", 1, Arc::new(both), vec![], case.result(1))?;
        for consumer in consumers {
            let budget = budget.clone();
            graph.add_edge(WaitEdge::Buffer { producer, consumer, budget, ordered: false });
        }
        Ok(graph)
    });
    let twice = [numbers(0..20, 20), numbers(0..20, 20)].concat();
    expect(harness.input(numbers(0..20, 6)).num_tasks(1..=1), twice).check(Mode::all());
}

#[test]
fn set_operation() {
    let harness = Harness::graph(|case: &Case| {
        let (mut sinks, source) = set_operation::new(SetKind::Intersect, 2, schema(), 4)?;
        let mut graph = Graph::new();
        let first =
            graph.add_pipeline("first", 1, case.source(0), vec![], Arc::new(sinks.remove(0)))?;
        let second =
            graph.add_pipeline("second", 1, case.source(1), vec![], Arc::new(sinks.remove(0)))?;
        let out = graph.add_pipeline("out", 1, Arc::new(source), vec![], case.result(1))?;
        graph.add_edge(WaitEdge::Breaker { producer: first, consumer: second });
        graph.add_edge(WaitEdge::Breaker { producer: second, consumer: out });
        Ok(graph)
    });
    let harness = harness.input(numbers(0..30, 6)).input(numbers(20..50, 6)).num_tasks(1..=1);
    expect(harness, numbers(20..30, 10)).check(Mode::without_spill());
}
