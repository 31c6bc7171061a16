//! Buckets in SQL: the options `gatework.bucket_by` and `gatework.buckets` of COPY and CREATE
//! EXTERNAL TABLE.

use std::collections::HashMap;

use datafusion::{
    common::{
        plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    logical_expr::LogicalPlan,
};

use super::Bucketing;

const NAMESPACE: &str = "gatework.";
const BY: &str = "gatework.bucket_by";
const COUNT: &str = "gatework.buckets";

/// Removes the bucket options from `options` and returns them.
pub(crate) fn take_bucketing(options: &mut HashMap<String, String>) -> Result<Option<Bucketing>> {
    let (by, count) = (options.remove(BY), options.remove(COUNT));
    if let Some(unknown) = options.keys().find(|name| name.starts_with(NAMESPACE)) {
        return plan_err!("unknown option {unknown}: the bucket options are {BY} and {COUNT}");
    }
    match (by, count) {
        (None, None) => Ok(None),
        (Some(by), Some(count)) => {
            let Ok(count) = count.trim().parse() else {
                return plan_err!("{COUNT} is '{count}': give the number of buckets");
            };
            let columns = by.split(',').map(|name| name.trim().to_owned()).collect();
            Ok(Some(Bucketing::new(columns, count)?))
        }
        _ => plan_err!("buckets need both {BY}, the columns, and {COUNT}, the number"),
    }
}

/// Removes the bucket options from `plan`, and returns the plan and the bucketing if the plan
/// copies rows into buckets.
///
/// ```
/// use datafusion::prelude::SessionContext;
/// use gatework_sql::buckets::copy_into_buckets;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> datafusion::error::Result<()> {
/// let copy = "COPY (SELECT 1 AS k) TO 'folder/' STORED AS PARQUET
///             OPTIONS ('gatework.bucket_by' 'k', 'gatework.buckets' '16')";
/// let plan = SessionContext::new().state().create_logical_plan(copy).await?;
/// let (_, bucketing) = copy_into_buckets(&plan)?;
/// assert_eq!(bucketing.unwrap().count(), 16);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the bucket options contradict each other.
pub fn copy_into_buckets(plan: &LogicalPlan) -> Result<(LogicalPlan, Option<Bucketing>)> {
    let mut found = None;
    let plain = plan.clone().transform_down(|node| match node {
        LogicalPlan::Copy(mut copy) => {
            found = take_bucketing(&mut copy.options)?;
            let stop = TreeNodeRecursion::Stop;
            Ok(Transformed::new(LogicalPlan::Copy(copy), found.is_some(), stop))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok((plain.data, found))
}

/// Returns whether `plan` copies rows into buckets.
pub(crate) fn copies_into_buckets(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| match node {
        LogicalPlan::Copy(copy) => Ok(copy.options.keys().any(|name| name.starts_with(NAMESPACE))),
        _ => Ok(false),
    })
}
