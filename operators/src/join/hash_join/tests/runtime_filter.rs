//! Runtime filters of a join: no filter drops a row that the join needs, and every query publishes.

use std::sync::Arc;

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use datafusion_common::JoinType;
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use gatework_runtime::{
    Error,
    pipeline::{Chaos, Fault, Graph, QueryContext, QueryOptions},
};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{Case, KeyKind, Side, any_case, not_in_case, rows, side};
use crate::{
    join::hash_join::new,
    limit::Limit,
    runtime_filter::{FilterProducer, FilterTarget},
    test_support::{
        EXECUTOR, FailingScan, result_of, run, run_with, scan, sorted_rows, table, wait_idle,
    },
};

/// Applies each filter to `probe` when it is published, because it passes all rows once the join is
/// over.
pub(super) struct Recorder {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    probe: RecordBatch,
    /// Per publication, which probe rows pass; `None` if no filter was published.
    published: Mutex<Vec<Option<BooleanArray>>>,
    refuses: bool,
}

impl FilterTarget for Recorder {
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.keys
    }

    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> datafusion_common::Result<()> {
        let passes = |filter: Arc<dyn PhysicalExpr>| {
            let answer = filter.evaluate(&self.probe)?.into_array(self.probe.num_rows())?;
            Ok::<_, datafusion_common::DataFusionError>(answer.as_boolean().clone())
        };
        self.published.lock().push(filter.map(passes).transpose()?);
        match self.refuses {
            true => datafusion_common::exec_err!("refused"),
            false => Ok(()),
        }
    }
}

impl Recorder {
    pub(super) fn new(key: KeyKind, probe: &RecordBatch) -> Arc<Self> {
        let column = |index| Arc::new(Column::new("key", index)) as Arc<dyn PhysicalExpr>;
        Arc::new(Self {
            keys: (0..key.columns()).map(column).collect(),
            probe: probe.clone(),
            published: Mutex::default(),
            refuses: false,
        })
    }

    /// Returns the only publication.
    pub(super) fn only(&self) -> Option<BooleanArray> {
        let published = self.published.lock();
        assert_eq!(published.len(), 1, "published once");
        published[0].clone()
    }
}

/// Returns which probe rows the filter of a finished build passes; `None` for no filter.
pub(super) fn expected(case: &Case, left: &Side, right: &Side) -> Option<Vec<bool>> {
    let build_null = (0..left.rows()).any(|l| left.has_null(l));
    if build_null && (case.nulls_equal || case.null_aware) {
        return None;
    }
    let passes = |r: usize| {
        (case.null_aware && right.has_null(r))
            || (0..left.rows()).any(|l| case.keys_match(left, l, right, r))
    };
    Some((0..right.rows()).map(passes).collect())
}

/// Runs the join with a filter, then again over the probe rows that pass it. The result must not
/// change.
fn check(case: &Case, left: &Side, right: &Side) {
    let target = Recorder::new(case.key, &right.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let config = case.config(&left.batch, &right.batch, None);
    let sources = (scan(&left.batch, case.morsel), scan(&right.batch, case.morsel));
    let batches =
        run(|graph| case.add(graph, config, sources.0, sources.1, Some(producer))).unwrap();
    let model = case.model(left, right);
    assert_eq!(sorted_rows(&batches), model, "{case:?}");
    assert!(gate.is_ready());

    let mask = target.only();
    let bits = |mask: &BooleanArray| mask.iter().map(|bit| bit == Some(true)).collect();
    assert_eq!(mask.as_ref().map(bits), expected(case, left, right), "{case:?}");
    if let Some(mask) = mask {
        let pruned = filter_record_batch(&right.batch, &mask).unwrap();
        let again = case.run(&left.batch, &pruned, None).unwrap();
        assert_eq!(sorted_rows(&again), model, "over filtered rows, {case:?}");
    }
}

/// Join types that drop probe rows without a match, so that a filter may drop them.
fn filtering() -> impl Strategy<Value = JoinType> {
    prop::sample::select(vec![
        JoinType::Inner,
        JoinType::Left,
        JoinType::LeftSemi,
        JoinType::LeftAnti,
        JoinType::LeftMark,
        JoinType::RightSemi,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn a_filter_drops_only_rows_without_a_match(
        case in any_case(),
        kind in filtering(),
        left in rows(0.1),
        right in rows(0.2),
    ) {
        let case = Case { kind, ..case };
        check(&case, &Side::new(case.key, &left), &Side::new(case.key, &right));
    }

    #[test]
    fn a_filter_for_not_in_keeps_nulls(
        case in not_in_case(),
        left in rows(0.05),
        right in rows(0.1),
    ) {
        check(&case, &Side::new(case.key, &left), &Side::new(case.key, &right));
    }
}

#[test]
fn a_preserved_probe_side_is_not_filtered() {
    let (left, right) = (side(&[Some(1)]), side(&[Some(1), Some(2), None]));
    for kind in [JoinType::Right, JoinType::Full, JoinType::RightAnti, JoinType::RightMark] {
        let case = Case::plain(kind);
        let target = Recorder::new(case.key, &right.batch);
        let (producer, gate) = FilterProducer::new("join", target.clone());
        let config = case.config(&left.batch, &right.batch, None);
        let sources = (scan(&left.batch, 1), scan(&right.batch, 1));
        run(|graph| case.add(graph, config, sources.0, sources.1, Some(producer))).unwrap();
        assert!(gate.is_ready() && target.only().is_none(), "{kind}");
    }
}

#[test]
fn bounds_and_membership_are_both_published() {
    /// Records the filter as text.
    struct Text(Vec<Arc<dyn PhysicalExpr>>, Mutex<String>);
    impl FilterTarget for Text {
        fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
            &self.0
        }
        fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> datafusion_common::Result<()> {
            *self.1.lock() = filter.map_or_else(String::new, |filter| filter.to_string());
            Ok(())
        }
    }
    let key = Arc::new(Column::new("probe_key", 0)) as Arc<dyn PhysicalExpr>;
    let left = table([
        ("key", crate::test_support::ints([Some(5), None, Some(9), Some(7)])),
        ("value", crate::test_support::ints([None; 4])),
        ("row", crate::test_support::ints([None; 4])),
    ]);
    let case = Case::plain(JoinType::Inner);
    let target = Arc::new(Text(vec![key], Mutex::default()));
    let (producer, _gate) = FilterProducer::new("join", target.clone());
    let config = case.config(&left, &left, None);
    run(|graph| case.add(graph, config, scan(&left, 1), scan(&left, 1), Some(producer))).unwrap();
    let text = target.1.lock().clone();
    let expected = "probe_key@0 >= 5 AND probe_key@0 <= 9 AND (probe_key@0) in join table";
    assert_eq!(text, expected);
}

#[test]
fn a_refused_filter_is_no_error() {
    let (left, right) = (side(&[Some(1)]), side(&[Some(1), Some(2)]));
    let case = Case::plain(JoinType::Inner);
    let recorder = Recorder::new(case.key, &right.batch);
    let target = Arc::new(Recorder {
        refuses: true,
        keys: recorder.keys.clone(),
        probe: right.batch.clone(),
        published: Mutex::default(),
    });
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let config = case.config(&left.batch, &right.batch, None);
    let sources = (scan(&left.batch, 1), scan(&right.batch, 1));
    let batches =
        run(|graph| case.add(graph, config, sources.0, sources.1, Some(producer))).unwrap();
    assert_eq!(sorted_rows(&batches), case.model(&left, &right));
    assert!(gate.is_ready() && target.only().is_some());
}

#[test]
fn a_failed_build_publishes_nothing_and_opens_the_gate() {
    let right = side(&[Some(1)]);
    let case = Case::plain(JoinType::Inner);
    let target = Recorder::new(case.key, &right.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let config = case.config(&right.batch, &right.batch, None);
    let (left, right) = (Arc::new(FailingScan), scan(&right.batch, 1));
    let answer = run(|graph| case.add(graph, config, left, right, Some(producer)));
    assert!(matches!(answer, Err(Error::Operator { .. })));
    assert!(gate.is_ready() && target.only().is_none());
}

#[test]
fn a_join_that_never_runs_publishes_nothing_and_opens_the_gate() {
    let rows = side(&[Some(1)]);
    let case = Case::plain(JoinType::Inner);
    let target = Recorder::new(case.key, &rows.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    assert!(!gate.is_ready());
    drop(new(case.config(&rows.batch, &rows.batch, None), 1, 1, Some(producer)).unwrap());
    assert!(gate.is_ready() && target.only().is_none());

    let target = Recorder::new(case.key, &rows.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    query.cancel();
    let mut graph = Graph::new();
    let (build, probe) =
        new(case.config(&rows.batch, &rows.batch, None), 1, 1, Some(producer)).unwrap();
    graph.add_pipeline("build", 1, scan(&rows.batch, 1), vec![], Arc::new(build)).unwrap();
    let readers = result_of(&mut graph, 1, 1, scan(&rows.batch, 1), vec![Arc::new(probe)]);
    assert!(matches!(graph.start(&query), Err(Error::Cancelled { .. })));
    drop(readers);
    wait_idle(&query);
    assert!(gate.is_ready() && target.only().is_none());
}

/// The filter's gate becomes ready, however the query ends during a build.
#[test]
fn a_build_that_ends_at_any_step_opens_the_gate() {
    let rows = side(&(0..20).map(|row| Some(row % 5)).collect::<Vec<_>>());
    let case = Case { morsel: 3, probes: 2, ..Case::plain(JoinType::Inner) };
    for fault in [Fault::Error, Fault::Cancel, Fault::Panic] {
        for step in 0.. {
            let chaos = Arc::new(Chaos::new(1).fault_at(fault, step));
            let options = QueryOptions { chaos: Some(chaos), ..QueryOptions::default() };
            let target = Recorder::new(case.key, &rows.batch);
            let (producer, gate) = FilterProducer::new("join", target.clone());
            let config = case.config(&rows.batch, &rows.batch, None);
            let sources = (scan(&rows.batch, 3), scan(&rows.batch, 3));
            let answer = run_with(options, |graph| {
                case.add(graph, config, sources.0, sources.1, Some(producer))
            });
            assert!(gate.is_ready(), "{fault:?} at {step}");
            let _once = target.only();
            if answer.is_ok() {
                assert!(step > 10, "{step} steps");
                break;
            }
        }
    }
}

#[test]
fn a_probe_that_ends_before_the_build_publishes_nothing_and_opens_the_gate() {
    let rows = side(&[Some(1), Some(2)]);
    let case = Case::plain(JoinType::Inner);
    let target = Recorder::new(case.key, &rows.batch);
    let (producer, gate) = FilterProducer::new("join", target.clone());
    let (build, probe) =
        new(case.config(&rows.batch, &rows.batch, None), 1, 1, Some(producer)).unwrap();
    let batches = run(|graph| {
        graph.add_pipeline("build", 1, scan(&rows.batch, 1), vec![], Arc::new(build)).unwrap();
        let nothing = Arc::new(Limit::new(0, Some(0)));
        result_of(graph, 1, 1, scan(&rows.batch, 1), vec![Arc::new(probe), nothing])
    });
    assert_eq!(sorted_rows(&batches.unwrap()), Vec::<String>::new());
    assert!(gate.is_ready());
    // The table may have been built before the end was known.
    let _once = target.only();
}
