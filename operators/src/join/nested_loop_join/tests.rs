//! All join types against a model that tests every pair, over batch sizes, task counts and filters.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion_common::{JoinSide, JoinType, ScalarValue};
use datafusion_expr::Operator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column, Literal},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Graph, GreedyPool, QueryContext, QueryOptions, RowStream, Source},
};
use proptest::prelude::*;

use super::NestedLoopJoin;
use crate::{
    JoinFilter,
    test_support::{
        EXECUTOR, FailingScan, ints, result_of, run, run_with, scan, sorted_rows, table, wait_idle,
    },
};

const TYPES: [JoinType; 10] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::RightSemi,
    JoinType::LeftAnti,
    JoinType::RightAnti,
    JoinType::LeftMark,
    JoinType::RightMark,
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum On {
    Everything,
    Less,
    Equal,
    Constant(Option<bool>),
}

impl On {
    fn filter(self) -> Option<JoinFilter> {
        let compare = |operator| JoinFilter {
            expression: Arc::new(BinaryExpr::new(
                Arc::new(Column::new("r", 0)),
                operator,
                Arc::new(Column::new("l", 1)),
            )) as Arc<dyn PhysicalExpr>,
            columns: vec![(JoinSide::Right, 0), (JoinSide::Left, 0)],
            schema: Arc::new(Schema::new(vec![
                Field::new("r", DataType::Int32, true),
                Field::new("l", DataType::Int32, true),
            ])),
        };
        match self {
            Self::Everything => None,
            Self::Less => Some(compare(Operator::Gt)),
            Self::Equal => Some(compare(Operator::Eq)),
            Self::Constant(value) => Some(JoinFilter {
                expression: Arc::new(Literal::new(ScalarValue::Boolean(value))),
                columns: vec![],
                schema: Arc::new(Schema::empty()),
            }),
        }
    }

    fn holds(self, left: Option<i32>, right: Option<i32>) -> bool {
        match self {
            Self::Everything => true,
            Self::Less => left.zip(right).is_some_and(|(left, right)| left < right),
            Self::Equal => left.zip(right).is_some_and(|(left, right)| left == right),
            Self::Constant(value) => value == Some(true),
        }
    }
}

fn text(key: Option<i32>) -> String {
    key.map_or_else(|| "NULL".to_owned(), |key| key.to_string())
}

/// Returns each row as (key, number).
fn side(name: &str, keys: &[Option<i32>]) -> RecordBatch {
    table([
        (&format!("{name}_key"), ints(keys.iter().copied())),
        (&format!("{name}_row"), ints((0..keys.len() as i32).map(Some))),
    ])
}

fn model(kind: JoinType, on: On, left: &[Option<i32>], right: &[Option<i32>]) -> Vec<String> {
    let one = |(row, key): (usize, &Option<i32>)| format!("{}|{row}", text(*key));
    let (left_rows, right_rows): (Vec<_>, Vec<_>) =
        (left.iter().enumerate().map(one).collect(), right.iter().enumerate().map(one).collect());
    let left_match: Vec<bool> =
        left.iter().map(|l| right.iter().any(|r| on.holds(*l, *r))).collect();
    let right_match: Vec<bool> =
        right.iter().map(|r| left.iter().any(|l| on.holds(*l, *r))).collect();
    let mut rows: Vec<String> = Vec::new();
    if let JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full = kind {
        for (l, l_key) in left.iter().enumerate() {
            for (r, r_key) in right.iter().enumerate() {
                if on.holds(*l_key, *r_key) {
                    rows.push(format!("{}|{}", left_rows[l], right_rows[r]));
                }
            }
        }
    }
    let pick = |side: &[String], matches: &[bool], wanted: bool| -> Vec<String> {
        let chosen = side.iter().zip(matches).filter(|(_, matched)| **matched == wanted);
        chosen.map(|(row, _)| row.clone()).collect()
    };
    let mark = |side: &[String], matches: &[bool]| -> Vec<String> {
        side.iter().zip(matches).map(|(row, matched)| format!("{row}|{matched}")).collect()
    };
    let padded = |rows: Vec<String>, before: &str, after: &str| -> Vec<String> {
        rows.into_iter().map(|row| format!("{before}{row}{after}")).collect()
    };
    if let JoinType::Left | JoinType::Full = kind {
        rows.extend(padded(pick(&left_rows, &left_match, false), "", "|NULL|NULL"));
    }
    if let JoinType::Right | JoinType::Full = kind {
        rows.extend(padded(pick(&right_rows, &right_match, false), "NULL|NULL|", ""));
    }
    rows.extend(match kind {
        JoinType::LeftSemi => pick(&left_rows, &left_match, true),
        JoinType::LeftAnti => pick(&left_rows, &left_match, false),
        JoinType::LeftMark => mark(&left_rows, &left_match),
        JoinType::RightSemi => pick(&right_rows, &right_match, true),
        JoinType::RightAnti => pick(&right_rows, &right_match, false),
        JoinType::RightMark => mark(&right_rows, &right_match),
        _ => vec![],
    });
    rows.sort_unstable();
    rows
}

/// Returns the schema of a join of two [`side`]s, before a projection.
fn schema(kind: JoinType) -> Schema {
    let columns = |name: &str| {
        [
            Field::new(format!("{name}_key"), DataType::Int32, true),
            Field::new(format!("{name}_row"), DataType::Int32, true),
        ]
    };
    let mark = Field::new("mark", DataType::Boolean, false);
    Schema::new(match kind {
        JoinType::LeftSemi | JoinType::LeftAnti => columns("l").to_vec(),
        JoinType::RightSemi | JoinType::RightAnti => columns("r").to_vec(),
        JoinType::LeftMark => [columns("l").as_slice(), &[mark]].concat(),
        JoinType::RightMark => [columns("r").as_slice(), &[mark]].concat(),
        _ => [columns("l"), columns("r")].concat(),
    })
}

#[derive(Debug, Clone)]
struct Case {
    kind: JoinType,
    on: On,
    morsel: usize,
    batch_size: usize,
    builds: usize,
    probes: usize,
}

impl Case {
    fn join(&self, projection: Option<Vec<usize>>) -> NestedLoopJoin {
        let whole = schema(self.kind);
        let schema = match &projection {
            Some(columns) => whole.project(columns).unwrap(),
            None => whole,
        };
        NestedLoopJoin {
            join_type: self.kind,
            filter: self.on.filter(),
            left_columns: 2,
            right_columns: 2,
            projection: projection.map(Into::into),
            schema: Arc::new(schema),
            batch_size: self.batch_size,
        }
    }

    fn run(
        &self,
        join: NestedLoopJoin,
        left: Arc<dyn Source>,
        right: Arc<dyn Source>,
    ) -> Result<Vec<RecordBatch>> {
        run(|graph| {
            let (build, probe) = join.operators(self.builds, self.probes);
            graph.add_pipeline("build", self.builds, left, vec![], Arc::new(build)).unwrap();
            result_of(graph, self.probes, 1, right, vec![Arc::new(probe)])
        })
    }

    fn check(&self, left: &[Option<i32>], right: &[Option<i32>]) {
        let (left_batch, right_batch) = (side("l", left), side("r", right));
        let sources = || (scan(&left_batch, self.morsel), scan(&right_batch, self.morsel));
        let (l, r) = sources();
        let batches = self.run(self.join(None), l, r).unwrap();
        assert_eq!(sorted_rows(&batches), model(self.kind, self.on, left, right), "{self:?}");
        for batch in &batches {
            assert!(batch.num_rows() <= self.batch_size.max(self.morsel));
        }
        let columns: Vec<usize> = (0..schema(self.kind).fields().len()).rev().collect();
        let (l, r) = sources();
        let projected = self.run(self.join(Some(columns.clone())), l, r).unwrap();
        let back: Vec<_> = projected.iter().map(|batch| batch.project(&columns).unwrap()).collect();
        assert_eq!(sorted_rows(&back), sorted_rows(&batches), "projected, {self:?}");
    }
}

fn on() -> impl Strategy<Value = On> {
    prop_oneof![
        Just(On::Everything),
        Just(On::Less),
        Just(On::Equal),
        Just(On::Constant(Some(true))),
        Just(On::Constant(Some(false))),
        Just(On::Constant(None)),
    ]
}

fn keys() -> impl Strategy<Value = Vec<Option<i32>>> {
    prop::collection::vec(prop::option::weighted(0.8, 0..6), 0..14)
}

fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1_usize, 3, 8192])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn every_join_type_gives_the_rows_of_the_model(
        kind in prop::sample::select(TYPES.to_vec()),
        on in on(),
        left in keys(),
        right in keys(),
        morsel in size(),
        batch_size in size(),
        builds in 1..4_usize,
        probes in 1..4_usize,
    ) {
        Case { kind, on, morsel, batch_size, builds, probes }.check(&left, &right);
    }
}

/// More pairs than a block has, with right batches shorter and longer than a block.
#[test]
fn blocks_join_up() {
    let keys = |rows: i32, step: i32| -> Vec<Option<i32>> {
        (0..rows).map(|row| (row % 11 != 0).then_some(row * step % 101)).collect()
    };
    for kind in TYPES {
        for (left, right, morsel) in [(37, 3000, 3000), (300, 700, 500), (3, 20_000, 20_000)] {
            let on = if kind == JoinType::Inner { On::Equal } else { On::Less };
            let case = Case { kind, on, morsel, batch_size: 8192, builds: 2, probes: 2 };
            case.check(&keys(left, 7), &keys(right, 3));
        }
    }
}

/// A left row finds its match in a block that ends within that row's pairs. The only match of the
/// next left row lies before that point.
#[test]
fn a_left_row_that_needs_no_more_pairs_takes_none_from_the_next() {
    for kind in [JoinType::LeftSemi, JoinType::LeftAnti, JoinType::LeftMark] {
        let case = Case { kind, on: On::Equal, morsel: 8192, batch_size: 2, builds: 1, probes: 1 };
        case.check(&[Some(5), Some(5)], &[Some(5), Some(1), Some(2)]);
    }
}

#[test]
fn nothing_is_read_for_an_empty_left_side() {
    for kind in TYPES {
        let needs_left = !matches!(
            kind,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        );
        let case = Case { kind, on: On::Equal, morsel: 1, batch_size: 3, builds: 2, probes: 2 };
        let answer = case.run(case.join(None), scan(&side("l", &[]), 1), Arc::new(FailingScan));
        match answer {
            Ok(batches) => assert!(needs_left && batches.is_empty(), "{kind}"),
            Err(error) => assert!(!needs_left && error.to_string() == "the scan failed", "{kind}"),
        }
    }
}

#[test]
fn a_failed_left_side_is_not_an_empty_one() {
    let case = Case {
        kind: JoinType::RightAnti,
        on: On::Equal,
        morsel: 1,
        batch_size: 3,
        builds: 1,
        probes: 2,
    };
    let right = scan(&side("r", &[Some(1)]), 1);
    let error = case.run(case.join(None), Arc::new(FailingScan), right).unwrap_err();
    assert_eq!(error.to_string(), "the scan failed");
}

#[test]
fn sides_without_columns_keep_their_rows() {
    let options = RecordBatchOptions::new().with_row_count(Some(5));
    let none: SchemaRef = Arc::new(Schema::empty());
    let rows = RecordBatch::try_new_with_options(none.clone(), vec![], &options).unwrap();
    let join = NestedLoopJoin {
        join_type: JoinType::Inner,
        filter: None,
        left_columns: 0,
        right_columns: 0,
        projection: None,
        schema: none,
        batch_size: 3,
    };
    let case = Case {
        kind: JoinType::Inner,
        on: On::Everything,
        morsel: 2,
        batch_size: 3,
        builds: 1,
        probes: 1,
    };
    let batches = case.run(join, scan(&rows, 2), scan(&rows, 2)).unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 25);
}

#[test]
fn the_left_side_reserves_query_memory() {
    let rows = side("l", &vec![Some(1); 10_000]);
    let right = side("r", &[Some(1)]);
    let case = Case {
        kind: JoinType::LeftAnti,
        on: On::Equal,
        morsel: 1000,
        batch_size: 100,
        builds: 2,
        probes: 2,
    };
    // 8 bytes per row plus validity, and a match bit per row.
    for (limit, fits) in [(70_000, false), (90_000, true)] {
        let memory = Arc::new(GreedyPool::new(limit));
        let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
        let answer = run_with(options, |graph| {
            let (build, probe) = case.join(None).operators(2, 2);
            graph.add_pipeline("build", 2, scan(&rows, 1000), vec![], Arc::new(build)).unwrap();
            result_of(graph, 2, 1, scan(&right, 1), vec![Arc::new(probe)])
        });
        match answer {
            Ok(batches) => assert!(fits && batches[0].is_empty(), "{limit}"),
            Err(error) => assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        assert_eq!(memory.reserved(), 0);
    }
}

#[test]
fn a_long_probe_is_cancelled_between_blocks() {
    // 10^11 pairs take minutes. Those of the first left row match and are read at once.
    let mut keys = vec![Some(1); 300_000];
    keys[0] = Some(0);
    let rows = side("l", &keys);
    let right = side("r", &vec![Some(1); 300_000]);
    let case = Case {
        kind: JoinType::Inner,
        on: On::Less,
        morsel: 8192,
        batch_size: 8192,
        builds: 1,
        probes: 2,
    };
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    let mut graph = Graph::new();
    let (build, probe) = case.join(None).operators(1, 2);
    graph.add_pipeline("build", 1, scan(&rows, 8192), vec![], Arc::new(build)).unwrap();
    let readers = result_of(&mut graph, 2, 1, scan(&right, 8192), vec![Arc::new(probe)]);
    let running = graph.start(&query).unwrap();
    let stream = RowStream::of_query(&running, readers).remove(0);
    let mut batches = stream.into_blocking_iter();
    assert_eq!(batches.next().unwrap().unwrap().num_rows(), 8192);
    query.cancel();
    wait_idle(&query);
    assert!(batches.any(|batch| matches!(batch, Err(Error::Cancelled { .. }))));
}
