//! DataFusion's aggregates over the hash aggregate's tables, against a model: keys of several
//! types, NULLs, `FILTER`, partial and final phases, grouping sets, many groups, memory.

mod model;

use std::sync::{Arc, atomic::Ordering};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef},
};
use datafusion_expr::AggregateUDF;
use datafusion_functions_aggregate::{
    array_agg::array_agg_udaf,
    average::avg_udaf,
    count::count_udaf,
    min_max::{max_udaf, min_udaf},
    sum::sum_udaf,
};
use datafusion_physical_expr::{
    PhysicalExpr,
    aggregate::AggregateExprBuilder,
    expressions::{Column, lit},
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Graph, GreedyPool, QueryContext, QueryOptions, RowStream, Source},
};
use proptest::prelude::*;

use self::model::{Input, texts};
use super::{
    AggregateCall, AggregateConfig, AggregateInput, AggregateResult, AggregateSource, GroupBy,
    PartialAggregate, new,
};
use crate::test_support::{
    EXECUTOR, FailingScan, InMemorySpill, dictionary_scan, random_refusals, result_of, run,
    run_with, run_with_reclaim_requests, scan, sorted_rows, table, unlimited, wait_idle,
};

/// Phases of the aggregate: one final aggregate, or a partial one and one that merges its states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phases {
    One,
    Two,
    /// The partial aggregate is a streaming operator, where that is possible.
    Streaming,
}

use Phases::{One, Streaming, Two};

/// An aggregate and how it runs.
#[derive(Debug, Clone)]
struct Case {
    /// Indices of the key columns.
    keys: Vec<usize>,
    /// Grouping sets over these keys.
    sets: Option<Vec<Vec<bool>>>,
    phases: Phases,
    morsel: usize,
    batch_rows: usize,
    sinks: usize,
    sources: usize,
}

fn column(schema: &Schema, index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(schema.field(index).name(), index))
}

fn named(schema: &Schema, name: &str) -> Arc<dyn PhysicalExpr> {
    column(schema, schema.index_of(name).unwrap())
}

fn call(
    schema: &SchemaRef,
    function: Arc<AggregateUDF>,
    argument: Arc<dyn PhysicalExpr>,
    distinct: bool,
    filter: Option<&str>,
) -> AggregateCall {
    let expression = AggregateExprBuilder::new(function, vec![argument.clone()])
        .schema(schema.clone())
        .alias("aggregate")
        .with_distinct(distinct)
        .build()
        .unwrap();
    AggregateCall {
        function: Arc::new(expression),
        arguments: vec![argument],
        filter: filter.map(|name| named(schema, name)),
        counts_distinct: distinct,
    }
}

/// Returns the calls of all functions of the model, in its order.
fn calls(schema: &SchemaRef) -> Vec<AggregateCall> {
    let value = || named(schema, "value");
    vec![
        call(schema, sum_udaf(), value(), false, None),
        call(schema, count_udaf(), value(), false, None),
        call(schema, count_udaf(), lit(1_i64), false, None),
        call(schema, min_udaf(), value(), false, None),
        call(schema, max_udaf(), named(schema, "label"), false, None),
        call(schema, avg_udaf(), named(schema, "real"), false, None),
        call(schema, count_udaf(), value(), true, None),
        call(schema, sum_udaf(), value(), false, Some("flag")),
        call(schema, count_udaf(), lit(1_i64), false, Some("flag")),
        call(schema, array_agg_udaf(), value(), false, None),
    ]
}

fn states(calls: &[AggregateCall]) -> Vec<Vec<FieldRef>> {
    calls.iter().map(|call| call.function.state_fields().unwrap()).collect()
}

/// Returns the output schema of a group-by: keys, grouping id, and `values`.
fn output_schema(input: &Schema, group_by: &GroupBy, values: Vec<FieldRef>) -> SchemaRef {
    let key = |key: &Arc<dyn PhysicalExpr>| {
        Arc::new(Field::new(key.to_string(), key.data_type(input).unwrap(), true))
    };
    let id = group_by.set_ids.as_ref();
    let id = id.map(|(kind, _)| Arc::new(Field::new("grouping_id", kind.clone(), false)));
    let keys = group_by.keys.iter().map(key);
    Arc::new(Schema::new(keys.chain(id).chain(values).collect::<Vec<_>>()))
}

fn config(
    input_schema: SchemaRef,
    group_by: GroupBy,
    aggregates: Vec<AggregateCall>,
    phase: (AggregateInput, AggregateResult),
    batch_rows: usize,
) -> AggregateConfig {
    let values = match phase.1 {
        AggregateResult::Final => aggregates.iter().map(|call| call.function.field()).collect(),
        AggregateResult::Partial => states(&aggregates).concat(),
    };
    let schema = output_schema(&input_schema, &group_by, values);
    let (input, output) = phase;
    let memory_is_limited = batch_rows % 2 == 1;
    AggregateConfig {
        group_by,
        aggregates,
        input,
        output,
        input_schema,
        schema,
        batch_rows,
        memory_is_limited,
    }
}

/// Returns the config that merges the states of `partial`. Filters stay, but must not be applied.
fn merging(partial: &AggregateConfig) -> AggregateConfig {
    let input = partial.schema.clone();
    let key_count = partial.group_by.keys.len() + usize::from(partial.group_by.set_ids.is_some());
    let keys: Vec<_> = (0..key_count).map(|index| column(&input, index)).collect();
    let sets = if keys.is_empty() { vec![] } else { vec![vec![false; key_count]] };
    let group_by = GroupBy { keys, sets, ..GroupBy::default() };
    let mut next_column = key_count;
    let mut calls = partial.aggregates.clone();
    for (call, fields) in calls.iter_mut().zip(states(&partial.aggregates)) {
        call.arguments =
            (next_column..next_column + fields.len()).map(|index| column(&input, index)).collect();
        next_column += fields.len();
    }
    let phase = (AggregateInput::Partial, AggregateResult::Final);
    config(input, group_by, calls, phase, partial.batch_rows)
}

impl Case {
    fn group_by(&self, schema: &Schema) -> GroupBy {
        let keys: Vec<_> = self.keys.iter().map(|index| column(schema, *index)).collect();
        let Some(sets) = self.sets.clone() else {
            let sets = if keys.is_empty() { vec![] } else { vec![vec![false; keys.len()]] };
            return GroupBy { keys, sets, ..GroupBy::default() };
        };
        let ids = sets.iter().map(|set| model::grouping_id(set)).collect();
        GroupBy { keys, sets, set_ids: Some((DataType::UInt8, ids)) }
    }

    /// Returns the number of source tasks: one if there is one group, and no values are counted.
    fn num_sources(&self, calls: &[AggregateCall]) -> usize {
        let is_ungrouped = self.keys.is_empty() && self.sets.is_none();
        let counts_values = self.phases == One && calls.iter().any(|call| call.counts_distinct);
        if is_ungrouped && !counts_values { 1 } else { self.sources }
    }

    /// Adds all phases except the pipeline of the last source.
    fn add(
        &self,
        graph: &mut Graph,
        schema: &SchemaRef,
        source: Arc<dyn Source>,
        calls: Vec<AggregateCall>,
    ) -> AggregateSource {
        let group_by = self.group_by(schema);
        let sources = self.num_sources(&calls);
        let out =
            if self.phases == One { AggregateResult::Final } else { AggregateResult::Partial };
        let phase = (AggregateInput::Raw, out);
        let config = config(schema.clone(), group_by, calls, phase, self.batch_rows);
        let second = (self.phases != One).then(|| merging(&config));
        if self.phases == Streaming && config.can_flush_partial() {
            let first = Arc::new(PartialAggregate::new(config).unwrap());
            let (build, merged) = new(second.unwrap(), self.sinks, sources).unwrap();
            graph
                .add_pipeline("aggregate", self.sinks, source, vec![first], Arc::new(build))
                .unwrap();
            return merged;
        }
        let (build, output) = new(config, self.sinks, sources).unwrap();
        graph.add_pipeline("aggregate", self.sinks, source, vec![], Arc::new(build)).unwrap();
        let Some(second) = second else { return output };
        let (build, merged) = new(second, sources, sources).unwrap();
        graph.add_pipeline("merge", sources, Arc::new(output), vec![], Arc::new(build)).unwrap();
        merged
    }

    fn run(
        &self,
        options: QueryOptions,
        schema: &SchemaRef,
        source: Arc<dyn Source>,
        calls: Vec<AggregateCall>,
    ) -> Result<Vec<RecordBatch>> {
        let sources = self.num_sources(&calls);
        let answer = run_with(options, |graph| {
            let output = self.add(graph, schema, source, calls);
            result_of(graph, sources, 1, Arc::new(output), vec![])
        });
        Ok(answer?.remove(0))
    }

    fn check(&self, input: &Input) {
        self.check_with(QueryOptions::default(), input);
    }

    fn check_with(&self, options: QueryOptions, input: &Input) {
        let schema = input.batch.schema();
        // Keys that nothing else reads arrive as dictionaries.
        let source = dictionary_scan(&input.batch, self.morsel);
        let batches = self.run(options, &schema, source, calls(&schema)).unwrap();
        assert_eq!(texts(&batches), input.aggregate(&self.keys, self.sets.as_deref()), "{self:?}");
        assert!(batches.iter().all(|batch| batch.num_rows() <= self.batch_rows.max(1)));
    }
}

fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1_usize, 3, 8192])
}

prop_compose! {
    fn any_case()(
        keys in prop::sample::subsequence((0..model::KEYS).collect::<Vec<_>>(), 0..4)
            .prop_shuffle(),
        phases in prop::sample::select(vec![One, Two, Streaming]),
        morsel in size(),
        batch_rows in size(),
        sinks in 1..4_usize,
        sources in 1..4_usize,
    ) -> Case {
        Case { keys, sets: None, phases, morsel, batch_rows, sinks, sources }
    }
}

prop_compose! {
    fn sets_case()(
        case in any_case(),
        keys in prop::sample::subsequence((0..model::KEYS).collect::<Vec<_>>(), 2),
        sets in prop::sample::subsequence(
            vec![[true, true], [false, true], [true, false], [false, false]],
            1..=4,
        ),
    ) -> Case {
        Case { keys, sets: Some(sets.into_iter().map(Vec::from).collect()), ..case }
    }
}

fn rows() -> impl Strategy<Value = Vec<model::Row>> {
    let code = || prop::option::weighted(0.8, 0..model::CODES);
    let value = prop::option::weighted(0.8, -3..4_i64);
    let flag = prop::option::weighted(0.8, any::<bool>());
    prop::collection::vec((code(), code(), code(), value, flag), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn groups_are_those_of_the_model(case in any_case(), rows in rows()) {
        case.check(&Input::new(&rows));
    }

    #[test]
    fn denied_memory_changes_no_group(
        case in any_case(),
        key in 0..model::KEYS,
        rows in rows(),
        seed in any::<u64>(),
    ) {
        let keys = if case.keys.is_empty() { vec![key] } else { case.keys.clone() };
        let (pool, _, options) = random_refusals(seed);
        Case { keys, ..case }.check_with(options, &Input::new(&rows));
        assert_eq!(pool.reserved(), 0);
    }

    #[test]
    fn grouping_sets_are_those_of_the_model(case in sets_case(), rows in rows()) {
        case.check(&Input::new(&rows));
    }

    #[test]
    fn denied_memory_changes_no_grouping_set(
        case in sets_case(),
        rows in rows(),
        seed in any::<u64>(),
    ) {
        let (pool, _, options) = random_refusals(seed);
        case.check_with(options, &Input::new(&rows));
        assert_eq!(pool.reserved(), 0);
    }
}

fn plain(keys: &[usize]) -> Case {
    let keys = keys.to_vec();
    let (phases, sets) = (One, None);
    Case { keys, sets, phases, morsel: 1000, batch_rows: 1000, sinks: 2, sources: 2 }
}

#[test]
fn no_rows_are_one_group_only_where_there_is_no_key() {
    let nothing = Input::new(&[]);
    let all = vec![vec![true, true], vec![false, true]];
    for phases in [One, Two, Streaming] {
        for sinks in [1, 3] {
            for (keys, sets, groups) in
                [(vec![], None, 1), (vec![0], None, 0), (vec![0, 1], Some(all.clone()), 1)]
            {
                let case = Case { keys, sets, phases, sinks, ..plain(&[]) };
                case.check(&nothing);
                let model = nothing.aggregate(&case.keys, case.sets.as_deref());
                assert_eq!(model.len(), groups);
            }
        }
    }
}

#[test]
fn all_task_counts_agree_on_all_keys() {
    let row = |n: u8| {
        let code = |n: u8| (!n.is_multiple_of(5)).then_some(n % model::CODES);
        let value = (!n.is_multiple_of(7)).then_some(i64::from(n) - 100);
        (code(n), code(n / 6), code(n / 36), value, Some(n.is_multiple_of(2)))
    };
    let input = Input::new(&(0..=255).map(row).collect::<Vec<_>>());
    for sinks in 1..4 {
        for sources in 1..4 {
            for phases in [One, Two, Streaming] {
                let keys: Vec<usize> = (0..model::KEYS).collect();
                let (morsel, batch_rows) = (7, 5);
                let (sets, case) = (None, plain(&[]));
                Case { keys, sets, phases, morsel, batch_rows, sinks, sources }.check(&input);
                Case { phases, sinks, sources, ..case }.check(&input);
            }
        }
    }
}

/// Returns `rows` rows in `groups` groups; the values are row numbers.
fn numbers(rows: i64, groups: i64) -> RecordBatch {
    let keys = Int64Array::from_iter_values((0..rows).map(|row| row * 7919 % groups));
    let values = Int64Array::from_iter_values(0..rows);
    table([("key", Arc::new(keys)), ("value", Arc::new(values))])
}

fn sum_of_value(schema: &SchemaRef) -> Vec<AggregateCall> {
    let value = || named(schema, "value");
    vec![
        call(schema, sum_udaf(), value(), false, None),
        call(schema, min_udaf(), value(), false, None),
    ]
}

/// More groups than a local table holds, so that tasks empty their tables several times.
#[test]
fn more_groups_than_a_local_table_holds() {
    const GROUPS: i64 = 150_001;
    let input = numbers(400_000, GROUPS);
    let mut model = vec![(0_i64, i64::MAX); GROUPS as usize];
    for row in 0..400_000_i64 {
        let (sum, min) = &mut model[(row * 7919 % GROUPS) as usize];
        *sum += row;
        *min = row.min(*min);
    }
    for (sinks, sources, phases) in
        [(1, 2, One), (2, 1, One), (3, 3, One), (2, 3, Two), (2, 3, Streaming)]
    {
        let case = Case { sinks, sources, phases, morsel: 8192, ..plain(&[0]) };
        let (schema, options) = (input.schema(), QueryOptions::default());
        let source = scan(&input, 8192);
        let batches = case.run(options, &schema, source, sum_of_value(&schema)).unwrap();
        let mut seen = vec![None; GROUPS as usize];
        for batch in &batches {
            let column = |index| batch.column(index).as_primitive::<Int64Type>().values();
            for row in 0..batch.num_rows() {
                let group = &mut seen[column(0)[row] as usize];
                assert!(group.is_none(), "a group has one row");
                *group = Some((column(1)[row], column(2)[row]));
            }
        }
        assert!(seen.iter().zip(&model).all(|(seen, model)| *seen == Some(*model)), "{case:?}");
    }
}

/// The streaming aggregate emits few rows where groups have many rows, and all rows where each is a
/// group. In the latter case most rows bypass aggregation.
#[test]
fn unreduced_rows_bypass_aggregation() {
    for (groups, max_rows) in [(500_000, 500_000), (1000, 2000), (50_001, 150_000)] {
        let random = |row: u64| (row.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as i64 % groups;
        let keys = Int64Array::from_iter_values((0..500_000).map(random));
        let values = Int64Array::from_iter_values(0..500_000);
        let input = table([("key", Arc::new(keys)), ("value", Arc::new(values))]);
        let schema = input.schema();
        let group_by = plain(&[0]).group_by(&schema);
        let phase = (AggregateInput::Raw, AggregateResult::Partial);
        let config = config(schema.clone(), group_by, sum_of_value(&schema), phase, 8192);
        let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
        let mut graph = Graph::new();
        let partial = Arc::new(PartialAggregate::new(config).unwrap());
        let readers = result_of(&mut graph, 2, 1, scan(&input, 8192), vec![partial]);
        let running = graph.start(&query).unwrap();
        let stream = RowStream::of_query(&running, readers).into_iter().next().unwrap();
        let batches: Vec<_> = stream.into_blocking_iter().map(Result::unwrap).collect();
        let rows: usize = batches.iter().map(Batch::num_rows).sum();
        assert!(rows <= max_rows, "{rows} of {groups} groups");
        let sums = batches.iter().map(|batch| {
            let sums = batch.data().column(1).as_primitive::<Int64Type>();
            sums.values().iter().sum::<i64>()
        });
        assert_eq!(sums.sum::<i64>(), (0..500_000).sum::<i64>());
        let passed = query.profile().to_string();
        assert_eq!(passed.contains("skipped_aggregation_rows"), groups == 500_000, "{passed}");
    }
}

#[test]
fn groups_reserve_query_memory() {
    let input = numbers(200_000, 100_000);
    for (limit, fits) in [(1 << 20, false), (64 << 20, true)] {
        for (sinks, phases) in [(1, One), (2, One), (2, Two), (2, Streaming)] {
            let memory = Arc::new(GreedyPool::new(limit));
            let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
            let case = Case { sinks, phases, ..plain(&[0]) };
            let schema = input.schema();
            let source = scan(&input, 1000);
            match case.run(options, &schema, source, sum_of_value(&schema)) {
                Ok(batches) => {
                    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                    assert!(fits && rows == 100_000);
                }
                Err(error) => {
                    assert!(!fits && matches!(error, Error::OutOfMemory { .. }), "{error}");
                    assert!(error.to_string().contains("aggregate sink"), "{error}");
                }
            }
            assert_eq!(memory.reserved(), 0);
        }
    }
}

#[test]
fn groups_that_do_not_fit_are_spilled() {
    let input = numbers(200_000, 100_000);
    let schema = input.schema();
    let run = |limit: usize, case: &Case| {
        let (memory, spill) =
            (Arc::new(GreedyPool::new(limit)), Arc::new(InMemorySpill::default()));
        let options = QueryOptions {
            memory: memory.clone(),
            spill: Some(spill.clone()),
            ..QueryOptions::default()
        };
        let source = scan(&input, 1000);
        let batches = case.run(options, &schema, source, sum_of_value(&schema)).unwrap();
        assert_eq!(memory.reserved(), 0);
        (sorted_rows(&batches), spill.writes.load(Ordering::Relaxed))
    };
    for (sinks, phases) in [(1, One), (2, One), (3, One), (2, Two), (2, Streaming)] {
        let case = Case { sinks, sources: 2, phases, ..plain(&[0]) };
        let (expected, nothing) = run(1 << 30, &case);
        assert_eq!(nothing, 0);
        // At the lowest limit, restored rows do not fit either.
        for limit in [4 << 20, 1 << 20, 1 << 18] {
            let (rows, batches) = run(limit, &case);
            assert!(batches > 0 && rows == expected, "{case:?} with {limit} bytes");
        }
    }
}

/// One group can be large as well; its reservation lasts until the group was emitted.
#[test]
fn distinct_values_of_the_only_group_reserve_memory() {
    let input = numbers(200_000, 100_000);
    let schema = input.schema();
    let calls = vec![call(&schema, count_udaf(), named(&schema, "key"), true, None)];
    for (limit, fits) in [(1 << 18, false), (64 << 20, true)] {
        let memory = Arc::new(GreedyPool::new(limit));
        let options = QueryOptions { memory: memory.clone(), ..QueryOptions::default() };
        match plain(&[]).run(options, &schema, scan(&input, 1000), calls.clone()) {
            Ok(batches) => assert!(fits && texts(&batches) == ["100000"]),
            Err(error) => {
                assert!(!fits && error.to_string().contains("aggregate sink"), "{error}")
            }
        }
        assert_eq!(memory.reserved(), 0);
    }
}

#[test]
fn distinct_values_that_do_not_fit_are_spilled() {
    let input = numbers(200_000, 100_000);
    let schema = input.schema();
    let count = |name| call(&schema, count_udaf(), named(&schema, name), true, None);
    let calls = || {
        let sum = call(&schema, sum_udaf(), named(&schema, "key"), false, None);
        vec![count("key"), sum, count("value")]
    };
    for (sinks, sources) in [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2)] {
        for (limit, spills) in [(1 << 30, false), (2 << 20, true), (1 << 18, true)] {
            let (memory, spill) =
                (Arc::new(GreedyPool::new(limit)), Arc::new(InMemorySpill::default()));
            let options = QueryOptions {
                memory: memory.clone(),
                spill: Some(spill.clone()),
                ..QueryOptions::default()
            };
            let case = Case { sinks, sources, ..plain(&[]) };
            let batches = case.run(options, &schema, scan(&input, 1000), calls()).unwrap();
            let sum = 2 * (0..100_000_i64).sum::<i64>();
            assert_eq!(texts(&batches), [format!("100000|{sum}|200000")], "{case:?}");
            assert_eq!(spill.writes.load(Ordering::Relaxed) > 0, spills, "{case:?} {limit}");
            assert_eq!(memory.reserved(), 0);
        }
    }
}

#[test]
fn a_failed_input_is_not_an_empty_one() {
    let schema = Input::new(&[]).batch.schema();
    for keys in [vec![], vec![0]] {
        let case = Case { keys, ..plain(&[]) };
        let source = Arc::new(FailingScan);
        let answer = case.run(QueryOptions::default(), &schema, source, calls(&schema));
        assert_eq!(answer.unwrap_err().to_string(), "the scan failed");
    }
}

#[test]
fn a_dropped_result_ends_an_aggregate() {
    let input = numbers(200_000, 100_000);
    for phases in [One, Two, Streaming] {
        let case = Case { phases, ..plain(&[0]) };
        let query = QueryContext::new(&EXECUTOR, QueryOptions::default());
        let mut graph = Graph::new();
        let schema = input.schema();
        let output = case.add(&mut graph, &schema, scan(&input, 1000), sum_of_value(&schema));
        let readers = result_of(&mut graph, 2, 1, Arc::new(output), vec![]);
        let running = graph.start(&query).unwrap();
        let mut stream =
            RowStream::of_query(&running, readers).into_iter().next().unwrap().into_blocking_iter();
        assert!(stream.next().unwrap().unwrap().num_rows() > 0);
        drop(stream);
        wait_idle(&query);
    }
}

/// A filter is applied where rows are aggregated, and not to their states.
#[test]
fn states_are_not_filtered_again() {
    let rows: Vec<model::Row> =
        (0..10).map(|n| (Some(1), None, None, Some(n), Some(n < 4))).collect();
    let input = Input::new(&rows);
    for (keys, phases) in [(vec![], Two), (vec![0], Two), (vec![0], Streaming)] {
        let case = Case { phases, keys, ..plain(&[]) };
        let schema = input.batch.schema();
        let filtered =
            vec![call(&schema, sum_udaf(), named(&schema, "value"), false, Some("flag"))];
        let batches = run(|graph| {
            let output = case.add(graph, &schema, scan(&input.batch, 3), filtered);
            result_of(graph, if case.keys.is_empty() { 1 } else { 2 }, 1, Arc::new(output), vec![])
        });
        let texts = texts(&batches.unwrap());
        assert!(texts.len() == 1 && texts[0].ends_with('6'), "{texts:?}");
    }
}

#[test]
fn groups_are_spilled_on_reclaim_requests() {
    let input = numbers(200_000, 100_000);
    let schema = input.schema();
    let case = Case { sinks: 2, sources: 2, ..plain(&[0]) };
    let calls = sum_of_value(&schema);
    let expected =
        case.run(QueryOptions::default(), &schema, scan(&input, 1000), calls.clone()).unwrap();
    // On a busy machine all rows may be grouped before reclaim is requested.
    for _ in 0..50 {
        let (spill, options) = unlimited();
        let answer = run_with_reclaim_requests(options, |graph| {
            let output = case.add(graph, &schema, scan(&input, 1000), calls.clone());
            result_of(graph, 2, 1, Arc::new(output), vec![])
        });
        assert!(sorted_rows(&answer.unwrap()[0]) == sorted_rows(&expected));
        if spill.writes.load(Ordering::Relaxed) > 0 {
            return;
        }
    }
    panic!("nothing was reclaimed");
}
