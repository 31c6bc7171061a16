//! Plan nodes of an application's own, registered with the executor, run natively: streaming nodes
//! and breakers, with the order and the partitioning that they require.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray, Int64Array, RecordBatch},
    compute::{SortOptions, filter_record_batch},
    datatypes::{DataType, Field, Int64Type, Schema},
};
use datafusion::{
    common::{not_impl_datafusion_err, tree_node::TreeNodeRecursion},
    config::ConfigOptions,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext, session_state::SessionStateBuilder},
    physical_expr::{
        Distribution, EquivalenceProperties, LexOrdering, LexRequirement, OrderingRequirements,
        Partitioning, PhysicalExpr, PhysicalSortExpr, expressions::col,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        filter_pushdown::{FilterDescription, FilterPushdownPhase},
    },
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use futures::TryStreamExt;
use gatework::{
    Settings,
    operators::{apply_selection, harness::numbers, memory_scan::MemoryScan, sort},
    runtime::{
        Result as RuntimeResult,
        pipeline::{
            Batch, Chaos, ChaosCounts, DriverContext, LocalOperator, Operator, OperatorContext,
            OperatorResult,
        },
    },
    sql::nodes::{
        NativeNode, NodeContext, NodeOperators, NodeTable, OperatorExec, PortableNode,
        register_node, register_portable_node,
    },
    stages::{
        Nodes, StageOptions,
        cluster::{self, ClusterOptions, ClusterSession, InProcessCluster},
        execute,
    },
};
use tempfile::TempDir;

use crate::{
    against_datafusion::{Sessions, Watch, guarded},
    support::{self, Expected, plan, reference_session},
};

/// What a node does with rows of two columns, `k` and `v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Keeps the rows with an even `v`.
    Even,
    /// Replaces `v` by its difference to the row before, in the order of `v`.
    Steps,
    /// Keeps one row per `k`.
    OnePerKey,
    /// Keeps the first row of each interval of this length in its task.
    Every(usize),
    /// Sorts by `v`: a breaker.
    Sorted,
    /// A breaker whose sink was forgotten.
    WithoutSink,
}

/// The kinds that plans for workers carry.
const PORTABLE: [Kind; 4] = [Kind::Even, Kind::Steps, Kind::OnePerKey, Kind::Sorted];

/// A node of the application's own; DataFusion could not execute it.
#[derive(Debug)]
struct OwnExec {
    kind: Kind,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

fn by_v(schema: &Schema) -> LexOrdering {
    let options = SortOptions { descending: false, nulls_first: false };
    let key = PhysicalSortExpr { expr: col("v", schema).unwrap(), options };
    LexOrdering::new([key]).unwrap()
}

impl OwnExec {
    fn new(kind: Kind, input: Arc<dyn ExecutionPlan>) -> Self {
        let schema = input.schema();
        let equivalences = match kind {
            Kind::Sorted => EquivalenceProperties::new_with_orderings(
                schema.clone(),
                [by_v(&schema).iter().cloned()],
            ),
            _ => EquivalenceProperties::new(schema),
        };
        let partitioning = match kind {
            Kind::Sorted | Kind::Steps => Partitioning::UnknownPartitioning(1),
            _ => input.properties().partitioning.clone(),
        };
        let properties = PlanProperties::new(
            equivalences,
            partitioning,
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { kind, input, properties: Arc::new(properties) }
    }
}

impl NativeNode for OwnExec {
    fn operators(&self, context: &NodeContext<'_>) -> Result<NodeOperators> {
        assert_eq!(context.task_context().session_config().batch_size(), context.batch_rows());
        Ok(match self.kind {
            Kind::Even | Kind::Steps | Kind::OnePerKey | Kind::Every(_) => {
                NodeOperators::operator(OwnOperator(self.kind))
            }
            Kind::Sorted | Kind::WithoutSink => {
                let schema = self.schema();
                let config = sort::SortConfig {
                    ordering: by_v(&schema),
                    fetch: None,
                    schema,
                    batch_rows: context.batch_rows(),
                };
                let (sink, source) = sort::new(config, context.num_input_tasks(0)).unwrap();
                let node = NodeOperators::source(source, 1);
                if self.kind == Kind::WithoutSink { node } else { node.with_sink(0, sink) }
            }
        })
    }

    fn keeps_columns(&self) -> bool {
        matches!(self.kind, Kind::Even | Kind::Sorted)
    }
}

impl PortableNode for OwnExec {
    const NAME: &'static str = "OwnExec";

    fn encode(&self) -> Result<Vec<u8>> {
        let place = PORTABLE.iter().position(|kind| *kind == self.kind);
        place.map(|place| vec![place as u8]).ok_or_else(|| not_impl_datafusion_err!("no format"))
    }

    fn decode(
        bytes: &[u8],
        mut inputs: Vec<Arc<dyn ExecutionPlan>>,
        _context: &TaskContext,
    ) -> Result<Self> {
        Ok(Self::new(PORTABLE[usize::from(bytes[0])], inputs.remove(0)))
    }
}

impl DisplayAs for OwnExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnExec: {:?}", self.kind)
    }
}

impl ExecutionPlan for OwnExec {
    fn name(&self) -> &str {
        "OwnExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![match self.kind {
            Kind::OnePerKey => {
                Distribution::KeyPartitioned(vec![col("k", &self.input.schema()).unwrap()])
            }
            Kind::Steps => Distribution::SinglePartition,
            _ => Distribution::UnspecifiedDistribution,
        }]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let by_v = || LexRequirement::from(by_v(&self.input.schema()));
        vec![(self.kind == Kind::Steps).then(|| OrderingRequirements::new(by_v()))]
    }

    fn gather_filters_for_pushdown(
        &self,
        _phase: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterDescription> {
        match self.keeps_columns() {
            true => FilterDescription::from_children(filters, &self.children()),
            false => Ok(FilterDescription::all_unsupported(&filters, &self.children())),
        }
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(self.kind, children.remove(0))))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        datafusion::common::internal_err!("the node has no stream")
    }
}

#[derive(Debug)]
struct OwnOperator(Kind);

struct LocalOwnOperator {
    kind: Kind,
    seen: HashSet<i64>,
    last: i64,
    rows: usize,
}

impl Operator for OwnOperator {
    fn name(&self) -> &str {
        "own operator"
    }

    fn local(&self, _context: OperatorContext) -> RuntimeResult<Box<dyn LocalOperator>> {
        Ok(Box::new(LocalOwnOperator { kind: self.0, seen: HashSet::new(), last: 0, rows: 0 }))
    }
}

impl LocalOperator for LocalOwnOperator {
    fn execute(
        &mut self,
        input: Option<Batch>,
        _task: &DriverContext,
    ) -> RuntimeResult<OperatorResult> {
        let Some(batch) = input else { return Ok(OperatorResult::NeedInput) };
        let sequence = batch.sequence();
        let rows = apply_selection(batch)?;
        let column = |index: usize| rows.column(index).as_primitive::<Int64Type>();
        let rows = match self.kind {
            Kind::Every(count) => {
                let first = (self.rows..).take(rows.num_rows()).map(|row| Some(row % count == 0));
                let first: BooleanArray = first.collect();
                self.rows += rows.num_rows();
                filter_record_batch(&rows, &first).unwrap()
            }
            Kind::Even => {
                let even: BooleanArray = column(1).iter().map(|v| v.map(|v| v % 2 == 0)).collect();
                filter_record_batch(&rows, &even).unwrap()
            }
            Kind::OnePerKey => {
                let first = column(0).iter().map(|k| Some(self.seen.insert(k.unwrap())));
                let first: BooleanArray = first.collect();
                filter_record_batch(&rows, &first).unwrap()
            }
            _ => {
                let steps = column(1).iter().map(|v| {
                    let step = v.unwrap() - self.last;
                    self.last = v.unwrap();
                    step
                });
                let steps = Arc::new(Int64Array::from_iter_values(steps));
                RecordBatch::try_new(rows.schema(), vec![rows.column(0).clone(), steps]).unwrap()
            }
        };
        Ok(match rows.num_rows() {
            0 => OperatorResult::NeedInput,
            _ => OperatorResult::Batch(Batch::new(rows).with_sequence(sequence)),
        })
    }
}

/// Tables whose rows pass through a node: name, node, name of the input.
const TABLES: [(&str, Kind, &str); 7] = [
    ("even", Kind::Even, "t"),
    ("steps", Kind::Steps, "t"),
    ("steps_of_one_value", Kind::Steps, "one_value"),
    ("steps_of_union", Kind::Steps, "three_parts"),
    ("one_per_key", Kind::OnePerKey, "t"),
    ("sorted", Kind::Sorted, "t"),
    ("without_sink", Kind::WithoutSink, "t"),
];

/// Inputs that DataFusion takes for sorted by `v`, in every partition or part by part.
const VIEWS: [&str; 2] = [
    "CREATE VIEW one_value AS SELECT k, 5 AS v FROM t",
    "CREATE VIEW three_parts AS SELECT k, 2 AS v FROM t UNION ALL SELECT k, 1 AS v FROM t \
     UNION ALL SELECT k, 2 AS v FROM t",
];

/// What DataFusion computes in place of each node.
const REFERENCES: [(&str, &str); 6] = [
    ("even", "SELECT * FROM t WHERE v % 2 = 0"),
    ("steps", "SELECT k, v - lag(v, 1, 0) OVER (ORDER BY v) AS v FROM t"),
    ("steps_of_one_value", "SELECT k, v - lag(v, 1, 0) OVER (ORDER BY v) AS v FROM one_value"),
    ("steps_of_union", "SELECT k, v - lag(v, 1, 0) OVER (ORDER BY v) AS v FROM three_parts"),
    ("one_per_key", "SELECT k, min(v) AS v FROM t GROUP BY k"),
    ("sorted", "SELECT * FROM t"),
];

fn with_nodes(body: impl FnOnce(&Sessions) + Send + 'static) {
    with_nodes_in(|watch| Sessions::new(watch), body);
}

fn with_nodes_in(
    sessions: fn(&Watch) -> Sessions<'_>,
    body: impl FnOnce(&Sessions) + Send + 'static,
) {
    guarded(move |watch| {
        let sessions = sessions(watch);
        let rows = "SELECT value % 7 AS k, value * value % 1009 AS v FROM generate_series(1, 500)";
        sessions.table("t", rows);
        VIEWS.iter().for_each(|view| sessions.everywhere(view));
        for (name, query) in REFERENCES {
            let view = format!("CREATE VIEW {name} AS {query}");
            sessions.block_on(async { sessions.reference.sql(&view).await }).unwrap();
        }
        for tested in &sessions.tested {
            register_node::<OwnExec>(&tested.executor);
            for (name, kind, input) in TABLES {
                let table = sessions.block_on(tested.context.table_provider(input)).unwrap();
                let node = move |input| Ok(Arc::new(OwnExec::new(kind, input)) as _);
                let table = NodeTable::over(table, node);
                tested.context.register_table(name, Arc::new(table)).unwrap();
            }
        }
        body(&sessions);
        sessions.finish();
    });
}

#[test]
fn own_nodes_in_queries() {
    with_nodes(|sessions| sessions.equal(&QUERIES));
}

fn assert_disturbed(counts: &ChaosCounts) {
    assert!(counts.blocks() > 0 && counts.spurious_wakeups > 0 && counts.splits > 0, "{counts:?}");
}

#[test]
fn own_nodes_in_chaos() {
    fn in_chaos(watch: &Watch) -> Sessions<'_> {
        let chaos = Chaos::new(5).block_every(3).spurious_wakeups_every(3).select_rows();
        let settings = Settings { chaos: Some(Arc::new(chaos)), ..Settings::default() };
        Sessions::with(watch, &[(1, 7), (2, 100)], SessionConfig::new(), settings)
    }
    with_nodes_in(in_chaos, |sessions| {
        sessions.equal(&QUERIES);
        for tested in &sessions.tested {
            let settings = Settings::of(tested.context.state().config());
            assert_disturbed(&settings.chaos.as_ref().unwrap().counts());
        }
    });
}

/// Queries over the nodes.
const QUERIES: [&str; 15] = [
    "SELECT * FROM even",
    "SELECT k, count(*), sum(v) FROM even GROUP BY k",
    "SELECT v FROM even ORDER BY v DESC LIMIT 5",
    "SELECT count(*) FROM (SELECT v FROM even LIMIT 20)",
    // Only rows in the order of v give these steps.
    "SELECT sum(v), max(v), count(*) FROM steps",
    "SELECT v, count(*) FROM steps GROUP BY v",
    "SELECT v, count(*) FROM steps_of_one_value GROUP BY v",
    "SELECT v, count(*) FROM steps_of_union GROUP BY v",
    // Only if equal keys meet in one task is there one row per key.
    "SELECT k FROM one_per_key",
    "SELECT count(*) FROM one_per_key WHERE v >= 0",
    "SELECT k, v FROM sorted ORDER BY v, k",
    "SELECT v FROM sorted ORDER BY v LIMIT 10",
    "SELECT k, sum(v) FROM sorted GROUP BY k",
    // Runtime filters pass through the nodes to the scan below.
    "SELECT e.v FROM even e JOIN (SELECT v FROM t WHERE k = 3) x ON e.v = x.v",
    "SELECT s.k, s.v FROM sorted s JOIN (SELECT k FROM t WHERE v < 9) x ON s.k = x.k",
];

/// The declared order of a node makes a sort unnecessary.
#[test]
fn an_own_order_is_used() {
    with_nodes(|sessions| {
        for tested in &sessions.tested {
            let text = sessions.block_on(async {
                let frame = tested.context.sql("EXPLAIN SELECT v FROM sorted ORDER BY v").await;
                frame.unwrap().to_string().await.unwrap()
            });
            assert!(text.contains("[gatework] OwnExec: Sorted"), "{text}");
            assert!(!text.contains("SortExec"), "{text}");
        }
    });
}

/// A filter that passes through a node drops rows in the scan below it.
#[test]
fn runtime_filters_pass_through_own_nodes() {
    with_nodes(|sessions| {
        for tested in &sessions.tested {
            let sql = "EXPLAIN SELECT e.v FROM t x JOIN even e ON e.v = x.v WHERE x.k = 3";
            let text = sessions.block_on(async {
                tested.context.sql(sql).await.unwrap().to_string().await.unwrap()
            });
            let below = text.split("OwnExec").nth(1).unwrap();
            let scan = below.lines().find(|line| line.contains("DataSourceExec")).unwrap();
            assert!(scan.contains("DynamicFilter"), "{text}");
        }
    });
}

#[test]
fn a_node_without_its_sink_is_an_error() {
    with_nodes(|sessions| {
        for tested in &sessions.tested {
            let error = sessions.block_on(async {
                tested.context.sql("SELECT * FROM without_sink").await?.collect().await
            });
            let text = error.unwrap_err().to_string();
            assert!(text.contains("OwnExec has a source, so each input needs a sink"), "{text}");
        }
    });
}

/// A node made from a function: filters stay above it unless it lets them pass, its rows keep the
/// order of its input, and its sources wait for scalar subqueries.
#[test]
fn nodes_made_from_functions() {
    with_nodes(|sessions| {
        let all = "CREATE VIEW leaf AS SELECT value AS n FROM generate_series(0, 99)";
        let every = "CREATE VIEW every AS SELECT n FROM \
            (SELECT value AS n FROM generate_series(1, 1000)) WHERE n % 10 = 1";
        for view in [all, every] {
            sessions.block_on(async { sessions.reference.sql(view).await }).unwrap();
        }
        for tested in &sessions.tested {
            let tables = [
                ("leaf", NodeTable::leaf(number_schema(), leaf)),
                ("every", NodeTable::leaf(number_schema(), every_tenth)),
            ];
            for (name, table) in tables {
                tested.context.register_table(name, Arc::new(table)).unwrap();
            }
        }
        sessions.equal(&[
            "SELECT * FROM leaf WHERE n > (SELECT max(k) FROM t)",
            "SELECT count(*), sum(n) FROM leaf",
            "SELECT n FROM every",
            // Were the filter pushed below the node, it would take other rows.
            "SELECT n FROM every WHERE n > 777",
            "SELECT e.n FROM every e JOIN (SELECT v FROM t WHERE k = 2) x ON e.n = x.v",
            "SELECT n FROM every ORDER BY n LIMIT 4",
        ]);
    });
}

/// A node with the numbers of a range, read by many tasks.
fn leaf() -> Result<Arc<dyn ExecutionPlan>> {
    let operators = |context: &NodeContext<'_>| {
        let scan = MemoryScan::new(numbers(0..100, 7), None, context.batch_rows());
        Ok(NodeOperators::source(scan, context.max_tasks()))
    };
    Ok(OperatorExec::new("LeafExec", vec![], number_schema(), operators).into_plan())
}

/// A node with the first number of each ten, over one with all numbers in order.
fn every_tenth() -> Result<Arc<dyn ExecutionPlan>> {
    let operators = |context: &NodeContext<'_>| {
        let scan = MemoryScan::new(numbers(1..1001, 7), None, context.batch_rows());
        Ok(NodeOperators::source(scan, 1))
    };
    let schema = number_schema();
    let options = SortOptions { descending: false, nulls_first: false };
    let key = PhysicalSortExpr { expr: col("n", &schema)?, options };
    let all = OperatorExec::new("LeafExec", vec![], schema.clone(), operators);
    let all = all.with_output_ordering(LexOrdering::new([key]).unwrap()).into_plan();
    let operators = |_: &NodeContext<'_>| Ok(NodeOperators::operator(OwnOperator(Kind::Every(10))));
    let node = OperatorExec::new("EveryExec", vec![all], schema, operators);
    let node = node.with_input_distribution(Distribution::SinglePartition).with_same_order();
    Ok(node.into_plan())
}

fn number_schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

/// Queries over the nodes on workers and on nodes of this process, with what DataFusion computes.
const DISTRIBUTED: [&str; 6] = [
    "SELECT k, count(*) AS c, sum(v) AS s FROM even GROUP BY k ORDER BY k",
    "SELECT count(*), sum(k) FROM one_per_key",
    "SELECT count(*), sum(v), max(v) FROM steps",
    "SELECT k, v FROM sorted ORDER BY v, k LIMIT 20",
    "SELECT k, count(*), sum(v) FROM sorted GROUP BY k",
    "SELECT count(*), sum(e.v) FROM even e JOIN t ON e.v = t.v",
];

/// Registers `t`, read from Parquet files, and the tables whose rows pass through nodes.
async fn with_files(session: &SessionContext, files: &Path, own: bool) {
    let files = files.to_str().unwrap();
    session.register_parquet("t", files, ParquetReadOptions::default()).await.unwrap();
    for (name, kind) in ["even", "steps", "one_per_key", "sorted"].into_iter().zip([
        Kind::Even,
        Kind::Steps,
        Kind::OnePerKey,
        Kind::Sorted,
    ]) {
        if !own {
            let (_, query) = REFERENCES.iter().find(|(view, _)| *view == name).unwrap();
            session.sql(&format!("CREATE VIEW {name} AS {query}")).await.unwrap();
            continue;
        }
        let node = move |input| Ok(Arc::new(OwnExec::new(kind, input)) as _);
        let table = NodeTable::over(session.table_provider("t").await.unwrap(), node);
        session.register_table(name, Arc::new(table)).unwrap();
    }
}

/// Writes four Parquet files of two columns, `k` and `v`.
async fn write_files() -> TempDir {
    let folder = TempDir::new().unwrap();
    let session = reference_session();
    for file in 0..4 {
        let (first, last) = (1 + 500 * file, 500 * (file + 1));
        let copy = format!(
            "COPY (SELECT value % 7 AS k, value * value % 1009 AS v \
             FROM generate_series({first}, {last})) TO '{}/{file}.parquet'",
            folder.path().display()
        );
        session.sql(&copy).await.unwrap().collect().await.unwrap();
    }
    folder
}

/// The types are registered with the session's executor and those of the workers.
#[test]
fn own_nodes_on_workers() {
    support::guarded(|case| async move {
        let files = write_files().await;
        let workers: Vec<_> = (0..3).map(|_| support::executor(1)).collect();
        let own = support::executor(2);
        workers.iter().chain([&own]).for_each(register_portable_node::<OwnExec>);
        let cluster = InProcessCluster::start(workers, Arc::default()).unwrap();
        let options = ClusterOptions {
            bytes_per_partition: Some(1),
            connections: cluster.connections(),
            ..ClusterOptions::default()
        };
        let state = SessionStateBuilder::new()
            .with_config(SessionConfig::new().with_target_partitions(2))
            .with_default_features()
            .with_gatework_workers(&own, cluster.workers(), &options)
            .build();
        let session = SessionContext::new_with_state(state);
        let reference = reference_session();
        with_files(&session, files.path(), true).await;
        with_files(&reference, files.path(), false).await;
        for sql in DISTRIBUTED {
            case.begin(sql);
            let expected = Expected::of(&reference, sql).await.unwrap();
            let planned = plan(&case, &session, sql).await.unwrap();
            // A declared order leaves nothing to distribute.
            let stays = sql.contains("FROM sorted ORDER BY");
            assert_eq!(cluster::is_distributed(&planned.plan), !stays, "{sql}");
            assert_eq!(cluster::fallbacks(&planned.plan), Vec::<String>::new(), "{sql}");
            expected.check(sql, &planned.collect().await.unwrap());
        }
        // A view is planned on its own, before the query around it.
        let view = "CREATE VIEW sums AS SELECT k, sum(v) AS v FROM t GROUP BY k";
        for session in [&session, &reference] {
            session.sql(view).await.unwrap();
        }
        let even = "CREATE VIEW even_sums AS SELECT k, v FROM sums WHERE v % 2 = 0";
        reference.sql(even).await.unwrap();
        let node = |input| Ok(Arc::new(OwnExec::new(Kind::Even, input)) as _);
        let table = NodeTable::over(session.table_provider("sums").await.unwrap(), node);
        session.register_table("even_sums", Arc::new(table)).unwrap();
        for sql in [
            "SELECT k, v FROM even_sums",
            "SELECT k, sum(v), count(*) FROM even_sums GROUP BY k",
            "SELECT count(*), sum(e.v) FROM even_sums e JOIN t ON e.k = t.v",
        ] {
            case.begin(sql);
            let expected = Expected::of(&reference, sql).await.unwrap();
            let planned = plan(&case, &session, sql).await.unwrap();
            assert_eq!(cluster::fallbacks(&planned.plan), Vec::<String>::new(), "{sql}");
            expected.check(sql, &planned.collect().await.unwrap());
        }
        // A node without a format says so, and the query ends.
        let table = session.table_provider("t").await.unwrap();
        let node = |input| Ok(Arc::new(OwnExec::new(Kind::Every(2), input)) as _);
        session.register_table("every", Arc::new(NodeTable::over(table, node))).unwrap();
        let rows = session.sql("SELECT count(*) FROM every").await.unwrap().collect().await;
        let error = rows.unwrap_err().to_string();
        assert!(error.contains("no format"), "{error}");
    });
}

/// Each task of a stage runs the nodes on its own executor, in chaos.
#[test]
fn own_nodes_in_stages() {
    support::guarded(|case| async move {
        let files = write_files().await;
        let reference = reference_session();
        with_files(&reference, files.path(), false).await;
        let nodes = Nodes::in_process(3, 2).unwrap();
        nodes.executors().iter().for_each(register_node::<OwnExec>);
        for seed in 0..4 {
            let chaos = Chaos::new(seed).block_every(3).spurious_wakeups_every(3).select_rows();
            let chaos = Arc::new(chaos);
            let settings = Settings { chaos: Some(chaos.clone()), ..Settings::default() };
            let mut config = settings.into_config(SessionConfig::new());
            config.options_mut().optimizer.repartition_file_min_size = 0;
            let session = SessionContext::new_with_config(config);
            with_files(&session, files.path(), true).await;
            for sql in DISTRIBUTED {
                let name = format!("{sql} on nodes, seed {seed}");
                case.begin(&name);
                let expected = Expected::of(&reference, sql).await.unwrap();
                let query = session.sql(sql).await.unwrap();
                let options = StageOptions::with_nodes(nodes.count());
                let stream = execute(query, &nodes, &options).await.unwrap();
                let batches: Vec<_> = stream.try_collect().await.unwrap();
                expected.check(&name, &batches);
            }
            assert_disturbed(&chaos.counts());
        }
    });
}

/// Without registration, the node is a fallback whose stream DataFusion would run.
#[test]
fn an_unregistered_node_falls_back() {
    let executor = gatework::Executor::builder().threads(1).build().unwrap();
    let session = gatework::session(&executor);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        session.sql("CREATE TABLE t(k BIGINT, v BIGINT) AS VALUES (1, 2)").await.unwrap();
        let input = session.table("t").await.unwrap().create_physical_plan().await.unwrap();
        let own: Arc<dyn ExecutionPlan> = Arc::new(OwnExec::new(Kind::Even, input));
        let wrap = |plan: &Arc<dyn ExecutionPlan>| {
            gatework::sql::wrap_until(plan.clone(), &executor, &|_| false).unwrap()
        };
        assert_eq!(gatework::fallbacks(&wrap(&own)), ["OwnExec"]);
        register_node::<OwnExec>(&executor);
        assert_eq!(gatework::fallbacks(&wrap(&own)), Vec::<String>::new());
    });
}
