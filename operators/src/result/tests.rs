//! Every row reaches one partition: that of its task, or that of its keys.

use std::sync::{Arc, atomic::Ordering};

use arrow::array::RecordBatch;
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};
use gatework_shared_state::BufferLimit;

use super::ResultSink;
use crate::test_support::{
    ints, random_refusals, rows, run_all, run_with, scan, sorted_rows, table,
};

fn input() -> RecordBatch {
    let keys = (0..100).map(|row| (row % 9 != 0).then_some(row % 7));
    table([("key", ints(keys)), ("row", ints((0..100).map(Some)))])
}

fn partitions(
    keys: Vec<Arc<dyn PhysicalExpr>>,
    tasks: usize,
    readers: usize,
) -> Vec<Vec<RecordBatch>> {
    run_all(|graph| {
        let (output, readers) = ResultSink::new(tasks, readers, keys, BufferLimit::new(50));
        graph.add_pipeline("result", tasks, scan(&input(), 3), vec![], Arc::new(output)).unwrap();
        readers
    })
    .unwrap()
}

#[test]
fn no_row_is_lost_or_doubled() {
    let key = || Arc::new(Column::new("key", 0)) as Arc<dyn PhysicalExpr>;
    for tasks in 1..4 {
        for readers in 1..4 {
            for keys in [vec![], vec![key()]] {
                let all = partitions(keys, tasks, readers).concat();
                assert_eq!(sorted_rows(&all), sorted_rows(&[input()]), "{tasks} to {readers}");
            }
        }
    }
}

#[test]
fn equal_keys_meet_in_one_partition() {
    let key = Arc::new(Column::new("key", 0));
    let partitions = partitions(vec![key], 3, 3);
    let keys = |batches: &Vec<RecordBatch>| {
        let keys: Vec<_> = batches.iter().map(|batch| batch.project(&[0]).unwrap()).collect();
        let mut keys = rows(&keys);
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let mut all: Vec<String> = partitions.iter().flat_map(keys).collect();
    let places = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((places, all.len()), (8, 8), "seven keys and NULL, each in one partition");
    assert!(partitions.iter().filter(|batches| !batches.is_empty()).count() > 1);
}

#[test]
fn spilled_rows_reach_their_reader() {
    for seed in 0..30 {
        let (pool, spill_space, options) = random_refusals(seed);
        let readers = run_with(options, |graph| {
            let key = Arc::new(Column::new("key", 0)) as Arc<dyn PhysicalExpr>;
            let budget = BufferLimit::new(1);
            budget.allow_overflow();
            let (output, readers) = ResultSink::new(2, 3, vec![key], budget);
            graph.add_pipeline("result", 2, scan(&input(), 3), vec![], Arc::new(output)).unwrap();
            readers
        })
        .unwrap();
        assert_eq!(sorted_rows(&readers.concat()), sorted_rows(&[input()]), "seed {seed}");
        assert!(spill_space.writes.load(Ordering::Relaxed) > 0);
        assert_eq!(pool.reserved(), 0);
    }
}
