//! Sort and top-N against std's sort, over keys, directions, NULLs, ties, tasks and batch sizes.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int32Array, RecordBatch, StringArray},
    compute::SortOptions,
    datatypes::Int32Type,
};
use datafusion_physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column};
use gatework_runtime::{
    Error, Result,
    pipeline::{
        BufferedBatch, Chaos, Graph, GraphHandle, GreedyPool, QueryContext, QueryOptions,
        RowStream, Source,
    },
    scheduler::SplitMix64,
};
use gatework_shared_state::{
    BufferLimit,
    output::{ExchangeClient, OutputBuffer, OutputBuffers, OutputKind, OutputState},
};
use proptest::prelude::*;

use super::{MergeExchangeSource, SortConfig, new};
use crate::test_support::{
    EXECUTOR, FailingScan, ints, random_refusals, result_of, rows, run_with,
    run_with_reclaim_requests, scan, table, unlimited, wait_idle,
};
use crate::{local_exchange::Routing, task_output::TaskOutputSink};

const FLOATS: [f64; 6] = [0.0, -0.0, f64::NAN, 1.5, f64::NEG_INFINITY, -1.5];
const TEXTS: [&str; 6] = ["", "a", "ab", "b", "a rather long text, not inline", "a\0"];

/// Three key codes: for an integer, a text and a float.
type Row = [Option<u8>; 3];

/// Creates the key columns and a row number column.
fn input(rows: &[Row]) -> RecordBatch {
    let int = rows.iter().map(|row| row[0].map(|code| i32::from(code) - 2));
    let text = rows.iter().map(|row| row[1].map(|code| TEXTS[usize::from(code)]));
    let float = rows.iter().map(|row| row[2].map(|code| FLOATS[usize::from(code)]));
    table([
        ("int", ints(int)),
        ("text", Arc::new(text.collect::<StringArray>())),
        ("float", Arc::new(float.collect::<Float64Array>())),
        ("row", ints((0..rows.len() as i32).map(Some))),
    ])
}

fn compare(key: usize, options: SortOptions, a: &Row, b: &Row) -> Ordering {
    let (Some(a), Some(b)) = (a[key], b[key]) else {
        let nulls_last = a[key].is_none().cmp(&b[key].is_none());
        return if options.nulls_first { nulls_last.reverse() } else { nulls_last };
    };
    let (a, b) = (usize::from(a), usize::from(b));
    let ascending = match key {
        0 => a.cmp(&b),
        1 => TEXTS[a].cmp(TEXTS[b]),
        _ => FLOATS[a].total_cmp(&FLOATS[b]),
    };
    if options.descending { ascending.reverse() } else { ascending }
}

/// Sort under test, and its execution parameters.
#[derive(Debug, Clone)]
struct Case {
    keys: Vec<(usize, SortOptions)>,
    fetch: Option<usize>,
    morsel: usize,
    batch_rows: usize,
    sinks: usize,
}

impl Case {
    /// Creates a sort by the integer, ascending, NULLs last.
    fn plain(fetch: Option<usize>, sinks: usize) -> Self {
        let options = SortOptions { descending: false, nulls_first: false };
        Self { keys: vec![(0, options)], fetch, morsel: 1000, batch_rows: 1000, sinks }
    }

    fn add(
        &self,
        graph: &mut Graph,
        input: &RecordBatch,
        source: Arc<dyn Source>,
    ) -> crate::test_support::Readers {
        let schema = input.schema();
        let key = |(index, options): &(usize, SortOptions)| {
            let column = Column::new(schema.field(*index).name(), *index);
            PhysicalSortExpr::new(Arc::new(column), *options)
        };
        let ordering = LexOrdering::new(self.keys.iter().map(key)).unwrap();
        let (fetch, batch_rows) = (self.fetch, self.batch_rows);
        let config = SortConfig { ordering, fetch, schema: schema.clone(), batch_rows };
        let (runs, merge) = new(config, self.sinks).unwrap();
        graph.add_pipeline("runs", self.sinks, source, vec![], Arc::new(runs)).unwrap();
        result_of(graph, 1, 1, Arc::new(merge), vec![])
    }

    fn run(&self, options: QueryOptions, input: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let source = scan(input, self.morsel);
        Ok(run_with(options, |graph| self.add(graph, input, source))?.remove(0))
    }

    /// Checks that the keys are in the model's order, and that each output row is an input row,
    /// once.
    fn check(&self, options: QueryOptions, codes: &[Row]) {
        let input = input(codes);
        let batches = self.run(options, &input).unwrap();
        let by_keys = |a: &Row, b: &Row| {
            let orders = self.keys.iter().map(|(key, options)| compare(*key, *options, a, b));
            orders.fold(Ordering::Equal, Ordering::then)
        };
        let mut model = codes.to_vec();
        model.sort_by(by_keys);
        model.truncate(self.fetch.unwrap_or(usize::MAX));
        let keys: Vec<usize> = self.keys.iter().map(|(key, _)| *key).collect();
        let project = |batch: &RecordBatch| batch.project(&keys).unwrap();
        let sorted: Vec<_> = batches.iter().map(project).collect();
        assert_eq!(rows(&sorted), rows(&[project(&self::input(&model))]), "{self:?}");

        let numbers = batches.iter().flat_map(|batch| batch.column(3).as_primitive::<Int32Type>());
        let mut numbers: Vec<i32> = numbers.flatten().collect();
        let all = rows(&[input]);
        let of_input: Vec<_> = numbers.iter().map(|row| all[*row as usize].clone()).collect();
        assert_eq!(rows(&batches), of_input, "{self:?}");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), model.len(), "{self:?}");
        assert!(batches.iter().all(|batch| batch.num_rows() <= self.batch_rows));
    }
}

prop_compose! {
    fn any_case()(
        places in prop::sample::subsequence(vec![0_usize, 1, 2], 1..4).prop_shuffle(),
        options in prop::array::uniform3((any::<bool>(), any::<bool>())),
        fetch in prop::option::weighted(
            0.6,
            prop_oneof![Just(0_usize), Just(1), 2..20_usize, Just(100)],
        ),
        morsel in prop::sample::select(vec![1_usize, 3, 8192]),
        batch_rows in prop::sample::select(vec![1_usize, 3, 8192]),
        sinks in 1..4_usize,
    ) -> Case {
        let options =
            options.map(|(descending, nulls_first)| SortOptions { descending, nulls_first });
        let keys = places.into_iter().zip(options).collect();
        Case { keys, fetch, morsel, batch_rows, sinks }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn rows_come_in_the_order_of_std(
        case in any_case(),
        rows in prop::collection::vec(
            prop::array::uniform3(prop::option::weighted(0.8, 0..6_u8)),
            0..40,
        ),
    ) {
        case.check(QueryOptions::default(), &rows);
    }

    #[test]
    fn refused_memory_changes_no_row(
        case in any_case(),
        rows in prop::collection::vec(
            prop::array::uniform3(prop::option::weighted(0.8, 0..6_u8)),
            0..40,
        ),
        seed in any::<u64>(),
    ) {
        let (pool, _, options) = random_refusals(seed);
        case.check(options, &rows);
        assert_eq!(pool.reserved(), 0);
    }
}

/// Creates a column of `rows` shuffled numbers, each `ties` times, and a row number column.
fn shuffled(rows: i32, ties: i32) -> RecordBatch {
    let number = |row: i32| (i64::from(row) * 7919 % i64::from(rows)) as i32 / ties;
    table([
        ("int", ints((0..rows).map(|row| Some(number(row))))),
        ("row", ints((0..rows).map(Some))),
    ])
}

fn values(batches: &[RecordBatch]) -> Vec<i32> {
    let columns = batches.iter().map(|batch| batch.column(0).as_primitive::<Int32Type>());
    columns.flat_map(|column| column.values().to_vec()).collect()
}

/// The row count makes tasks shrink their rows and share the threshold, on which there are ties.
/// Rising and falling input are the two extremes: all later rows are dropped, or none.
#[test]
fn a_shared_boundary_changes_no_result() {
    const ROWS: i32 = 250_000;
    let mixed = shuffled(ROWS, 7);
    let ordered = |number: fn(i32) -> i32| -> RecordBatch {
        let column: ArrayRef = Arc::new(Int32Array::from_iter_values((0..ROWS).map(number)));
        table([("int", column), ("row", ints((0..ROWS).map(Some)))])
    };
    let inputs = [mixed, ordered(|row| row / 7), ordered(|row| (ROWS - 1 - row) / 7)];
    let model: Vec<i32> = (0..ROWS).map(|row| row / 7).collect();
    for input in &inputs {
        for fetch in [1, 10, 1000, 40_000, 249_999, 250_000, 300_000] {
            for sinks in 1..4 {
                let case = Case::plain(Some(fetch), sinks);
                let batches = case.run(QueryOptions::default(), input).unwrap();
                let wanted = &model[..fetch.min(model.len())];
                assert!(values(&batches) == wanted, "{case:?}");
                let mut rows = values(
                    &batches.iter().map(|batch| batch.project(&[1]).unwrap()).collect::<Vec<_>>(),
                );
                rows.sort_unstable();
                rows.dedup();
                assert_eq!(rows.len(), wanted.len(), "no row may occur twice, {case:?}");
            }
        }
    }
}

#[test]
fn long_runs_are_merged_in_order() {
    let input = shuffled(250_000, 3);
    for sinks in 1..4 {
        let case = Case { morsel: 1003, batch_rows: 4096, ..Case::plain(None, sinks) };
        let batches = case.run(QueryOptions::default(), &input).unwrap();
        let values = values(&batches);
        assert!(values.len() == 250_000 && values.is_sorted());
        assert!(values.iter().zip(0..).all(|(value, row)| *value == row / 3));
    }
}

/// The row count makes the sort use buckets. Most keys differ only far behind their first bytes,
/// and half of them are equal.
#[test]
fn keys_that_begin_alike_are_sorted_in_parts() {
    let text = |row: u64| match row % 2 {
        0 => "the same for half of all rows".to_owned(),
        _ => format!("a{} with a long tail, and last {:06}", row / 7 % 3, row * 7919 % 100_003),
    };
    let texts: Vec<_> = (0..300_000).map(text).collect();
    let input = table([("text", Arc::new(StringArray::from(texts.clone())) as ArrayRef)]);
    let mut wanted = texts;
    wanted.sort_unstable();
    for sinks in [1, 2] {
        let case = Case { batch_rows: 8192, ..Case::plain(None, sinks) };
        let batches = case.run(QueryOptions::default(), &input).unwrap();
        let texts = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>());
        assert!(texts.eq(wanted.iter().map(|text| Some(text.as_str()))), "{sinks}");
    }
}

/// Keys that differ at all distances from their beginning, some of which end where others go on.
#[test]
fn ties_are_sorted_at_every_depth() {
    let mut random = SplitMix64::new(5);
    let mut text = || {
        let (alike, tail) = (random.next_below(6) * 13, random.next_below(40));
        let letters = (0..tail).map(|_| if random.next_below(4) == 0 { 'b' } else { 'a' });
        "a".repeat(alike) + &letters.collect::<String>()
    };
    let texts: Vec<String> = (0..5000).map(|_| text()).collect();
    let input = table([("text", Arc::new(StringArray::from(texts.clone())) as ArrayRef)]);
    let mut wanted = texts;
    wanted.sort_unstable();
    for (fetch, sinks) in [(None, 1), (None, 3), (Some(700), 1)] {
        let case = Case { batch_rows: 512, ..Case::plain(fetch, sinks) };
        let batches = case.run(QueryOptions::default(), &input).unwrap();
        let texts = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>());
        let wanted = wanted.iter().take(fetch.unwrap_or(wanted.len()));
        assert!(texts.eq(wanted.map(|text| Some(text.as_str()))), "{fetch:?}, {sinks}");
    }
}

/// A sort buffers all its rows, a top-N little more than `fetch`; both release all memory.
#[test]
fn a_top_n_needs_less_memory_than_a_sort() {
    let input = shuffled(400_000, 1);
    // A row takes 8 bytes, its key 5 bytes and an offset of 8 bytes.
    for (fetch, fits) in [(None, false), (Some(100), true)] {
        for sinks in [1, 2] {
            let memory = Arc::new(GreedyPool::new(5 << 20));
            let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
            match Case::plain(fetch, sinks).run(options, &input) {
                Ok(batches) => assert!(fits && values(&batches) == (0..100).collect::<Vec<_>>()),
                Err(error) => {
                    assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}");
                    assert!(
                        error.to_string().contains("not enough memory for sort sink:"),
                        "{error}"
                    );
                }
            }
            assert_eq!(memory.reserved(), 0);
        }
    }
}

#[test]
fn nothing_is_read_for_no_rows() {
    let input = shuffled(10, 1);
    for (fetch, ends) in [(Some(0), true), (Some(1), false), (None, false)] {
        let case = Case::plain(fetch, 2);
        let answer = run_with(QueryOptions::default(), |graph| {
            case.add(graph, &input, Arc::new(FailingScan))
        });
        match answer {
            Ok(batches) => assert!(ends && batches[0].is_empty()),
            Err(error) => assert!(!ends && error.to_string() == "the scan failed"),
        }
    }
}

#[test]
fn a_dropped_result_ends_a_sort() {
    let input = shuffled(200_000, 1);
    let case = Case { batch_rows: 10, ..Case::plain(None, 2) };
    let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
    let mut graph = Graph::new();
    let readers = case.add(&mut graph, &input, scan(&input, 1000));
    let running = graph.start(&query).unwrap();
    let mut stream =
        RowStream::of_query(&running, readers).into_iter().next().unwrap().into_blocking_iter();
    assert_eq!(stream.next().unwrap().unwrap().num_rows(), 10);
    drop(stream);
    wait_idle(&query);
}

#[test]
fn rows_are_spilled_on_a_reclaim_request() {
    let input = shuffled(400_000, 1);
    // On a busy machine the reclaim requests may arrive after all rows are sorted.
    for _ in 0..50 {
        let (spill_space, options) = unlimited();
        let answer = run_with_reclaim_requests(options, |graph| {
            Case::plain(None, 2).add(graph, &input, scan(&input, 1000))
        });
        assert!(values(&answer.unwrap()[0]) == (0..400_000).collect::<Vec<_>>());
        if spill_space.writes.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            return;
        }
    }
    panic!("no reclaim request made the sort spill");
}

#[test]
fn a_failed_input_is_not_an_empty_one() {
    let input = shuffled(10, 1);
    let answer = run_with(QueryOptions::default(), |graph| {
        Case::plain(None, 2).add(graph, &input, Arc::new(FailingScan))
    });
    assert_eq!(answer.unwrap_err().to_string(), "the scan failed");
}

/// Starts a query that sorts `rows` and writes them into a small output buffer.
fn sorted_by_another_query(
    rows: &RecordBatch,
    fails: bool,
    chaos: &Arc<Chaos>,
) -> (OutputBuffer<BufferedBatch>, GraphHandle) {
    let options = QueryOptions { chaos: Some(chaos.clone()), ..QueryOptions::default() };
    let query = QueryContext::new(&EXECUTOR, options);
    let buffers = OutputBuffers::with_partitions(1);
    let (output, writers) = OutputBuffer::new("test", buffers, BufferLimit::new(100), 1).unwrap();
    let sink =
        TaskOutputSink::new(writers, OutputKind::Partitioned, Routing::PassToOne, 1).unwrap();
    let mut graph = Graph::new();
    let (runs, merge) = new(by_int(rows, 7), 2).unwrap();
    let source: Arc<dyn Source> = if fails { Arc::new(FailingScan) } else { scan(rows, 5) };
    graph.add_pipeline("sort", 2, source, vec![], Arc::new(runs)).unwrap();
    graph.add_pipeline("write", 1, Arc::new(merge), vec![], Arc::new(sink)).unwrap();
    (output, graph.start(&query).unwrap())
}

fn by_int(rows: &RecordBatch, batch_rows: usize) -> SortConfig {
    let options = SortOptions { descending: true, nulls_first: true };
    let key = PhysicalSortExpr::new(Arc::new(Column::new("int", 0)), options);
    let ordering = LexOrdering::new(vec![key]).unwrap();
    SortConfig { ordering, fetch: None, schema: rows.schema(), batch_rows }
}

fn merged(
    outputs: &[OutputBuffer<BufferedBatch>],
    schema: &RecordBatch,
    chaos: &Arc<Chaos>,
) -> Result<Vec<RecordBatch>> {
    let client = ExchangeClient::new("test");
    for (location, output) in (0..).zip(outputs) {
        client.add_location(location, output.clone(), 0).unwrap();
    }
    client.set_no_more_locations();
    let options = QueryOptions { chaos: Some(chaos.clone()), ..QueryOptions::default() };
    let source = Arc::new(MergeExchangeSource::new(client, by_int(schema, 6)).unwrap());
    Ok(run_with(options, |graph| result_of(graph, 1, 1, source, vec![]))?.concat())
}

/// Sorted outputs of other queries, some of them empty, are merged into one order.
#[test]
fn streams_are_merged() {
    for seed in 0..30_usize {
        let chaos = Arc::new(
            Chaos::new(seed as u64).block_every(3).spurious_wakeups_every(4).split_batches(5),
        );
        let sizes = [[0, 0, 0], [40, 0, 0], [40, 1, 90], [60, 60, 60]][seed % 4];
        let code = |row: usize| Some(((row * 7 + seed) % 5) as u8).filter(|code| *code != 4);
        let inputs: Vec<RecordBatch> = sizes
            .iter()
            .map(|size| input(&(0..*size).map(|row| [code(row), None, None]).collect::<Vec<_>>()))
            .collect();
        let writers: Vec<_> =
            inputs.iter().map(|rows| sorted_by_another_query(rows, false, &chaos)).collect();
        let outputs: Vec<_> = writers.iter().map(|(output, _)| output.clone()).collect();
        let batches = merged(&outputs, &inputs[0], &chaos).unwrap();
        let mut keys = Vec::new();
        for batch in &batches {
            assert!(batch.num_rows() <= 6);
            keys.extend(batch.column(0).as_primitive::<Int32Type>().iter());
        }
        // NULLs first, then the greatest.
        let in_order = |one: &Option<i32>, next: &Option<i32>| match (one, next) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(one), Some(next)) => one >= next,
        };
        assert!(keys.is_sorted_by(in_order), "{seed}: {keys:?}");
        assert_eq!(
            crate::test_support::sorted_rows(&batches),
            crate::test_support::sorted_rows(&inputs),
            "{seed}"
        );
        for (output, running) in writers {
            wait_idle(running.query());
            assert_eq!((output.state(), output.bytes()), (OutputState::Finished, 0));
        }
    }
}

#[test]
fn a_stream_that_fails_is_no_end_of_rows() {
    let chaos = Arc::new(Chaos::new(1));
    let rows = input(&[[Some(1), None, None]; 100]);
    let (good, bad) = (
        sorted_by_another_query(&rows, false, &chaos),
        sorted_by_another_query(&rows, true, &chaos),
    );
    let error = merged(&[good.0.clone(), bad.0.clone()], &rows, &chaos).unwrap_err();
    assert_eq!(error.to_string(), "a producer ended without finishing");
    wait_idle(good.1.query());
    wait_idle(bad.1.query());
}
