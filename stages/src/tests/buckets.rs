//! Bucketed tables: where they need no exchange (F-9), which node reads which bucket (K-2), and in
//! which order (K-4, M-5).

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array},
        record_batch::RecordBatch,
    },
    parquet::arrow::ArrowWriter,
    prelude::{ParquetReadOptions, SessionContext},
};
use gatework_sql::{
    buckets::{BucketedTable, Bucketing},
    splits::SplitSource,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::mock::{LIMITS, MockFactory, MockSplits, MockTask, chain};
use crate::{
    BucketSplits, BufferManager, FixedSourceScheduler, PartitioningHandle as Handle, Scheduled,
    StageExecution, StageOptions, StageScheduler, StageState, StageTask, SubPlan, TaskEvents,
    plan_stages,
};

/// `a`, `b` and `other` by k, with 4, 4 and 8 buckets; `pair` by k and v; `plain` without buckets.
/// All are empty.
async fn session(folder: &TempDir) -> SessionContext {
    let session = SessionContext::new();
    for (table, columns, count) in [
        ("a", vec!["k"], 4),
        ("b", vec!["k"], 4),
        ("other", vec!["k"], 8),
        ("pair", vec!["k", "v"], 4),
        ("plain", vec![], 4),
    ] {
        let path = folder.path().join(table);
        std::fs::create_dir(&path).unwrap();
        let kinds = "i".repeat(columns.len().max(1));
        for bucket in 0..count {
            let values: ArrayRef = Arc::new(Int64Array::from(vec![1]));
            let rows = ["k", "v", "w"].map(|name| (name, values.clone(), true));
            let rows = RecordBatch::try_from_iter_with_nullable(rows).unwrap();
            let file =
                File::create(path.join(format!("bucket-{bucket}-of-{count}-by-{kinds}-1.parquet")));
            let mut writer = ArrowWriter::try_new(file.unwrap(), rows.schema(), None).unwrap();
            writer.write(&rows).unwrap();
            writer.close().unwrap();
        }
        let options = ParquetReadOptions::default();
        session.register_parquet(table, path.to_str().unwrap(), options).await.unwrap();
        if !columns.is_empty() {
            let files = session.deregister_table(table).unwrap().unwrap();
            let columns = columns.into_iter().map(str::to_owned).collect();
            let bucketing = Bucketing::new(columns, count).unwrap();
            let files = BucketedTable::try_new(files, bucketing).unwrap();
            session.register_table(table, Arc::new(files)).unwrap();
        }
    }
    session
}

async fn stages(session: &SessionContext, sql: &str, nodes: usize) -> SubPlan {
    let (state, plan) = session.sql(sql).await.unwrap().into_parts();
    let options = StageOptions {
        max_broadcast_bytes: 0,
        max_broadcast_rows: 0,
        ..StageOptions::with_nodes(nodes)
    };
    plan_stages(&state, &plan, &options).await.unwrap()
}

/// Distribution of each stage that reads tables, and whether it uses grouped execution.
fn tables(plan: &SubPlan) -> Vec<(Handle, bool)> {
    let fragments = plan.fragments().into_iter().filter(|fragment| !fragment.tables.is_empty());
    fragments.map(|fragment| (fragment.partitioning, fragment.grouped_execution)).collect()
}

const GROUPED: (Handle, bool) = (Handle::Buckets, true);
const ANYWHERE: (Handle, bool) = (Handle::Source, false);

#[tokio::test]
async fn f9_what_is_done_in_groups() {
    let folder = TempDir::new().unwrap();
    let session = session(&folder).await;
    for (sql, expected) in [
        // A partitioned join is grouped if both of its sides are bucketed by its keys.
        ("SELECT a.v FROM a JOIN b ON a.k = b.k", vec![GROUPED]),
        ("SELECT a.v FROM a LEFT JOIN b ON a.k = b.k AND a.w < b.w", vec![GROUPED]),
        (
            "SELECT v FROM a WHERE EXISTS (SELECT 1 FROM b WHERE a.k = b.k AND a.v = b.v)",
            vec![GROUPED],
        ),
        ("SELECT a.v FROM a JOIN plain ON a.k = plain.k", vec![ANYWHERE; 2]),
        // Other columns, a part of the columns, or another number of buckets do not match.
        ("SELECT a.v FROM a JOIN b ON a.k = b.v", vec![ANYWHERE; 2]),
        ("SELECT a.v FROM a JOIN b ON a.k + 1 = b.k + 1", vec![ANYWHERE; 2]),
        ("SELECT a.v FROM a JOIN other ON a.k = other.k", vec![ANYWHERE; 2]),
        ("SELECT a.v FROM a JOIN pair ON a.k = pair.k AND a.v = pair.v", vec![ANYWHERE; 2]),
        ("SELECT x.w FROM pair x JOIN pair y ON x.v = y.v AND x.k = y.k", vec![GROUPED]),
        ("SELECT x.w FROM pair x JOIN pair y ON x.v = y.k AND x.k = y.v", vec![ANYWHERE; 2]),
        // An aggregate by the bucket key, or by more columns, is grouped; also above a filter, a
        // rename or a join.
        ("SELECT k, sum(v) FROM a GROUP BY k", vec![GROUPED]),
        (
            "SELECT x, y, count(*) FROM (SELECT v AS y, k AS x FROM a WHERE w > 3) GROUP BY x, y",
            vec![GROUPED],
        ),
        ("SELECT b.k, sum(a.v) FROM a JOIN b ON a.k = b.k GROUP BY b.k", vec![GROUPED]),
        ("SELECT DISTINCT k FROM a", vec![GROUPED]),
        ("SELECT k, sum(v) FROM a GROUP BY k ORDER BY k", vec![GROUPED]),
        ("SELECT k, v, count(*) FROM a GROUP BY ROLLUP(k, v)", vec![ANYWHERE]),
        ("SELECT k, count(*) FROM a GROUP BY GROUPING SETS ((k), ())", vec![ANYWHERE]),
        ("SELECT b.k, count(*) FROM a JOIN b ON a.k = b.k GROUP BY CUBE(b.k)", vec![GROUPED]),
        ("SELECT v, sum(k) FROM a GROUP BY v", vec![ANYWHERE]),
        ("SELECT k, sum(w) FROM pair GROUP BY k", vec![ANYWHERE]),
        ("SELECT k + 1, sum(w) FROM a GROUP BY k + 1", vec![ANYWHERE]),
        ("SELECT sum(v) FROM a", vec![ANYWHERE]),
        ("SELECT k FROM a WHERE v = 3", vec![ANYWHERE]),
        ("SELECT row_number() OVER (PARTITION BY k ORDER BY v) FROM a", vec![GROUPED]),
        ("SELECT row_number() OVER (ORDER BY v) FROM a", vec![ANYWHERE]),
        // The output of a grouped stage can be aggregated by other keys.
        (
            "SELECT n, count(*) FROM (SELECT k, count(*) AS n FROM a GROUP BY k) GROUP BY n",
            vec![GROUPED],
        ),
        (
            "SELECT k, count(*) FROM (SELECT k, v FROM a UNION ALL SELECT k, v FROM b) GROUP BY k",
            vec![ANYWHERE; 2],
        ),
        // A NULL in one bucket affects all rows.
        ("SELECT v FROM a WHERE k NOT IN (SELECT k FROM b)", vec![ANYWHERE; 2]),
    ] {
        let plan = stages(&session, sql, 3).await;
        assert_eq!(tables(&plan), expected, "{sql}\n{}", plan.tree(3).text());
        plan.check().unwrap();
        for fragment in plan.fragments().into_iter().filter(|fragment| fragment.buckets.is_some()) {
            assert_eq!((fragment.tasks(3), fragment.tasks(100)), (3, 4));
        }
    }
    // A single node also reads one bucket after the other.
    for sql in [
        "SELECT a.v FROM a JOIN b ON a.k = b.k",
        "SELECT k, sum(v) FROM a GROUP BY k",
        "SELECT v FROM a WHERE EXISTS (SELECT 1 FROM b WHERE a.k = b.k AND a.v = b.v)",
    ] {
        let plan = stages(&session, sql, 1).await;
        assert_eq!(tables(&plan), [GROUPED], "{sql}\n{}", plan.tree(1).text());
    }
}

/// Rows of other stages arrive once, not once per group.
#[tokio::test]
async fn f9_what_reads_others_is_done_together() {
    let folder = TempDir::new().unwrap();
    let session = session(&folder).await;
    let sql = "SELECT a.k, count(*) FROM a JOIN plain ON a.v = plain.v GROUP BY a.k";
    let (state, plan) = session.sql(sql).await.unwrap().into_parts();
    let plan = plan_stages(&state, &plan, &StageOptions::with_nodes(3)).await.unwrap();
    let mut all = tables(&plan);
    all.sort_by_key(|(handle, _)| *handle == Handle::Source);
    assert_eq!(all, [(Handle::Buckets, false), ANYWHERE], "{}", plan.tree(3).text());
    assert!(
        plan.tree(3).text().contains("[BUCKETS, 3 tasks, 4 buckets]"),
        "{}",
        plan.tree(3).text()
    );
}

#[tokio::test]
async fn buckets_are_told() {
    let folder = TempDir::new().unwrap();
    let session = session(&folder).await;
    let plan = stages(&session, "SELECT k, sum(v) FROM a GROUP BY k", 2).await;
    let text = plan.tree(2).text();
    assert!(text.contains("Stage 1 [BUCKETS, 2 tasks, 4 groups]"), "{text}");
    assert!(text.contains("buckets (4 by k) of DataSourceExec"), "{text}");
}

/// Opened sources by bucket and table, and whether each is closed.
type Opened = Arc<Mutex<BTreeMap<(usize, usize), Arc<AtomicBool>>>>;

/// Tables whose buckets have `splits` splits of one byte.
#[derive(Default)]
struct MockBuckets {
    splits: usize,
    opened: Opened,
}

impl BucketSplits for MockBuckets {
    fn open(
        &mut self,
        bucket: usize,
        table: usize,
    ) -> gatework_runtime::Result<Box<dyn SplitSource>> {
        let splits = MockSplits::new(vec![1; self.splits]);
        let twice = self.opened.lock().insert((bucket, table), splits.closed.clone());
        assert!(twice.is_none(), "bucket {bucket} of table {table} is opened twice");
        Ok(Box::new(splits))
    }
}

struct Table {
    scheduler: FixedSourceScheduler,
    stage: StageExecution,
    factory: Arc<MockFactory>,
    events: Arc<TaskEvents>,
    opened: Opened,
}

impl Table {
    /// Two tables of `buckets` buckets with `splits` splits each.
    fn new(splits: usize, buckets: usize, nodes: usize, groups: Option<usize>) -> Self {
        let source = MockBuckets { splits, ..MockBuckets::default() };
        let opened = source.opened.clone();
        let (factory, events) =
            (MockFactory::new(LIMITS.max_pending_splits_per_task), Arc::<TaskEvents>::default());
        let plan = chain(nodes);
        let fragment = plan.fragments()[2].clone();
        let manager = BufferManager::new(&fragment.output);
        let mut stage = StageExecution::new(fragment, factory.clone(), events.clone());
        stage.set_buffers(manager.buffers()).unwrap();
        let scheduler =
            FixedSourceScheduler::new(Box::new(source), LIMITS, (2, buckets), nodes, groups);
        Self { scheduler, stage, factory, events, opened }
    }

    fn schedule(&mut self) -> Scheduled {
        let mut loads = vec![Default::default(); self.factory.tasks().len().max(1)];
        for task in self.factory.tasks() {
            loads[task.node()] = task.load();
        }
        self.scheduler.schedule(&mut self.stage, &loads).unwrap()
    }

    fn task(&self, node: usize) -> Arc<MockTask> {
        self.factory.tasks().into_iter().find(|task| task.node() == node).unwrap()
    }

    fn all_closed(&self) -> bool {
        self.opened.lock().values().all(|closed| closed.load(Ordering::Relaxed))
    }
}

/// All tasks exist before any split; each bucket is on its node; the first table is assigned before
/// the second.
#[test]
fn k2_buckets_are_on_their_nodes() {
    let mut table = Table::new(1, 3, 2, None);
    let first = table.schedule();
    assert_eq!(first.new.len(), 2);
    assert!(first.finished);
    // J-7: the stage's inputs know all their readers, however long splits are assigned.
    assert_eq!(table.stage.state(), StageState::SchedulingSplits);
    // Node 0 has buckets 0 and 2, node 1 has bucket 1.
    assert_eq!(
        table.task(0).log(),
        [
            "1 splits of 0",
            "1 splits of 0",
            "no more splits of 0",
            "1 splits of 1",
            "1 splits of 1",
            "no more splits of 1"
        ]
    );
    assert_eq!(
        table.task(1).log(),
        ["1 splits of 0", "no more splits of 0", "1 splits of 1", "no more splits of 1"]
    );
    assert_eq!(
        table.opened.lock().keys().copied().collect::<Vec<_>>(),
        [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    );
    assert!(table.all_closed());
}

/// A node with a full queue waits, and does not block the others.
#[test]
fn k2_nodes_do_not_wait_for_each_other() {
    let mut table = Table::new(3, 4, 2, None);
    // At most four splits on a node, and beyond them two in its queue, which is full.
    let scheduled = table.schedule();
    let (_, gates) = scheduled.blocked.unwrap();
    assert_eq!((gates.len(), table.task(0).load().queued, table.task(1).load().queued), (2, 4, 4));
    assert!(gates.iter().all(|gate| !gate.is_ready()));
    table.task(1).read_splits(4);
    assert!(gates.iter().any(|gate| gate.is_ready()));
    // Node 1 has eight splits left, and node 0 is blocked.
    while !table.schedule().finished && table.task(1).load().queued > 0 {
        table.task(1).read_splits(4);
    }
    assert!(table.task(1).log().contains(&"no more splits of 1".to_owned()));
    assert!(!table.task(0).log().contains(&"no more splits of 0".to_owned()));
    while !table.schedule().finished {
        table.task(0).read_splits(4);
    }
    assert!(table.all_closed());
}

/// One group per node at a time; the next starts when it has ended, not when its splits are
/// assigned.
#[test]
fn k4_m5_groups_follow_each_other() {
    let mut table = Table::new(1, 3, 2, Some(1));
    let scheduled = table.schedule();
    assert!(!scheduled.finished);
    let group = |number: usize| {
        let table = |table: usize| {
            [
                format!("1 splits of {table} in group {number}"),
                format!("no more splits of {table} in group {number}"),
            ]
        };
        [vec![format!("group {number}")], table(0).into(), table(1).into()].concat()
    };
    assert_eq!(table.task(0).log(), group(0));
    // Node 1 has no other bucket.
    assert_eq!(table.task(1).log(), [group(1), vec!["no more groups".into()]].concat());
    table.task(0).read_group(0);
    let waits = table.schedule();
    assert!(!waits.finished && table.task(0).log().len() == 5, "M-6: it has been read, and runs");
    let (_, gates) = waits.blocked.unwrap();
    assert!(gates.is_empty(), "only the task's end wakes the scheduler");
    assert!(table.events.take().is_none() && !table.events.gate().is_ready());
    table.task(0).end_group(0);
    assert!(table.events.gate().is_ready());
    assert!(table.schedule().finished);
    let log = [group(0), group(2), vec!["no more groups".into()]].concat();
    assert_eq!(table.task(0).log(), log);
    assert!(table.all_closed());
}

#[test]
fn k4_several_groups_at_a_time() {
    let mut table = Table::new(1, 5, 1, Some(2));
    table.schedule();
    assert_eq!(table.task(0).running_lifespans(), 2);
    table.task(0).end_group(1);
    table.schedule();
    assert_eq!(table.task(0).running_lifespans(), 2);
    for group in [0, 2] {
        table.task(0).end_group(group);
    }
    assert!(!table.schedule().finished || table.task(0).log().contains(&"no more groups".into()));
    table.task(0).end_group(3);
    assert!(table.schedule().finished);
}

/// A group that needs no more rows of its tables ends before all its splits are assigned.
#[test]
fn a_group_that_has_enough_does_not_stop_the_others() {
    let mut table = Table::new(20, 2, 1, Some(1));
    table.schedule();
    assert!(table.task(0).running_lifespans() == 1 && !table.schedule().finished);
    table.task(0).end_group(0);
    assert!(!table.schedule().finished);
    assert!(table.task(0).log().contains(&"group 1".to_owned()));
    table.task(0).end_group(1);
    assert!(table.schedule().finished && table.all_closed());
}

/// J-5, D-8: opened sources are closed once, also in the middle.
#[test]
fn d8_buckets_are_closed() {
    let mut table = Table::new(20, 2, 2, Some(1));
    table.schedule();
    assert!(!table.opened.lock().is_empty() && !table.all_closed());
    table.scheduler.close();
    assert!(table.all_closed());
    table.scheduler.close();
}
