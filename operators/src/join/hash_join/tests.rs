//! All join types against a model that tests every pair: key kinds, both NULL equalities, `NOT IN`,
//! residual filters, projections, over tasks and batch sizes. Runtime filters and large inputs have
//! files of their own.

mod large;
mod model;
mod runtime_filter;
mod spill;

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema},
};
use datafusion_common::{JoinSide, JoinType, NullEquality};
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, Column},
};
use gatework_runtime::{
    Result,
    pipeline::{Graph, Operator, Source},
};
use proptest::prelude::*;

use self::model::{KeyKind, Side};
use super::{HashJoinConfig, new};
use crate::{
    JoinFilter,
    harness::contexts,
    runtime_filter::FilterProducer,
    test_support::{
        FailingScan, Readers, dictionary_scan, ints, result_of, run, scan, sorted_rows, table,
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

/// A join and how it runs.
#[derive(Debug, Clone)]
struct Case {
    kind: JoinType,
    key: KeyKind,
    nulls_equal: bool,
    null_aware: bool,
    /// Whether the left value must be less than the right one.
    residual: bool,
    morsel: usize,
    batch_rows: usize,
    builds: usize,
    probes: usize,
}

impl Case {
    fn plain(kind: JoinType) -> Self {
        Self {
            kind,
            key: KeyKind::Int,
            nulls_equal: false,
            null_aware: false,
            residual: false,
            morsel: 3,
            batch_rows: 3,
            builds: 2,
            probes: 2,
        }
    }

    /// Returns the schema of the join's output before a projection.
    fn schema(&self, left: &RecordBatch, right: &RecordBatch) -> Schema {
        let (left, right) = (left.schema(), right.schema());
        let mark = Arc::new(Field::new("mark", DataType::Boolean, false));
        let columns: Vec<_> = match self.kind {
            JoinType::LeftSemi | JoinType::LeftAnti => left.fields().to_vec(),
            JoinType::RightSemi | JoinType::RightAnti => right.fields().to_vec(),
            JoinType::LeftMark => left.fields().iter().cloned().chain([mark]).collect(),
            JoinType::RightMark => right.fields().iter().cloned().chain([mark]).collect(),
            _ => left.fields().iter().chain(right.fields()).cloned().collect(),
        };
        Schema::new(columns)
    }

    /// `left.value < right.value`.
    fn residual(left: &RecordBatch, right: &RecordBatch) -> JoinFilter {
        let value = |name, index| Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>;
        // The filter's schema has the right column first, so that column order and sides differ.
        let expression = BinaryExpr::new(value("l", 1), BinaryOperator::Lt, value("r", 0));
        let value_index = |batch: &RecordBatch| batch.schema().index_of("value").unwrap();
        JoinFilter {
            expression: Arc::new(expression),
            columns: vec![
                (JoinSide::Right, value_index(right)),
                (JoinSide::Left, value_index(left)),
            ],
            schema: Arc::new(Schema::new(vec![
                Field::new("r", DataType::Int32, true),
                Field::new("l", DataType::Int32, true),
            ])),
        }
    }

    fn config(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        projection: Option<&[usize]>,
    ) -> HashJoinConfig {
        let whole = self.schema(left, right);
        let schema = match projection {
            Some(columns) => whole.project(columns).unwrap(),
            None => whole,
        };
        let key = |index| Arc::new(Column::new("key", index)) as Arc<dyn PhysicalExpr>;
        HashJoinConfig {
            on: (0..self.key.columns()).map(|index| (key(index), key(index))).collect(),
            join_type: self.kind,
            filter: self.residual.then(|| Self::residual(left, right)),
            null_equality: match self.nulls_equal {
                true => NullEquality::NullEqualsNull,
                false => NullEquality::NullEqualsNothing,
            },
            null_aware: self.null_aware,
            projection: projection.map(Into::into),
            left_schema: left.schema(),
            right_schema: right.schema(),
            schema: Arc::new(schema),
            batch_rows: self.batch_rows,
            in_order: false,
        }
    }

    /// Adds the join's two pipelines.
    fn add(
        &self,
        graph: &mut Graph,
        config: HashJoinConfig,
        left: Arc<dyn Source>,
        right: Arc<dyn Source>,
        filter: Option<FilterProducer>,
    ) -> Readers {
        let (build, probe) = new(config, self.builds, self.probes, filter).unwrap();
        graph.add_pipeline("build", self.builds, left, vec![], Arc::new(build)).unwrap();
        result_of(graph, self.probes, 1, right, vec![Arc::new(probe)])
    }

    fn run(
        &self,
        left: &RecordBatch,
        right: &RecordBatch,
        projection: Option<&[usize]>,
    ) -> Result<Vec<RecordBatch>> {
        let config = self.config(left, right, projection);
        let (left, right) = (scan(left, self.morsel), scan(right, self.morsel));
        run(|graph| self.add(graph, config, left, right, None))
    }

    fn check(&self, left: &Side, right: &Side) {
        let batches = self.run(&left.batch, &right.batch, None).unwrap();
        assert_eq!(sorted_rows(&batches), self.model(left, right), "{self:?}");
        for batch in &batches {
            assert!(batch.num_rows() <= self.batch_rows.max(self.morsel).max(8192));
            assert!(self.kind != JoinType::Inner || batch.num_rows() <= self.batch_rows);
        }
        // All columns but the first, in reverse order.
        let columns: Vec<usize> =
            (1..self.schema(&left.batch, &right.batch).fields().len()).rev().collect();
        let projected = self.run(&left.batch, &right.batch, Some(&columns)).unwrap();
        let whole: Vec<_> = batches.iter().map(|batch| batch.project(&columns).unwrap()).collect();
        assert_eq!(sorted_rows(&projected), sorted_rows(&whole), "projected, {self:?}");
        self.check_encoded(left, right, &batches);
    }

    /// Checks a join without the probe side's key in its output, which may be a dictionary then.
    fn check_encoded(&self, left: &Side, right: &Side, batches: &[RecordBatch]) {
        let (left, right) = (&left.batch, &right.batch);
        let key = match self.kind {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => usize::MAX,
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => 0,
            _ => left.num_columns(),
        };
        let columns = 0..self.schema(left, right).fields().len();
        let columns: Vec<usize> = columns.filter(|column| *column != key).collect();
        let config = self.config(left, right, Some(&columns));
        let (left, right) = (scan(left, self.morsel), dictionary_scan(right, self.morsel));
        let encoded = run(|graph| self.add(graph, config, left, right, None)).unwrap();
        let whole: Vec<_> = batches.iter().map(|batch| batch.project(&columns).unwrap()).collect();
        assert_eq!(sorted_rows(&encoded), sorted_rows(&whole), "encoded, {self:?}");
    }
}

fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1_usize, 3, 8192])
}

prop_compose! {
    fn any_case()(
        kind in prop::sample::select(TYPES.to_vec()),
        key in prop::sample::select(KeyKind::ALL.to_vec()),
        nulls_equal in any::<bool>(),
        residual in any::<bool>(),
        morsel in size(),
        batch_rows in size(),
        builds in 1..4_usize,
        probes in 1..4_usize,
    ) -> Case {
        let null_aware = false;
        Case { kind, key, nulls_equal, null_aware, residual, morsel, batch_rows, builds, probes }
    }
}

prop_compose! {
    fn not_in_case()(
        case in any_case(),
        key in prop::sample::select(vec![KeyKind::Int, KeyKind::Text, KeyKind::Float]),
    ) -> Case {
        let (kind, null_aware) = (JoinType::LeftAnti, true);
        Case { kind, key, null_aware, nulls_equal: false, residual: false, ..case }
    }
}

/// Generates rows of one side: key codes, of which one is frequent, and values.
fn rows(nulls: f64) -> impl Strategy<Value = Vec<model::Row>> {
    let code = move || {
        prop::option::weighted(1.0 - nulls, prop_oneof![3 => 0..model::CODES, 1 => Just(1)])
    };
    let value = prop::option::weighted(0.8, 0..4);
    let row = (code(), code(), value);
    prop::collection::vec(row, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn every_join_type_gives_the_rows_of_the_model(
        case in any_case(),
        left in rows(0.2),
        right in rows(0.2),
    ) {
        case.check(&Side::new(case.key, &left), &Side::new(case.key, &right));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn not_in_gives_the_rows_of_the_model(
        case in not_in_case(),
        left in rows(0.2),
        right in prop_oneof![rows(0.01), rows(0.1)],
    ) {
        case.check(&Side::new(case.key, &left), &Side::new(case.key, &right));
    }
}

fn side(keys: &[Option<u8>]) -> Side {
    let rows: Vec<_> = keys.iter().map(|key| (*key, None, Some(0))).collect();
    Side::new(KeyKind::Int, &rows)
}

/// The four rules of `NOT IN`, one by one.
#[test]
fn not_in_follows_three_valued_logic() {
    let numbers = |left: &[Option<u8>], right: &[Option<u8>]| -> Vec<String> {
        let case = Case { null_aware: true, ..Case::plain(JoinType::LeftAnti) };
        let number = side(left).batch.num_columns() - 1;
        sorted_rows(&case.run(&side(left).batch, &side(right).batch, Some(&[number])).unwrap())
    };
    let left = [Some(0), Some(1), None];
    assert_eq!(numbers(&[], &[Some(1)]), [""; 0], "nothing is in nothing");
    assert_eq!(numbers(&left, &[Some(1), None]), [""; 0], "a NULL may be any value");
    assert_eq!(numbers(&left, &[Some(1)]), ["0"], "NULL may be in what is not empty");
    assert_eq!(numbers(&left, &[]), ["0", "1", "2"], "nothing is in what is empty");
}

#[test]
fn zeros_and_nans_match_their_like() {
    let row = |code| (Some(code), None, Some(0));
    let left = Side::new(KeyKind::Float, &[row(0), row(2)]);
    let right = Side::new(KeyKind::Float, &[row(1), row(2), row(3)]);
    for (kind, rows) in [(JoinType::Inner, 2), (JoinType::Full, 3), (JoinType::RightAnti, 1)] {
        let case = Case { key: KeyKind::Float, ..Case::plain(kind) };
        case.check(&left, &right);
        assert_eq!(case.model(&left, &right).len(), rows, "{kind}");
    }
}

#[test]
fn no_column_may_be_wanted() {
    let (left, right) = (side(&[Some(1); 5]), side(&[Some(1), Some(1), Some(2)]));
    for (kind, rows) in [(JoinType::Inner, 10), (JoinType::LeftSemi, 5), (JoinType::Full, 11)] {
        let batches = Case::plain(kind).run(&left.batch, &right.batch, Some(&[])).unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), rows, "{kind}");
    }
}

/// One probe task outputs its rows in input order. Exceptions are rows of a right or full join
/// without a match: they come at the end of their batch.
#[test]
fn probe_rows_stay_in_order() {
    let keys: Vec<Option<u8>> = (0..60).map(|row| Some(row % model::CODES)).collect();
    let (left, right) = (side(&[Some(1), Some(2), Some(2)]), side(&keys));
    let kinds = [JoinType::Inner, JoinType::RightSemi, JoinType::RightAnti, JoinType::RightMark];
    for kind in kinds {
        let case = Case { probes: 1, morsel: 7, batch_rows: 2, ..Case::plain(kind) };
        let schema = case.schema(&left.batch, &right.batch);
        let number = schema.fields().iter().rposition(|field| field.name() == "row").unwrap();
        let batches = case.run(&left.batch, &right.batch, Some(&[number])).unwrap();
        let numbers: Vec<i32> =
            crate::test_support::rows(&batches).iter().map(|row| row.parse().unwrap()).collect();
        assert!(!numbers.is_empty() && numbers.is_sorted(), "{kind}: {numbers:?}");
    }
}

#[test]
fn nothing_is_read_for_an_empty_build_side() {
    for kind in TYPES {
        let preserved = matches!(
            kind,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        );
        let case = Case::plain(kind);
        let empty = side(&[]).batch;
        let config = case.config(&empty, &empty, None);
        let left = scan(&empty, 1);
        match run(|graph| case.add(graph, config, left, Arc::new(FailingScan), None)) {
            Ok(batches) => assert!(!preserved && batches.is_empty(), "{kind}"),
            Err(error) => assert!(preserved && error.to_string() == "the scan failed", "{kind}"),
        }
    }
}

#[test]
fn a_failed_build_side_is_not_an_empty_one() {
    for kind in TYPES {
        let (case, right) = (Case::plain(kind), side(&[Some(1)]).batch);
        let config = case.config(&right, &right, None);
        let right = scan(&right, 1);
        let answer = run(|graph| case.add(graph, config, Arc::new(FailingScan), right, None));
        assert_eq!(answer.unwrap_err().to_string(), "the scan failed", "{kind}");
    }
}

#[test]
fn consumers_that_take_different_dictionaries_are_an_error() {
    let rows = table([("key", ints([Some(1)])), ("value", ints([Some(2)]))]);
    let (context, _) = contexts().unwrap();
    for (second, is_error) in [([1], false), ([2], true)] {
        let config = Case::plain(JoinType::Inner).config(&rows, &rows, None);
        let (_build, probe) = new(config, 1, 1, None).unwrap();
        probe.take_dictionaries(&[1]);
        probe.take_dictionaries(&second);
        assert_eq!(probe.local(context.clone()).is_err(), is_error);
    }
}
