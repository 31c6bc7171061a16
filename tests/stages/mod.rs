//! The TPC-H queries as stages: every table is read once, and nothing within a stage moves rows
//! between nodes.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod buckets;
mod promises;
mod runs;
mod split_tables;

use std::sync::Arc;

use datafusion::{
    dataframe::DataFrame,
    physical_plan::{
        ExecutionPlan, coalesce_partitions::CoalescePartitionsExec, repartition::RepartitionExec,
    },
};
use gatework::stages::{
    ExchangeExec, PartitioningHandle, PlanFragment, RemoteSourceExec, StageOptions, plan_stages,
};

use crate::support::{QUERIES, Storage, Tpch, guarded, reference_session};

fn each(plan: &Arc<dyn ExecutionPlan>, visit: &mut dyn FnMut(&Arc<dyn ExecutionPlan>)) {
    visit(plan);
    plan.children().into_iter().for_each(|child| each(child, visit));
}

fn check(fragment: &PlanFragment, text: &str) {
    each(&fragment.root, &mut |node| {
        let moves = node.downcast_ref::<RepartitionExec>().is_some()
            || node.downcast_ref::<ExchangeExec>().is_some();
        assert!(!moves, "stage {}\n{text}", fragment.id);
        let gathers = node.downcast_ref::<CoalescePartitionsExec>().is_some();
        let single = fragment.partitioning == PartitioningHandle::Single;
        assert!(!gathers || single, "stage {}\n{text}", fragment.id);
        if let Some(source) = node.downcast_ref::<RemoteSourceExec>() {
            // A reader by keys has one task per hash partition.
            let by_keys = source.scheme().handle == PartitioningHandle::FixedHash;
            let agree = !by_keys || fragment.partitioning == PartitioningHandle::FixedHash;
            assert!(agree, "stage {}\n{text}", fragment.id);
        }
    });
}

/// Number of tables that the stages of a query read in splits.
async fn count_split_tables(query: DataFrame, nodes: usize) -> usize {
    let (state, plan) = query.into_parts();
    let stages = plan_stages(&state, &plan, &StageOptions::with_nodes(nodes)).await.unwrap();
    let text = stages.tree(nodes).text();
    stages.check().unwrap();
    let fragments = stages.fragments();
    assert!(nodes > 1 || fragments.len() == 1, "{text}");
    fragments.iter().for_each(|fragment| check(fragment, &text));
    // Stages are numbered in pre-order.
    assert!(fragments.iter().map(|fragment| fragment.id).eq(0..fragments.len()), "{text}");
    fragments.iter().map(|fragment| fragment.tables.len()).sum()
}

#[test]
fn tpch_queries_are_cut() {
    guarded(|case| async move {
        let data = Tpch::new(20);
        let session = reference_session();
        data.register(&session, Storage::Parquet).await;
        // The tables are small, so the minimum size for splitting them is lowered.
        let set = "SET datafusion.optimizer.repartition_file_min_size = 0";
        session.sql(set).await.unwrap();
        let mut split_scans = 0;
        for nodes in [1, 2, 4, 7] {
            for sql in QUERIES {
                case.begin(sql);
                // Comments have semicolons, too.
                let lines: Vec<_> = sql.lines().filter(|line| !line.starts_with("--")).collect();
                let text = lines.join("\n");
                for statement in text.split(';').filter(|part| !part.trim().is_empty()) {
                    let query = session.sql(statement).await.unwrap();
                    // CREATE VIEW and DROP VIEW have no result.
                    if !query.schema().fields().is_empty() {
                        split_scans += count_split_tables(query, nodes).await;
                    }
                }
            }
        }
        assert!(split_scans > 100, "{split_scans} tables are read in splits");
    });
}
