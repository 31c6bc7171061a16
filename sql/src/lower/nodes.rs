//! Nodes that stream, sort, limit and unite.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::internal_err,
    datasource::source::DataSourceExec,
    error::Result,
    physical_expr::{AcrossPartitions, LexOrdering},
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
    projection::Projection,
    sort::{self, SortConfig},
};

use super::{
    Lowering,
    cover::is_folded,
    failed,
    flow::Flow,
    order::{has_ordered_fetch, is_ordered},
    windows::window_expressions,
};
use crate::{
    shell::{Shell, as_shell},
    source::SourceExec,
    splits::SplitTableExec,
    write::{FileWriter, WriteExec},
};

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
            let columns = projection.expr().iter();
            let expressions = columns.map(|column| self.expression(&column.expr, &input));
            let expressions = expressions.collect::<Result<_>>()?;
            let ordered = ordered || has_ordered_fetch(shell.original());
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
            return self.sort_node(shell, sort, ordered, tag);
        }
        if let Some(merge) = node.downcast_ref::<SortPreservingMergeExec>() {
            return self.merge(shell, merge, tag);
        }
        if let Some(limit) = node.downcast_ref::<GlobalLimitExec>() {
            return self.limit(shell, limit.skip(), limit.fetch(), tag);
        }
        if node.is::<LocalLimitExec>() {
            return self.limit(shell, 0, total_fetch(shell.original()), tag);
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
        let node = shell.original();
        let flow = self.child(&shell.children()[0], ordered || has_ordered_fetch(node))?;
        Ok(limited(flow, total_fetch(node), tag))
    }

    fn filter(
        &mut self,
        shell: &Shell,
        filter: &FilterExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let node = shell.original();
        let flow = self.child(&shell.children()[0], ordered || has_ordered_fetch(node))?;
        let projection = filter.projection().as_ref().map(|columns| columns.to_vec().into());
        let predicate = self.expression(filter.predicate(), &filter.input().schema())?;
        Ok(limited(flow.then(Filter::new(predicate, projection), tag), total_fetch(node), tag))
    }

    fn sort_node(
        &mut self,
        shell: &Shell,
        sort: &SortExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let node = shell.original().as_ref();
        let flow = self.child(&shell.children()[0], false)?;
        // Keys that are constant in each partition are no keys of a sort of partitions, so its first rows
        // are not the first ones of all.
        let apart = partitions(node) > 1;
        let fetch = sort.fetch().filter(|_| !(apart && has_partition_constants(sort.input())));
        if apart && !ordered && fetch.is_none() {
            // The merge of the partitions sorts all rows.
            return Ok(flow);
        }
        self.sort(flow, sort.expr().clone(), fetch, shell.schema(), tag)
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
        let ordering = self.ordering(ordering, &schema)?;
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
        if child.output_partitioning().partition_count() == 1 {
            let flow = self.child(child, true)?;
            return Ok(limited(flow, merge.fetch(), tag));
        }
        // A sort of each partition needs no keys that are constant there, the merge does. So one sort of
        // all rows has the keys of the merge.
        let sort = as_shell(child.as_ref()).filter(|child| child.original().is::<SortExec>());
        let (input, tag) = match sort {
            Some(sort) => (&sort.children()[0], Some(self.tag(sort))),
            None => (child, tag),
        };
        let flow = self.child(input, false)?;
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
        let flow = self.child(child, is_ordered(child))?;
        Ok(flow.then(Limit::new(skip, fetch), tag))
    }
}

/// Whether a column of `plan` has one value in each partition, and several in all.
fn has_partition_constants(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let constants = plan.equivalence_properties().constants();
    constants.iter().any(|constant| constant.across_partitions == AcrossPartitions::Heterogeneous)
}

/// Output partitions of `node`.
fn partitions(node: &dyn ExecutionPlan) -> usize {
    node.output_partitioning().partition_count()
}

/// Returns how many rows `node` gives at most, where each of its partitions gives at most its
/// `fetch`. There is no such limit if a column has one value in each partition: an order by that
/// column may make the last partition's rows the first ones, and the merge that puts the rows in
/// order has a limit of its own.
pub(super) fn total_fetch(node: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let (fetch, partitions) = (node.fetch()?, partitions(node.as_ref()).max(1));
    let any_rows = partitions == 1 || !has_partition_constants(node);
    any_rows.then(|| fetch.saturating_mul(partitions))
}

/// The first `fetch` rows of `flow`.
pub(super) fn limited(flow: Flow, fetch: Option<usize>, tag: Option<usize>) -> Flow {
    match fetch {
        Some(fetch) => flow.then(Limit::new(0, Some(fetch)), tag),
        None => flow,
    }
}
