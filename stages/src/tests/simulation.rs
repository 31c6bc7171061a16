//! Many nodes and many splits: balance of the placement, and its number of calls.

use super::mock::{MockFactory, MockSplits, chain};
use crate::{
    SourcePartitionedScheduler, SplitLimits, StageExecution, StageScheduler, StageState, StageTask,
    TaskEvents,
};
use gatework_shared_state::{output::OutputBuffers, splits::SplitLoad};
use std::sync::Arc;

struct Outcome {
    /// Weight read by the fullest node, divided by an equal share.
    skew: f64,
    calls: usize,
}

/// Splits of weights from 1 to 100, heavy ones rare; all nodes read at the same speed.
fn simulate(nodes: usize, splits: usize) -> Outcome {
    let weight = |n: usize| {
        1 + (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 100 * 7 / (1 + n as u64 % 7)
    };
    let weights: Vec<u64> = (0..splits).map(weight).collect();
    let all: u64 = weights.iter().sum();
    let limits = SplitLimits::default();
    let factory = MockFactory::new(limits.max_pending_splits_per_task);
    let fragment = chain(nodes).fragments()[2].clone();
    let mut stage = StageExecution::new(fragment, factory.clone(), Arc::<TaskEvents>::default());
    stage.set_buffers(&OutputBuffers::with_partitions(1)).unwrap();
    let splits = Box::new(MockSplits::new(weights));
    let mut scheduler = SourcePartitionedScheduler::new(splits, limits);
    let (mut assigned, mut calls) = (vec![0_u64; nodes], 0);
    loop {
        let tasks = factory.tasks();
        let mut loads = vec![SplitLoad::default(); nodes];
        for task in &tasks {
            loads[task.node()] = task.load();
        }
        let before: Vec<u64> = loads.iter().map(|load| load.weight).collect();
        let scheduled = scheduler.schedule(&mut stage, &loads).unwrap();
        calls += 1;
        for task in factory.tasks() {
            let node = task.node();
            assigned[node] += task.load().weight - before[node];
        }
        if scheduled.finished {
            break;
        }
        assert!(stage.state() != StageState::Failed);
        // Each node reads the same weight per round.
        for task in factory.tasks() {
            let read_to = task.load().weight.saturating_sub(500);
            while task.load().weight > read_to && task.read_splits(1) > 0 {}
        }
    }
    let fair = all as f64 / nodes as f64;
    let max = assigned.into_iter().max().unwrap_or(0) as f64;
    Outcome { skew: max / fair, calls }
}

/// All splits are placed, evenly, in few calls.
#[test]
fn a_thousand_nodes_and_a_hundred_thousand_splits() {
    for (nodes, splits) in [(10, 10_000), (1000, 100_000)] {
        let Outcome { skew, calls } = simulate(nodes, splits);
        assert!(skew < 1.25, "{skew}");
        assert!(calls < splits, "{calls}");
    }
}
