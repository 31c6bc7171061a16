//! Joins, and the runtime filters they publish.

use std::sync::Arc;

use datafusion::{
    common::{JoinType, Result, internal_err},
    physical_expr::{PhysicalExpr, expressions::DynamicFilterPhysicalExpr},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        joins::{HashJoinExec, NestedLoopJoinExec, utils::JoinFilter as PlannedFilter},
    },
};
use gatework_operators::{
    JoinFilter,
    hash_join::{self, HashJoinConfig},
    limit::Limit,
    runtime_filter::{FilterProducer, FilterTarget},
};

use super::{FilterLink, Lowering, failed, flow::Flow, nodes::takes_the_first};
use crate::{remote_filters::RemoteTarget, shell::Shell};

/// DataFusion's dynamic filter as the target of a join's runtime filter.
struct DynamicTarget {
    filter: Arc<DynamicFilterPhysicalExpr>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl FilterTarget for DynamicTarget {
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.keys
    }

    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<()> {
        let updated = filter.map_or(Ok(()), |filter| self.filter.update(filter));
        self.filter.mark_complete();
        updated
    }
}

/// The residual filter of a planned join.
pub(super) fn join_filter(planned: &PlannedFilter) -> JoinFilter {
    JoinFilter {
        expression: planned.expression().clone(),
        columns: planned.column_indices().iter().map(|c| (c.side, c.index)).collect(),
        schema: planned.schema().clone(),
    }
}

impl Lowering {
    pub(super) fn hash_join(
        &mut self,
        shell: &Shell,
        join: &HashJoinExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let [left, right] = shell.children() else {
            return internal_err!("a join with {} children", shell.children().len());
        };
        let node = shell.original();
        let ordered = ordered || takes_the_first(node);
        let (id, producer) = self.filter_producer(join);
        let build = self.child(left, false)?;
        // Our right join gives the unmatched rows of a batch after its pairs. And a join that spills keeps
        // no order, so where memory has a limit, it is made afterwards.
        let maintains = node.maintains_input_order().get(1) == Some(&true);
        let keeps_order =
            maintains && *join.join_type() != JoinType::Right && !self.memory_is_limited();
        let probe = self.child(right, ordered && keeps_order)?;
        let config = HashJoinConfig {
            on: join.on().to_vec(),
            join_type: *join.join_type(),
            filter: join.filter().map(join_filter),
            null_equality: join.null_equality(),
            null_aware: join.null_aware,
            projection: join.projection.as_ref().map(|columns| columns.to_vec().into()),
            left_schema: left.schema(),
            right_schema: right.schema(),
            schema: shell.schema(),
            batch_rows: self.batch_rows,
            in_order: ordered && keeps_order,
        };
        let (sink, operator) =
            hash_join::new(config, build.instances, probe.instances, producer).map_err(failed)?;
        let collected = self.close(build, Arc::new(sink), tag)?;
        if let Some(link) = id.and_then(|id| self.filters.get_mut(&id)) {
            link.build = Some(collected);
        }
        let mut flow = probe.then(operator, tag).after(collected);
        flow.publishes.extend(id);
        if let (Some(fetch), Some(ordering), true) =
            (node.fetch(), node.output_ordering(), ordered && maintains && !keeps_order)
        {
            // The first rows are those of the order.
            return self.sort(flow, ordering.clone(), Some(fetch), node.schema(), tag);
        }
        if let Some(fetch) = node.fetch() {
            flow = flow.then(Limit::new(0, Some(fetch)), tag);
        }
        self.in_order_if(ordered && !keeps_order, flow, node.as_ref(), tag)
    }

    /// The producer of the join's dynamic filter, if it has one, registered under its id.
    fn filter_producer(&mut self, join: &HashJoinExec) -> (Option<u64>, Option<FilterProducer>) {
        let mut produced = join.dynamic_expressions_produced();
        let Some(expression) = produced.pop() else { return (None, None) };
        let Some(id) = expression.expression_id() else { return (None, None) };
        let Ok(filter) = Arc::downcast::<DynamicFilterPhysicalExpr>(expression) else {
            return (None, None);
        };
        let keys = join.on().iter().map(|(_, right)| right.clone()).collect();
        let target: Arc<dyn FilterTarget> = match self.remote_filter(id) {
            Some(filter) => Arc::new(RemoteTarget { query: self.context.query_id(), filter, keys }),
            None => Arc::new(DynamicTarget { filter, keys }),
        };
        let (producer, gate) = FilterProducer::new("join", target);
        self.filters.insert(id, FilterLink { gate, build: None });
        (Some(id), Some(producer))
    }

    pub(super) fn nested_loop_join(
        &mut self,
        shell: &Shell,
        join: &NestedLoopJoinExec,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let filter = join.filter().map(join_filter);
        let projection = join.projection().as_ref().map(|columns| columns.to_vec().into());
        self.loop_join(shell, *join.join_type(), filter, projection, tag)
    }

    pub(super) fn cross_join(&mut self, shell: &Shell, tag: Option<usize>) -> Result<Flow> {
        self.loop_join(shell, JoinType::Inner, None, None, tag)
    }
}
