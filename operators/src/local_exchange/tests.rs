//! Local exchange against its input: every row arrives once, on the channel its routing selects.

mod union;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema},
};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use gatework_runtime::{Result, pipeline::QueryOptions};
use gatework_shared_state::BufferLimit;
use proptest::prelude::*;

use super::{Routing, new};
use crate::{
    keys::partition_rows,
    limit::Limit,
    test_support::{
        FailingScan, ints, random_refusals, result_of, rows, run_all, run_with, scan, sorted_rows,
        table,
    },
};

fn key() -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new("k", 0))
}

fn numbers(count: i32) -> RecordBatch {
    let keys = (0..count).map(|n| (n % 13 != 0).then_some(n % 7));
    table([("k", ints(keys)), ("n", ints((0..count).map(Some)))])
}

#[derive(Debug, Clone)]
struct Case {
    routing: Routing,
    producers: usize,
    consumers: usize,
    morsel: usize,
    budget: BufferLimit,
}

impl Case {
    /// Returns the rows of each channel.
    fn run(&self, input: &RecordBatch) -> Result<Vec<Vec<RecordBatch>>> {
        self.run_with(QueryOptions::default(), input)
    }

    fn run_with(
        &self,
        options: QueryOptions,
        input: &RecordBatch,
    ) -> Result<Vec<Vec<RecordBatch>>> {
        run_with(options, |graph| {
            let (routing, budget) = (self.routing.clone(), self.budget.clone());
            let (mut sinks, source) =
                new(routing, &[self.producers], self.consumers, budget).unwrap();
            let scan = scan(input, self.morsel);
            graph
                .add_pipeline("producer", self.producers, scan, vec![], Arc::new(sinks.remove(0)))
                .unwrap();
            result_of(graph, self.consumers, self.consumers, Arc::new(source), vec![])
        })
    }
}

fn all_rows(channels: &[Vec<RecordBatch>]) -> Vec<String> {
    sorted_rows(&channels.concat())
}

fn routings() -> Vec<Routing> {
    vec![
        Routing::Hash(vec![key()]),
        Routing::HashReseeded(vec![key()]),
        Routing::PassThrough,
        Routing::PassToOne,
        Routing::AdaptivePassThrough,
        Routing::Broadcast,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn rows_in_are_rows_out(
        routing in prop::sample::select(routings()),
        producers in 1..4_usize,
        consumers in 1..4_usize,
        morsel in prop::sample::select(vec![1_usize, 3, 8192]),
        limit in prop::sample::select(vec![1_usize, 100, 1 << 20]),
        overflow in any::<bool>(),
        count in 0..60,
    ) {
        let budget = BufferLimit::new(limit);
        if overflow {
            budget.allow_overflow();
        }
        let input = numbers(count);
        let case = Case { routing, producers, consumers, morsel, budget };
        let channels = case.run(&input).unwrap();
        prop_assert_eq!(channels.len(), consumers);
        if let Routing::Broadcast = case.routing {
            for channel in channels {
                prop_assert_eq!(sorted_rows(&channel), sorted_rows(std::slice::from_ref(&input)));
            }
        } else {
            prop_assert_eq!(all_rows(&channels), sorted_rows(&[input]));
        }
    }
}

fn case(routing: Routing, consumers: usize) -> Case {
    Case { routing, producers: 2, consumers, morsel: 10, budget: BufferLimit::new(200) }
}

#[test]
fn equal_keys_meet_where_datafusion_sends_them() {
    let input = numbers(500);
    let channels = case(Routing::Hash(vec![key()]), 3).run(&input).unwrap();
    let mut expected: BTreeMap<usize, Vec<String>> = partition_rows(&input, &[key()], 3)
        .unwrap()
        .into_iter()
        .map(|(p, rows)| (p, sorted_rows(&[rows])))
        .collect();
    for (channel, batches) in channels.iter().enumerate() {
        assert_eq!(sorted_rows(batches), expected.remove(&channel).unwrap_or_default());
    }
}

/// One partition of a hash exchange is spread over all channels of the next, still by keys.
#[test]
fn rows_of_a_partition_are_spread_again() {
    let keys = ints((0..400).map(|n| Some(n % 100)));
    let input = table([("k", keys), ("n", ints((0..400).map(Some)))]);
    let (_, share) = partition_rows(&input, &[key()], 4).unwrap().remove(0);
    let keys = |batches: &[RecordBatch]| -> BTreeSet<String> {
        batches.iter().flat_map(|rows_of| rows(&[rows_of.project(&[0]).unwrap()])).collect()
    };
    let channels = case(Routing::HashReseeded(vec![key()]), 2).run(&share).unwrap();
    let of: Vec<_> = channels.iter().map(|batches| keys(batches)).collect();
    assert!(of.iter().all(|keys| !keys.is_empty()), "{of:?}");
    assert!(of[0].is_disjoint(&of[1]), "{of:?}");
    assert_eq!(all_rows(&channels), sorted_rows(&[share]));
}

#[test]
fn buckets_go_where_the_map_says() {
    let keys = (0..100).map(|n| Some(n % 4));
    let input = table([("k", ints(keys)), ("n", ints((0..100).map(Some)))]);
    let routing = Routing::BucketHash { bucket: key(), channels: [2, 0, 2, 1].into() };
    let channels = case(routing, 4).run(&input).unwrap();
    let buckets = |channel: usize| -> Vec<String> {
        let mut buckets: Vec<_> =
            rows(&channels[channel]).iter().map(|row| row[..1].to_owned()).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    };
    assert_eq!([buckets(0), buckets(1), buckets(2)], [vec!["1"], vec!["3"], vec!["0", "2"]]);
    assert!(channels[3].is_empty());
    assert_eq!(all_rows(&channels), sorted_rows(&[input]));
}

#[test]
fn a_bucket_without_a_channel_is_an_error() {
    let route = |channels: &[usize], buckets: &[Option<i32>]| {
        let routing = Routing::BucketHash { bucket: key(), channels: channels.into() };
        let input = table([("k", ints(buckets.iter().copied()))]);
        case(routing, 2).run(&input).unwrap_err().to_string()
    };
    for bucket in [Some(3), Some(-1), None] {
        assert!(route(&[0, 1], &[Some(1), bucket]).contains("but buckets are 0 to 1"));
    }
    let routing = Routing::BucketHash { bucket: key(), channels: [0, 2].into() };
    let error = new(routing, &[1], 2, BufferLimit::new(1)).unwrap_err();
    assert_eq!(error.to_string(), "a bucket maps to channel 2, but the exchange has 2 channels");
    assert!(new(Routing::PassThrough, &[0], 2, BufferLimit::new(1)).is_err());
}

#[test]
fn pass_to_one_leaves_the_others_empty() {
    let channels = case(Routing::PassToOne, 3).run(&numbers(100)).unwrap();
    assert_eq!(rows(&channels[0]).len(), 100);
    assert!(channels[1].is_empty() && channels[2].is_empty());
}

#[test]
fn adaptive_pass_through_splits_the_first_batches() {
    let whole = |routing| {
        let case = Case { producers: 1, morsel: 8192, ..case(routing, 3) };
        let channels = case.run(&numbers(100)).unwrap();
        channels.iter().map(|batches| rows(batches).len()).collect::<Vec<_>>()
    };
    assert_eq!(whole(Routing::AdaptivePassThrough), [33, 33, 34]);
    assert_eq!(whole(Routing::PassThrough), [100, 0, 0]);
    // Batches too small to be split start at different channels.
    let case = Case { producers: 1, morsel: 1, ..case(Routing::AdaptivePassThrough, 3) };
    let channels = case.run(&numbers(3)).unwrap();
    assert_eq!(channels.iter().map(|batches| rows(batches).len()).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn several_pipelines_share_an_exchange_and_its_names() {
    let schema = ["a", "b"].map(|name| Field::new(name, DataType::Int32, true)).to_vec();
    let schema = Arc::new(Schema::new(schema));
    let channels = run_all(|graph| {
        let (sinks, source) = new(Routing::PassThrough, &[2, 1], 2, BufferLimit::new(1)).unwrap();
        for (sink, tasks) in sinks.into_iter().zip([2, 1]) {
            let scan = scan(&numbers(50), 3);
            graph.add_pipeline("producer", tasks, scan, vec![], Arc::new(sink)).unwrap();
        }
        result_of(graph, 2, 2, Arc::new(source.with_schema(schema.clone())), vec![])
    })
    .unwrap();
    assert!(channels.iter().flatten().all(|batch| batch.schema() == schema));
    assert_eq!(all_rows(&channels), sorted_rows(&[numbers(50), numbers(50)]));
}

#[test]
fn an_early_end_reaches_all_producers() {
    for routing in routings() {
        let channels = run_all(|graph| {
            let (mut sinks, source) = new(routing.clone(), &[2], 2, BufferLimit::new(1)).unwrap();
            let scan = scan(&numbers(10_000), 1);
            graph.add_pipeline("producer", 2, scan, vec![], Arc::new(sinks.remove(0))).unwrap();
            let limit = Arc::new(Limit::new(0, Some(3)));
            result_of(graph, 2, 2, Arc::new(source), vec![limit])
        })
        .unwrap();
        assert_eq!(all_rows(&channels).len(), 3, "{routing:?}");
    }
}

#[test]
fn a_failed_producer_fails_the_query() {
    let error = run_all(|graph| {
        let (sinks, source) = new(Routing::Broadcast, &[1, 1], 2, BufferLimit::new(100)).unwrap();
        let mut sinks = sinks.into_iter().map(Arc::new);
        graph
            .add_pipeline("good", 1, scan(&numbers(10), 1), vec![], sinks.next().unwrap())
            .unwrap();
        graph.add_pipeline("bad", 1, Arc::new(FailingScan), vec![], sinks.next().unwrap()).unwrap();
        result_of(graph, 2, 2, Arc::new(source), vec![])
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "the scan failed");
}

#[test]
fn spilled_rows_reach_their_channel() {
    for seed in 0..10 {
        for routing in routings() {
            let budget = BufferLimit::new(1);
            budget.allow_overflow();
            let copies = if matches!(routing, Routing::Broadcast) { 3 } else { 1 };
            let what = format!("{routing:?}, seed {seed}");
            let case = Case { routing, producers: 2, consumers: 3, morsel: 7, budget };
            let (pool, spill_space, options) = random_refusals(seed);
            let rows = all_rows(&case.run_with(options, &numbers(100)).unwrap());
            assert_eq!(rows, sorted_rows(&vec![numbers(100); copies]), "{what}");
            assert!(spill_space.writes.load(Ordering::Relaxed) > 0, "{what}");
            assert_eq!(pool.reserved(), 0);
        }
    }
}
