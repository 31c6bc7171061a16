//! A user's own table, in splits: on DataFusion, on one executor, on nodes.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::exec_err,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_plan::{ExecutionPlan, stream::RecordBatchStreamAdapter},
    prelude::SessionContext,
};
use gatework::{
    Executor,
    shared_state::{Dependency, DependencyKind},
    sql::splits::{Split, SplitSource, SplitTable, SplitTableExec, Splits},
    stages::{Nodes, StageOptions},
};

use super::runs::run;
use crate::support::{guarded, settle};

/// The numbers from 0 to `rows`, ten per split, squared or not.
#[derive(Debug, Clone)]
struct Numbers {
    rows: i64,
    projection: Option<Vec<usize>>,
    /// First number of a split that cannot be read.
    broken: Option<i64>,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    splits: AtomicUsize,
    opened: AtomicUsize,
    closed: AtomicUsize,
    reads: AtomicUsize,
}

struct NumberSplits {
    next: i64,
    rows: i64,
    /// Whether every second request is blocked first.
    later: bool,
    seen: Arc<Seen>,
}

impl SplitSource for NumberSplits {
    fn next(&mut self, max: usize) -> Result<Splits> {
        self.later = !self.later;
        if self.later {
            let gate = Dependency::blocked("numbers", DependencyKind::External);
            let opened = gate.clone();
            std::thread::spawn(move || opened.set_ready());
            return Ok(Splits::Blocked(gate));
        }
        let end = self.rows.min(self.next + 10 * max.min(7) as i64);
        let splits: Vec<_> =
            (self.next..end).step_by(10).map(|first| Split::new(first, 80)).collect();
        self.seen.splits.fetch_add(splits.len(), Ordering::Relaxed);
        self.next = end;
        Ok(Splits::Batch(splits, end == self.rows))
    }

    fn close(&mut self) {
        self.seen.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl SplitTable for Numbers {
    fn schema(&self) -> SchemaRef {
        let whole = TableProvider::schema(self);
        match &self.projection {
            Some(columns) => Arc::new(whole.project(columns).unwrap()),
            None => whole,
        }
    }

    fn splits(&self) -> Result<Box<dyn SplitSource>> {
        self.seen.opened.fetch_add(1, Ordering::Relaxed);
        let (rows, seen) = (self.rows, self.seen.clone());
        Ok(Box::new(NumberSplits { next: 0, rows, later: false, seen }))
    }

    fn read(
        &self,
        split: Box<dyn Any + Send>,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let first = *split.downcast::<i64>().unwrap();
        if self.broken == Some(first) {
            return exec_err!("the numbers from {first} on are lost");
        }
        self.seen.reads.fetch_add(1, Ordering::Relaxed);
        let numbers = first..self.rows.min(first + 10);
        let squares = Int64Array::from_iter_values(numbers.clone().map(|n| n * n));
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(Int64Array::from_iter_values(numbers)), Arc::new(squares)];
        let mut batch = RecordBatch::try_new(TableProvider::schema(self), columns)?;
        if let Some(columns) = &self.projection {
            batch = batch.project(columns)?;
        }
        let rows = async move {
            // A tokio runtime is available.
            tokio::time::sleep(Duration::from_micros(10)).await;
            Ok(batch)
        };
        let schema = SplitTable::schema(self);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::once(rows))))
    }
}

#[async_trait]
impl TableProvider for Numbers {
    fn schema(&self) -> SchemaRef {
        let fields = ["n", "square"].map(|name| Field::new(name, DataType::Int64, false));
        Arc::new(Schema::new(fields.to_vec()))
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = Self { projection: projection.cloned(), ..self.clone() };
        let partitions = session.config().target_partitions();
        Ok(Arc::new(SplitTableExec::new(Arc::new(table), partitions)))
    }
}

const SQL: &str = "SELECT count(*), sum(square) FROM numbers WHERE n % 3 = 0";

/// The count of the multiples of three below `rows`, and the sum of their squares.
fn expected(rows: i64) -> (i64, i64) {
    let thirds = (0..rows).filter(|n| n % 3 == 0);
    (thirds.clone().count() as i64, thirds.map(|n| n * n).sum())
}

fn answer(batches: &[RecordBatch]) -> (i64, i64) {
    let of = |column: usize| batches[0].column(column).as_primitive::<Int64Type>().value(0);
    (of(0), of(1))
}

fn numbers(rows: i64, broken: Option<i64>) -> Numbers {
    Numbers { rows, projection: None, broken, seen: Arc::default() }
}

#[test]
fn a_table_of_a_users_own_is_read_in_splits() {
    guarded(|case| async move {
        for rows in [1, 15, 1234] {
            let table = numbers(rows, None);
            let plain = SessionContext::new();
            plain.register_table("numbers", Arc::new(table.clone())).unwrap();
            case.begin(format!("{rows} rows on DataFusion"));
            let batches = plain.sql(SQL).await.unwrap().collect().await.unwrap();
            assert_eq!(answer(&batches), expected(rows));

            let table = numbers(rows, None);
            case.begin(format!("{rows} rows on one executor"));
            let executor = Executor::builder().threads(2).build().unwrap();
            let session = gatework::session(&executor);
            session.register_table("numbers", Arc::new(table.clone())).unwrap();
            let query = session.sql(SQL).await.unwrap();
            let plan = query.clone().create_physical_plan().await.unwrap();
            assert!(gatework::fallbacks(&plan).is_empty());
            let batches = query.collect().await.unwrap();
            assert_eq!(answer(&batches), expected(rows));
            settle(&executor);
            let seen = &table.seen;
            assert_eq!(seen.reads.load(Ordering::Relaxed), (rows as usize).div_ceil(10));
            assert_eq!(seen.opened.load(Ordering::Relaxed), seen.closed.load(Ordering::Relaxed));

            for count in [1, 2, 3] {
                case.begin(format!("{rows} rows on {count} nodes"));
                let table = numbers(rows, None);
                let session = SessionContext::new();
                session.register_table("numbers", Arc::new(table.clone())).unwrap();
                let nodes = Nodes::in_process(count, 1).unwrap();
                let options = StageOptions::with_nodes(count);
                let (batches, tasks) = run(&case, &session, SQL, &nodes, &options).await.unwrap();
                assert_eq!(answer(&batches), expected(rows));
                assert!(tasks.iter().all(|task| task.fallbacks.is_empty()), "{tasks:#?}");
                let of_table = tasks.iter().filter(|task| task.id.stage == 1).count();
                assert!(count == 1 || rows < 100 || of_table == count, "{tasks:#?}");
                nodes.executors().iter().for_each(settle);
                let seen = &table.seen;
                assert_eq!(seen.reads.load(Ordering::Relaxed), (rows as usize).div_ceil(10));
            }
        }
    });
}

#[test]
fn a_split_that_cannot_be_read_fails_the_query() {
    guarded(|case| async move {
        let executor = Executor::builder().threads(2).build().unwrap();
        let session = gatework::session(&executor);
        let nodes = Nodes::in_process(2, 1).unwrap();
        for (place, first) in [0, 500, 1230].into_iter().enumerate() {
            let name = format!("numbers_{place}");
            let table = numbers(1234, Some(first));
            session.register_table(&name, Arc::new(table.clone())).unwrap();
            let sql = SQL.replace("numbers", &name);
            case.begin(format!("split {first}"));
            let local = session.sql(&sql).await.unwrap().collect().await.unwrap_err();
            let on_nodes = run(&case, &session, &sql, &nodes, &StageOptions::with_nodes(2)).await;
            for error in [local, on_nodes.unwrap_err()] {
                let says = format!("the numbers from {first} on are lost");
                assert!(error.to_string().contains(&says), "{error}");
            }
            nodes.executors().iter().for_each(settle);
            settle(&executor);
            let seen = &table.seen;
            assert_eq!(seen.opened.load(Ordering::Relaxed), seen.closed.load(Ordering::Relaxed));
        }
    });
}
