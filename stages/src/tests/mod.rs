//! Tests of fragmenting. Names or comments carry the numbers of the rules in `RULES.md`.

mod buckets;
mod local;
mod mock;
mod runs;
mod scheduling;
mod simulation;
mod states;

use std::sync::Arc;

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    datasource::MemTable,
    error::Result,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, empty::EmptyExec},
    prelude::{SessionConfig, SessionContext},
};

use crate::{
    ExchangeExec, ExchangeKind, PartitioningHandle as Handle, PartitioningScheme, Scope,
    StageOptions, SubPlan, fragment_plan, plan_stages,
};

const NODES: usize = 4;

/// `large` in four partitions of 40,000 rows each, `small` of 10 rows.
fn session() -> SessionContext {
    let config = SessionConfig::new();
    let session = SessionContext::new_with_config(config);
    let fields = ["k", "v"].map(|name| Field::new(name, DataType::Int64, true));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let batch = |rows: i64| {
        let column = || Arc::new((0..rows).map(Some).collect::<Int64Array>()) as _;
        RecordBatch::try_new(schema.clone(), vec![column(), column()]).unwrap()
    };
    let parts = (0..NODES).map(|_| vec![batch(40_000)]).collect();
    let large = MemTable::try_new(schema.clone(), parts).unwrap();
    let small = MemTable::try_new(schema.clone(), vec![vec![batch(10)]]).unwrap();
    session.register_table("large", Arc::new(large)).unwrap();
    session.register_table("small", Arc::new(small)).unwrap();
    session
}

async fn stages(sql: &str) -> Result<SubPlan> {
    let (state, plan) = session().sql(sql).await?.into_parts();
    plan_stages(&state, &plan, &StageOptions::with_nodes(NODES)).await
}

/// Each stage as its partitioning, the distribution of its output, and the stages that it reads.
fn shape(plan: &SubPlan) -> Vec<String> {
    let mut all = Vec::new();
    let children: Vec<_> = plan.children.iter().map(|child| child.fragment.id).collect();
    let fragment = &plan.fragment;
    all.push(format!(
        "{}: {} to {}, reads {children:?}",
        fragment.id, fragment.partitioning, fragment.output
    ));
    all.extend(plan.children.iter().flat_map(shape));
    all
}

async fn check(sql: &str, expected: &[&str]) {
    let plan = stages(sql).await.unwrap();
    assert_eq!(shape(&plan), expected, "{sql}\n{}", plan.tree(NODES).text());
}

/// Planning leaves the session unchanged.
#[tokio::test]
async fn planning_changes_no_session() {
    let session = session();
    for _ in 0..2 {
        let query = session.sql("SELECT count(*) FROM large").await.unwrap();
        let (state, plan) = query.into_parts();
        plan_stages(&state, &plan, &StageOptions::with_nodes(NODES)).await.unwrap();
        assert!(session.state().config().options().optimizer.enable_dynamic_filter_pushdown);
    }
}

/// The value of one stage reaches others as a row.
#[tokio::test]
async fn a_scalar_subquery_is_a_join() {
    let sql = "SELECT v FROM large WHERE v = (SELECT max(v) FROM small)";
    let plan = stages(sql).await.unwrap();
    let text = plan.tree(NODES).text();
    assert!(!text.contains("scalar_subquery") && text.contains("BROADCAST"), "{text}");
}

/// A limit of a scan applies to all its splits together, not to each node.
#[tokio::test]
async fn a_limit_is_not_spread() {
    let sql = "SELECT k, count(*) FROM (SELECT k FROM small LIMIT 3) GROUP BY k";
    let (session, nodes) = (session(), StageOptions::with_nodes(NODES));
    session.sql("SET datafusion.execution.batch_size = 2").await.unwrap();
    let (state, plan) = session.sql(sql).await.unwrap().into_parts();
    let plan = plan_stages(&state, &plan, &nodes).await.unwrap();
    for fragment in plan.fragments() {
        assert!(fragment.tables.is_empty(), "{}", plan.tree(NODES).text());
    }
}

/// Partitions of the same keys that DataFusion reads side by side.
#[tokio::test]
async fn a_union_of_aggregates_is_cut() {
    let half = "SELECT k, count(*) AS n FROM large GROUP BY k";
    let plan = stages(&format!("{half} UNION ALL {half}")).await.unwrap();
    assert!(plan.fragments().len() > 2, "{}", plan.tree(NODES).text());
}

/// Rows from an exchange have lost the order that the merge above needs.
#[tokio::test]
async fn a_union_below_a_merge_is_sorted_again() {
    let sql = "SELECT small.v, u.v AS w FROM small JOIN
        (SELECT * FROM large UNION ALL SELECT * FROM large) u ON small.k = u.k ORDER BY w";
    let plan = stages(sql).await.unwrap();
    let text = plan.tree(NODES).text();
    let merged = plan.fragments().into_iter().find(|part| part.output.ordering.is_some()).unwrap();
    let ordering = merged.output.ordering.clone().unwrap();
    let properties = merged.root.equivalence_properties();
    assert!(properties.ordering_satisfy(ordering).unwrap(), "{text}");
    assert!(!text.contains("DynamicFilter"), "{text}");
}

/// F-2: the root is 0; the others are numbered before their children, from left to right. F-3: a
/// gather makes its reader a single task, a repartition distributes it by the keys.
#[tokio::test]
async fn f2_f3_an_aggregate_is_done_twice() {
    let sql = "SELECT k, sum(v) AS s FROM large GROUP BY k";
    let expected = [
        "0: SINGLE to SINGLE, reads [1]",
        "1: HASH to SINGLE, reads [2]",
        "2: SOURCE to HASH of k@0, reads []",
    ];
    check(sql, &expected).await;
}

/// F-3: the stage that receives the broadcast keeps the splits of its probe side.
#[tokio::test]
async fn f3_a_small_side_is_sent_to_all() {
    let sql = "SELECT large.v, small.v AS w FROM large JOIN small ON large.k = small.k";
    let expected = [
        "0: SINGLE to SINGLE, reads [1]",
        "1: SOURCE to SINGLE, reads [2]",
        "2: SINGLE to BROADCAST, reads []",
    ];
    check(sql, &expected).await;
}

/// A build row without a match on one node may have one on another.
#[tokio::test]
async fn left_rows_are_not_judged_by_each_node_for_itself() {
    for kind in ["LEFT", "FULL"] {
        let sql = format!("SELECT * FROM small {kind} JOIN large ON large.k = small.k");
        let plan = stages(&sql).await.unwrap();
        let all = shape(&plan);
        assert!(!all.iter().any(|stage| stage.contains("BROADCAST")), "{sql}: {all:#?}");
    }
}

#[tokio::test]
async fn sorted_apart_and_merged() {
    let sql = "SELECT v FROM large ORDER BY v LIMIT 5";
    let expected = [
        "0: SINGLE to SINGLE, reads [1]",
        "1: SOURCE to SINGLE, merged by v@0 ASC NULLS LAST, reads []",
    ];
    check(sql, &expected).await;
}

/// F-1: each source of an exchange becomes a fragment, and one remote source names them all in
/// their order.
#[tokio::test]
async fn f1_a_union_is_one_exchange_of_several_stages() {
    let sql = "SELECT v FROM large UNION ALL SELECT k FROM small UNION ALL SELECT k FROM large";
    let plan = stages(sql).await.unwrap();
    let expected = [
        "0: SINGLE to SINGLE, reads [1, 2, 3]",
        "1: SOURCE to SINGLE, reads []",
        "2: SINGLE to SINGLE, reads []",
        "3: SOURCE to SINGLE, reads []",
    ];
    assert_eq!(shape(&plan), expected, "{}", plan.tree(NODES).text());
    assert_eq!(plan.tree(NODES).text().matches("RemoteSourceExec: fragments [1, 2, 3]").count(), 1);
}

#[tokio::test]
async fn on_one_node_there_is_one_stage() {
    let sql = "SELECT k, count(*) AS n FROM large JOIN small USING (k) GROUP BY k ORDER BY n";
    let (state, plan) = session().sql(sql).await.unwrap().into_parts();
    let plan = plan_stages(&state, &plan, &StageOptions::with_nodes(1)).await.unwrap();
    assert_eq!(shape(&plan), ["0: SINGLE to SINGLE, reads []"], "{}", plan.tree(1).text());
}

fn source() -> Arc<dyn ExecutionPlan> {
    let fields = vec![Field::new("k", DataType::Int64, true)];
    Arc::new(EmptyExec::new(Arc::new(Schema::new(fields))))
}

fn exchange(scope: Scope, from: Vec<Arc<dyn ExecutionPlan>>) -> Arc<dyn ExecutionPlan> {
    let scheme = PartitioningScheme::single();
    Arc::new(ExchangeExec::try_new(scope, ExchangeKind::Gather, scheme, from).unwrap())
}

/// F-1: a local exchange stays in its fragment.
#[test]
fn f1_a_local_exchange_is_not_cut() {
    let local = exchange(Scope::Local, vec![exchange(Scope::Remote, vec![source()]), source()]);
    let plan = fragment_plan(&local, 100).unwrap();
    assert_eq!(shape(&plan).len(), 2);
    assert!(plan.fragment.root.downcast_ref::<ExchangeExec>().is_some());
}

/// F-8: too many stages are refused, with advice.
#[test]
fn f8_so_many_stages_and_no_more() {
    let chain = (0..9).fold(source(), |plan, _| exchange(Scope::Remote, vec![plan]));
    assert_eq!(shape(&fragment_plan(&chain, 10).unwrap()).len(), 10);
    let error = fragment_plan(&chain, 9).unwrap_err().to_string();
    assert!(error.contains("10 stages, of at most 9"), "{error}");
}

/// F-8: a fragment that reads anything but its children is detected.
#[test]
fn f8_children_that_nobody_reads_are_seen() {
    let two = exchange(Scope::Remote, vec![source(), source()]);
    let mut plan = fragment_plan(&two, 100).unwrap();
    assert!(plan.check().is_ok());
    let child = plan.children.remove(1);
    assert!(plan.check().is_err());
    plan.children.extend([child.clone(), child]);
    assert!(plan.check().is_err());
}

/// F-7: a fragment outputs the columns that its readers were planned for.
#[test]
fn f7_sources_of_other_types_are_refused() {
    let other = Schema::new(vec![Field::new("k", DataType::Utf8, true)]);
    let other: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::new(other)));
    let scheme = PartitioningScheme::single();
    let both = vec![source(), other];
    assert!(ExchangeExec::try_new(Scope::Remote, ExchangeKind::Gather, scheme, both).is_err());
}

/// F-5: one fragment cannot read by keys and by splits at once.
#[tokio::test]
async fn f5_shares_that_do_not_go_together_are_refused() {
    use datafusion::physical_plan::union::UnionExec;
    let keys =
        |handle| PartitioningScheme { handle, partitions: 4, ..PartitioningScheme::single() };
    let by = |handle| -> Arc<dyn ExecutionPlan> {
        let kind = ExchangeKind::Repartition;
        let sources = vec![source()];
        Arc::new(ExchangeExec::try_new(Scope::Remote, kind, keys(handle), sources).unwrap())
    };
    let both = UnionExec::try_new(vec![by(Handle::FixedHash), by(Handle::FixedArbitrary)]).unwrap();
    let root = exchange(Scope::Remote, vec![both]);
    let error = fragment_plan(&root, 100).unwrap_err().to_string();
    assert!(error.contains("reads rows distributed by HASH and by ARBITRARY"), "{error}");
}
