//! Runtime filter of a finished table, for the scans of the probe side.

use std::sync::Arc;

use datafusion_common::ScalarValue;
use datafusion_expr::Operator as BinaryOperator;
use datafusion_physical_expr::{
    PhysicalExpr,
    expressions::{BinaryExpr, IsNullExpr, lit},
};
use gatework_runtime::Result;

use super::{config::HashJoinPlan, lookup::HashTableLookupExpr, table::BuildSide};
use crate::{keys::KeyNulls, runtime_filter::FilterProducer};

impl HashJoinPlan {
    /// Publishes a filter of the finished table's keys. Called once, after the last build morsel.
    pub(super) fn publish(&self, build_side: &BuildSide, producer: FilterProducer) -> Result<()> {
        let filter = self.runtime_filter(build_side, producer.keys())?;
        producer.publish(filter);
        Ok(())
    }

    /// Returns a predicate that is true for every probe row that may match, or that the join must
    /// see. `None` if no row may be dropped.
    fn runtime_filter(
        &self,
        build_side: &BuildSide,
        keys: &[Arc<dyn PhysicalExpr>],
    ) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let config = &self.config;
        let nulls_match = self.null_keys == KeyNulls::Equal;
        let keeps_nulls = build_side.has_null && (nulls_match || config.null_aware);
        // A volatile key has another value in the scan than in the join.
        if keeps_nulls || self.layout.preserves_probe_rows() || self.keyed_schema.is_some() {
            return Ok(None);
        }
        if build_side.rows() == 0 && !config.null_aware {
            return Ok(Some(lit(false)));
        }
        let and = |left, right| -> Arc<dyn PhysicalExpr> {
            Arc::new(BinaryExpr::new(left, BinaryOperator::And, right))
        };
        let membership = HashTableLookupExpr::new(
            keys.to_vec(),
            self.encoder.clone(),
            &build_side.table()?,
            build_side.spilled_partitions,
            config.null_aware,
            !nulls_match,
        );
        let mut filter: Arc<dyn PhysicalExpr> = Arc::new(membership);
        for (key, (low, high)) in keys.iter().zip(build_side.bounds.iter().flatten()) {
            if low.is_null() || high.is_null() {
                continue;
            }
            let compare = |operator, bound: &ScalarValue| {
                Arc::new(BinaryExpr::new(key.clone(), operator, lit(bound.clone())))
            };
            let bounds =
                and(compare(BinaryOperator::GtEq, low), compare(BinaryOperator::LtEq, high));
            filter = and(bounds, filter);
        }
        if let (true, Some(first)) = (config.null_aware, keys.first()) {
            let null: Arc<dyn PhysicalExpr> = Arc::new(IsNullExpr::new(first.clone()));
            filter = Arc::new(BinaryExpr::new(null, BinaryOperator::Or, filter));
        }
        Ok(Some(filter))
    }
}
