//! Native operators run the queries, and all fallbacks are named.
//!
//! A physical rule before gatework's wraps every node of DataFusion's plan in a trap. gatework's
//! rule sees the node itself (`downcast_delegate`), but the trap panics when executed. Originals
//! that run despite the traps show in their metrics, which must stay empty.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::{Case, Expected, QUERIES, Storage, Tpch, executor, guarded, plan, settle};
use arrow::{array::RecordBatch, util::display::array_value_to_string};
use datafusion::{
    common::{config::ConfigOptions, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext, session_state::SessionStateBuilder},
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        ReplaceChildrenOptions, filter::FilterExec,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use gatework::{SessionStateBuilderExt, sql::as_gatework_exec};

/// Number of executions of trapped nodes.
type Executed = Arc<AtomicUsize>;

/// A node that must not be executed.
#[derive(Debug)]
struct Trapped {
    inner: Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
    executed: Executed,
}

impl Trapped {
    fn trap_all(plan: &Arc<dyn ExecutionPlan>, executed: &Executed) -> Arc<dyn ExecutionPlan> {
        let children = plan.children().into_iter();
        let children = children.map(|child| Self::trap_all(child, executed)).collect();
        Arc::new(Self { inner: plan.clone(), children, executed: executed.clone() })
    }
}

impl DisplayAs for Trapped {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_as(kind, f)
    }
}

impl ExecutionPlan for Trapped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn downcast_delegate(&self) -> Option<&dyn ExecutionPlan> {
        Some(self.inner.as_ref())
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.children.iter().collect()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        self.inner.maintains_input_order()
    }

    fn fetch(&self) -> Option<usize> {
        self.inner.fetch()
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.inner.apply_expressions(f)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (mut inner, executed) = (self.inner.clone(), self.executed.clone());
        if inner.children().is_empty() && !children.is_empty() {
            // The first reader of a shared subplan gets this as its child.
            let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            inner = inner.replace_children(children.clone(), recompute)?;
        }
        Ok(Arc::new(Self { inner, children, executed }))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.executed.fetch_add(1, Ordering::Relaxed);
        panic!("{} was executed", self.name());
    }
}

/// Sets the traps.
#[derive(Debug)]
struct TrapRule(Executed);

impl PhysicalOptimizerRule for TrapRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Trapped::trap_all(&plan, &self.0))
    }

    fn name(&self) -> &str {
        "traps"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Asserts that every node wraps a trap, and that no original has metrics. File leaves are skipped:
/// the native scan drives the file source, which counts.
fn assert_untouched(name: &str, node: &Arc<dyn ExecutionPlan>) {
    let exec = as_gatework_exec(node.as_ref());
    let Some(exec) = exec else { panic!("{name}: {} is a fallback", node.name()) };
    let trapped = (exec.inner().as_ref() as &dyn Any).downcast_ref::<Trapped>();
    let inner = &trapped.unwrap_or_else(|| panic!("{name}: {} has no trap", node.name())).inner;
    if !inner.children().is_empty() {
        let metrics = inner.metrics();
        let untouched = metrics.as_ref().is_none_or(|metrics| metrics.iter().next().is_none());
        assert!(untouched, "{name}: {} ran as DataFusion's: {metrics:?}", inner.name());
    }
    node.children().into_iter().for_each(|child| assert_untouched(name, child));
}

/// Runs the queries with traps in a session that plans for this many partitions.
fn run_trapped(storage: Storage, partitions: Option<usize>) {
    guarded(move |case| async move {
        let (data, executor) = (Tpch::new(10), executor(2));
        let executed = Executed::default();
        let config = SessionConfig::new().with_target_partitions(partitions.unwrap_or(1));
        let mut builder = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(TrapRule(executed.clone())))
            .with_gatework(&executor);
        if partitions.is_some() {
            // DataFusion's own planner plans for partitions.
            *builder.query_planner() = None;
        }
        let session = SessionContext::new_with_state(builder.build());
        let reference = crate::support::reference_session();
        data.register(&session, storage).await;
        data.register(&reference, storage).await;
        for (number, sql) in (1..).zip(QUERIES) {
            let name = format!("q{number}, {storage:?}, partitions {partitions:?}");
            case.begin(&name);
            let expected = Expected::of(&reference, sql).await.unwrap();
            let planned = plan(&case, &session, sql).await.unwrap();
            // Reads each partition by itself: a merge would be a node of the caller.
            let mut batches = Vec::new();
            for partition in 0..planned.partitions() {
                batches.extend(planned.collect_partition(partition).await.unwrap());
            }
            expected.check(&name, &batches);
            assert_untouched(&name, &planned.plan);
            assert_eq!(executed.load(Ordering::Relaxed), 0, "{name}");
            assert_eq!(gatework::fallbacks(&planned.plan), Vec::<String>::new(), "{name}");
        }
        settle(&executor);
    });
}

#[test]
fn no_original_runs_over_parquet() {
    run_trapped(Storage::Parquet, None);
}

#[test]
fn no_original_runs_over_memory() {
    run_trapped(Storage::Memory, None);
}

#[test]
fn no_original_runs_in_plans_made_for_four_partitions() {
    run_trapped(Storage::Parquet, Some(4));
}

/// Checks that a trap works: otherwise the tests above would always pass.
#[test]
fn a_trap_catches_who_executes_an_original() {
    guarded(|case| async move {
        case.begin("a session with traps and without gatework");
        let executed = Executed::default();
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(TrapRule(executed.clone())))
            .build();
        let session = SessionContext::new_with_state(state);
        let planned = plan(&case, &session, "SELECT 1 AS one").await.unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| planned.stream().is_ok()));
        assert!(caught.is_err());
        assert_eq!(executed.load(Ordering::Relaxed), 1);
    });
}

/// A node of unknown type that passes its input on.
#[derive(Debug)]
struct Unknown(Arc<dyn ExecutionPlan>);

impl DisplayAs for Unknown {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unknown")
    }
}

impl ExecutionPlan for Unknown {
    fn name(&self) -> &str {
        "Unknown"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.0]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self(children.remove(0))))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.0.execute(partition, context)
    }
}

/// Puts an unknown node over every filter.
#[derive(Debug)]
struct UnknownRule;

impl UnknownRule {
    fn over_filters(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let children = plan.children().into_iter().cloned();
        let children = children.map(Self::over_filters).collect::<Result<Vec<_>>>()?;
        let plan = match children.is_empty() {
            true => plan,
            false => {
                let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
                plan.replace_children(children, keep)?
            }
        };
        Ok(if plan.is::<FilterExec>() { Arc::new(Unknown(plan)) } else { plan })
    }
}

impl PhysicalOptimizerRule for UnknownRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Self::over_filters(plan)
    }

    fn name(&self) -> &str {
        "unknown"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The lines of the physical plan in EXPLAIN's result.
fn physical_plan(explained: &[RecordBatch]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in explained {
        for row in 0..batch.num_rows() {
            let cell = |column| array_value_to_string(batch.column(column), row).unwrap();
            if cell(0) == "physical_plan" {
                lines.extend(cell(1).lines().map(|line| line.trim().to_owned()));
            }
        }
    }
    lines
}

/// Asserts that the query returns DataFusion's rows, and that `fallback` is named wherever it must
/// be.
async fn check_fallback(case: &Case, session: &SessionContext, sql: &str, fallback: &str) {
    case.begin(sql);
    let reference = Expected::of(&crate::support::reference_session(), sql).await.unwrap();
    let planned = plan(case, session, sql).await.unwrap();
    let fallbacks = gatework::fallbacks(&planned.plan);
    assert!(fallbacks.iter().any(|name| name == fallback), "{sql}: {fallbacks:?}");

    let (mut stream, mut batches) = (planned.stream().unwrap(), Vec::new());
    while let Some(batch) = stream.next().await {
        batches.push(batch.unwrap());
    }
    reference.check(sql, &batches);
    let profile = gatework::profile(&planned.plan).unwrap();
    assert!(profile.fallbacks.iter().any(|name| name == fallback), "{sql}: {profile}");
    assert!(profile.to_string().contains(&format!("fallback: {fallback}")), "{profile}");

    let explained = session.sql(&format!("EXPLAIN {sql}")).await.unwrap().collect().await.unwrap();
    let lines = physical_plan(&explained);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        lines.iter().partition(|line| line.starts_with("[gatework"));
    assert!(!ours.is_empty(), "{sql}: {lines:#?}");
    assert!(theirs.iter().any(|line| line.starts_with(fallback)), "{sql}: {lines:#?}");
    assert_eq!(theirs.len(), fallbacks.len(), "{sql}: {lines:#?}");
}

#[test]
fn a_node_that_runs_as_another_engines_is_named() {
    guarded(|case| async move {
        let executor = executor(2);
        let session = gatework::session(&executor);
        let unnest = "SELECT unnest([1, 2, 3]) AS n ORDER BY n DESC";
        check_fallback(&case, &session, unnest, "UnnestExec").await;
        let recursive = "WITH RECURSIVE numbers(n) AS (
            SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < 5
        ) SELECT sum(n) AS total FROM numbers";
        check_fallback(&case, &session, recursive, "RecursiveQueryExec").await;

        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(UnknownRule))
            .with_gatework(&executor)
            .build();
        let session = SessionContext::new_with_state(state);
        let filtered = "SELECT n % 2 AS odd, count(*) AS many
            FROM (VALUES (1), (2), (3), (4)) AS numbers(n) WHERE n > 1 GROUP BY n % 2";
        check_fallback(&case, &session, filtered, "Unknown").await;
        settle(&executor);
    });
}
