//! Large window partitions: framed results equal DataFusion's, and a cancellation interrupts them.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use datafusion_common::ScalarValue;
use datafusion_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion_functions_aggregate::sum::sum_udaf;
use datafusion_physical_expr::{
    aggregate::AggregateExprBuilder,
    expressions::cast,
    window::{PlainAggregateWindowExpr, SlidingAggregateWindowExpr},
};
use gatework_runtime::pipeline::{Graph, QueryContext, RowStream};

use super::*;
use crate::test_support::{EXECUTOR, wait_idle};

/// Window function: the row range of each frame, as `1000 * start + end`. It calls its closure
/// first.
#[derive(Clone)]
struct Frames(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frames")
    }
}

impl StandardWindowFunctionExpr for Frames {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn field(&self) -> datafusion_common::Result<FieldRef> {
        Ok(Arc::new(Field::new("frames", DataType::Int64, false)))
    }

    fn expressions(&self) -> Vec<Arc<dyn PhysicalExpr>> {
        vec![]
    }

    fn create_evaluator(&self) -> datafusion_common::Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(self.clone()))
    }

    fn limit_effect(&self) -> LimitEffect {
        LimitEffect::Unknown
    }
}

impl PartitionEvaluator for Frames {
    fn evaluate(
        &mut self,
        _values: &[ArrayRef],
        range: &Range<usize>,
    ) -> datafusion_common::Result<ScalarValue> {
        (self.0)();
        Ok(ScalarValue::Int64(Some((1000 * range.start + range.end) as i64)))
    }

    fn uses_window_frame(&self) -> bool {
        true
    }
}

fn frame(start: Option<u64>, end: Option<u64>) -> Arc<WindowFrame> {
    let bound = |rows: Option<u64>| ScalarValue::UInt64(rows);
    let (start, end) =
        (WindowFrameBound::Preceding(bound(start)), WindowFrameBound::Following(bound(end)));
    Arc::new(WindowFrame::new_bounds(WindowFrameUnits::Rows, start, end))
}

/// Creates expressions partitioned by the first column, over frames of all kinds.
fn expressions(rows: &RecordBatch) -> Vec<Arc<dyn WindowExpr>> {
    let key = || vec![Arc::new(Column::new("a", 0)) as Arc<dyn PhysicalExpr>];
    let sum = || {
        let number = Arc::new(Column::new("n", 2));
        let argument = cast(number, rows.schema_ref(), DataType::Int64).unwrap();
        let builder = AggregateExprBuilder::new(sum_udaf(), vec![argument]);
        Arc::new(builder.schema(rows.schema()).alias("sum").build().unwrap())
    };
    let plain = |frame| PlainAggregateWindowExpr::new(sum(), &key(), &[], frame, None);
    let sliding = |frame| SlidingAggregateWindowExpr::new(sum(), &key(), &[], frame, None);
    let standard =
        |frame| StandardWindowExpr::new(Arc::new(Frames(Arc::new(|| {}))), &key(), &[], frame);
    vec![
        Arc::new(plain(Arc::new(WindowFrame::new(None)))),
        Arc::new(plain(frame(None, Some(3)))),
        Arc::new(sliding(frame(Some(2), Some(3)))),
        Arc::new(sliding(frame(Some(1), None))),
        Arc::new(standard(frame(Some(5), Some(1)))),
        Arc::new(standard(frame(Some(5), None))),
    ]
}

#[test]
fn results_by_frames_are_those_of_datafusion() {
    let mut keys: Vec<_> = (0..3000).map(|row| (Some(row / 1000), None)).collect();
    keys.truncate(2500);
    let input = input(&mut keys);
    let run_within = |limit: usize| {
        let batches = run(|graph| {
            let expressions = expressions(&input);
            let schema = output_schema(&input, expressions.len());
            let (sink, source) = new(expressions, schema, 100, 1, limit).unwrap();
            graph.add_pipeline("sort", 1, scan(&input, 50), vec![], Arc::new(sink)).unwrap();
            result_of(graph, 1, 1, Arc::new(source), vec![])
        });
        rows(&batches.unwrap())
    };
    assert!(run_within(1) == run_within(1 << 30));
}

#[test]
fn a_cancel_is_heard_among_the_results_of_a_partition() {
    let mut keys = vec![(Some(1), None); 100_000];
    let input = input(&mut keys);
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    let calls = Arc::new(AtomicUsize::new(0));
    let (cancelled, counted) = (query.clone(), calls.clone());
    let cancel = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        cancelled.cancel();
    };
    let function = Arc::new(Frames(Arc::new(cancel)));
    let frames = StandardWindowExpr::new(function, &[], &[], frame(Some(1), None));
    let schema = output_schema(&input, 1);
    let (sink, source) = new([Arc::new(frames) as Arc<dyn WindowExpr>], schema, 100, 1, 1).unwrap();
    let mut graph = Graph::new();
    graph.add_pipeline("sort", 1, scan(&input, 1000), vec![], Arc::new(sink)).unwrap();
    let readers = result_of(&mut graph, 1, 1, Arc::new(source), vec![]);
    let running = graph.start(&query).unwrap();
    let streams = RowStream::of_query(&running, readers);
    wait_idle(&query);
    let answer = streams.into_iter().next().unwrap().into_blocking_iter().next();
    assert!(matches!(answer, Some(Err(Error::Cancelled { .. }))));
    let calls = calls.load(Ordering::Relaxed);
    assert!((1..1000).contains(&calls), "{calls} results were computed");
}
