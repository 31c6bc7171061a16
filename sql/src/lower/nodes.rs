//! Nodes that stream, sort, limit and unite.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::internal_err,
    datasource::source::DataSourceExec,
    error::Result,
    physical_expr::{LexOrdering, PhysicalExpr},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        aggregates::AggregateExec,
        empty::EmptyExec,
        filter::FilterExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
        limit::{GlobalLimitExec, LocalLimitExec},
        placeholder_row::PlaceholderRowExec,
        projection::ProjectionExec,
        scalar_subquery::ScalarSubqueryExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
        union::{InterleaveExec, UnionExec},
    },
};
use gatework_operators::{
    filter::Filter,
    limit::Limit,
    narrow_decimals,
    projection::Projection,
    sort::{self, SortConfig},
};

use super::{Lowering, cover::is_folded, failed, flow::Flow, windows::window_expressions};
use crate::{
    shell::Shell,
    source::SourceExec,
    splits::SplitTableExec,
    write::{FileWriter, WriteExec},
};

/// Whether `node` gives only the first rows of its order, whoever reads them.
pub(super) fn takes_the_first(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.fetch().is_some() && node.output_ordering().is_some()
}

impl Lowering {
    /// The flow of a covered node.
    pub(super) fn shell(&mut self, shell: &Shell, ordered: bool) -> Result<Flow> {
        let node = shell.original().as_ref();
        let tag = Some(self.tag(shell));
        if is_folded(node) {
            return self.folded(shell, ordered, tag);
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            return self.filter(shell, filter, ordered, tag);
        }
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            let input = projection.input().schema();
            let narrow = |expr: &Arc<dyn PhysicalExpr>| narrow_decimals(expr.clone(), &input);
            let expressions = projection.expr().iter().map(|column| narrow(&column.expr));
            let expressions = expressions.collect::<Result<_>>()?;
            let ordered = ordered || takes_the_first(shell.original());
            let flow = self.child(&shell.children()[0], ordered)?;
            return Ok(flow.then(Projection::new(expressions, shell.schema()), tag));
        }
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            return self.aggregate(shell, aggregate, ordered, tag);
        }
        if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            return self.hash_join(shell, join, ordered, tag);
        }
        if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
            return self.nested_loop_join(shell, join, tag);
        }
        if node.is::<CrossJoinExec>() {
            return self.cross_join(shell, tag);
        }
        if let Some(sort) = node.downcast_ref::<SortExec>() {
            let flow = self.child(&shell.children()[0], false)?;
            return self.sort(flow, sort.expr().clone(), sort.fetch(), shell.schema(), tag);
        }
        if let Some(merge) = node.downcast_ref::<SortPreservingMergeExec>() {
            return self.merge(shell, merge, tag);
        }
        if let Some(limit) = node.downcast_ref::<GlobalLimitExec>() {
            return self.limit(shell, limit.skip(), limit.fetch(), tag);
        }
        if let Some(limit) = node.downcast_ref::<LocalLimitExec>() {
            let partitions = node.output_partitioning().partition_count();
            let fetch = limit.fetch().saturating_mul(partitions);
            return self.limit(shell, 0, Some(fetch), tag);
        }
        if node.is::<UnionExec>() || node.is::<InterleaveExec>() {
            let flow = self.union(shell, tag)?;
            return self.in_order_if(ordered, flow, node, tag);
        }
        if window_expressions(node).is_some() {
            return self.window(shell, ordered, tag);
        }
        if let Some(subqueries) = node.downcast_ref::<ScalarSubqueryExec>() {
            return self.scalar_subqueries(shell, subqueries, ordered);
        }
        if let Some(scan) = node.downcast_ref::<DataSourceExec>() {
            return self.scan(shell, scan, ordered, tag);
        }
        if let Some(write) = node.downcast_ref::<WriteExec>() {
            return self.write(shell, write, tag);
        }
        self.leaf_node(node, tag)
    }

    /// A leaf that is no scan of DataFusion's.
    fn leaf_node(&mut self, node: &dyn ExecutionPlan, tag: Option<usize>) -> Result<Flow> {
        if let Some(source) = node.downcast_ref::<SourceExec>() {
            return Ok(self.source(source, tag));
        }
        if let Some(table) = node.downcast_ref::<SplitTableExec>() {
            return self.split_table(table, tag);
        }
        if node.is::<EmptyExec>() || node.is::<PlaceholderRowExec>() {
            return self.constant(node, tag);
        }
        internal_err!("{} has a shell, but no lowering", node.name())
    }

    /// A file for each task.
    fn write(&mut self, shell: &Shell, write: &WriteExec, tag: Option<usize>) -> Result<Flow> {
        let flow = self.child(&shell.children()[0], false)?;
        let (target, name) = (write.target().clone(), self.context.query_id().to_string());
        let (context, io) = (self.context.outer(), self.engine.io()?);
        let writer = FileWriter::new(target, name, shell.schema(), context, io)?;
        Ok(flow.then(writer, tag))
    }

    /// A node that passes rows through; only its `fetch` counts.
    fn folded(&mut self, shell: &Shell, ordered: bool, tag: Option<usize>) -> Result<Flow> {
        let ordered = ordered || takes_the_first(shell.original());
        let flow = self.child(&shell.children()[0], ordered)?;
        Ok(match shell.original().fetch() {
            Some(fetch) => flow.then(Limit::new(0, Some(fetch)), tag),
            None => flow,
        })
    }

    fn filter(
        &mut self,
        shell: &Shell,
        filter: &FilterExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let fetch = shell.original().fetch();
        let ordered = ordered || takes_the_first(shell.original());
        let flow = self.child(&shell.children()[0], ordered)?;
        let projection = filter.projection().as_ref().map(|columns| columns.to_vec().into());
        let flow = flow.then(Filter::new(filter.predicate().clone(), projection), tag);
        Ok(match fetch {
            Some(fetch) => flow.then(Limit::new(0, Some(fetch)), tag),
            None => flow,
        })
    }

    /// Sorts what `flow` gives.
    pub(super) fn sort(
        &mut self,
        flow: Flow,
        ordering: LexOrdering,
        fetch: Option<usize>,
        schema: SchemaRef,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let config = SortConfig { ordering, fetch, schema, batch_rows: self.batch_rows };
        let (runs, merge) = sort::new(config, flow.instances).map_err(failed)?;
        let name = format!("{} sorted", flow.name);
        let producer = self.close(flow, Arc::new(runs), tag)?;
        Ok(Flow::new(name, 1, Arc::new(merge), tag).after(producer))
    }

    /// `flow`, sorted as `node` promised if that is `wanted` and does not hold by itself.
    pub(super) fn in_order_if(
        &mut self,
        wanted: bool,
        flow: Flow,
        node: &dyn ExecutionPlan,
        tag: Option<usize>,
    ) -> Result<Flow> {
        match node.output_ordering() {
            Some(ordering) if wanted => self.sort(flow, ordering.clone(), None, node.schema(), tag),
            _ => Ok(flow),
        }
    }

    fn merge(
        &mut self,
        shell: &Shell,
        merge: &SortPreservingMergeExec,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let child = &shell.children()[0];
        let serial = child.output_partitioning().partition_count() == 1;
        // A sort below gives one ordered flow already, whatever its partitions are.
        let sorted = child.is::<SortExec>();
        if serial || sorted {
            let flow = self.child(child, true)?;
            return Ok(match merge.fetch() {
                Some(fetch) => flow.then(Limit::new(0, Some(fetch)), tag),
                None => flow,
            });
        }
        let flow = self.child(child, false)?;
        self.sort(flow, merge.expr().clone(), merge.fetch(), shell.schema(), tag)
    }

    fn limit(
        &mut self,
        shell: &Shell,
        skip: usize,
        fetch: Option<usize>,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let child = &shell.children()[0];
        let flow = self.child(child, child.output_ordering().is_some())?;
        Ok(flow.then(Limit::new(skip, fetch), tag))
    }
}
