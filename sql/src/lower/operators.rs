//! Lowering of nodes by their type; streaming nodes, sorts and limits.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::internal_err,
    error::Result,
    physical_expr::{
        AcrossPartitions, LexOrdering, PhysicalExpr, expressions::DynamicFilterPhysicalExpr,
    },
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        filter::FilterExec,
        projection::ProjectionExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
    },
};
use gatework_operators::{
    filter::Filter,
    limit::Limit,
    projection::Projection,
    runtime_filter::FilterTarget,
    sort::{self, SortConfig},
};

use super::{
    Lowering,
    order::{has_ordered_fetch, is_ordered},
    pipeline_builder::PipelineBuilder,
    supported::SupportedNode,
    to_datafusion,
};
use crate::{
    plan::exec::{GateworkExec, as_gatework_exec},
    write::{FileWriter, WriteExec},
};

/// The filter of one execution's scans to which a top-n publishes its thresholds.
struct ThresholdTarget {
    filter: Arc<DynamicFilterPhysicalExpr>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl FilterTarget for ThresholdTarget {
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.keys
    }

    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<()> {
        filter.map_or(Ok(()), |filter| self.filter.update(filter))
    }
}

impl Lowering {
    /// Lowers a wrapped node and its inputs.
    pub(super) fn lower_node(
        &mut self,
        exec: &GateworkExec,
        ordered: bool,
    ) -> Result<PipelineBuilder> {
        let node = exec.inner().as_ref();
        let tag = Some(self.tag(exec));
        let Some(supported) = SupportedNode::of(node, &self.engine.nodes) else {
            return internal_err!("{} is wrapped, but not supported", node.name());
        };
        match supported {
            SupportedNode::Elided => self.elided(exec, ordered, tag),
            SupportedNode::Filter(filter) => self.filter(exec, filter, ordered, tag),
            SupportedNode::Projection(projection) => {
                self.projection(exec, projection, ordered, tag)
            }
            SupportedNode::Aggregate(aggregate) => self.aggregate(exec, aggregate, ordered, tag),
            SupportedNode::HashJoin(join) => self.hash_join(exec, join, ordered, tag),
            SupportedNode::NestedLoopJoin(join) => self.nested_loop_join(exec, join, tag),
            SupportedNode::CrossJoin => self.cross_join(exec, tag),
            SupportedNode::Sort(sort) => self.sort_node(exec, sort, ordered, tag),
            SupportedNode::Merge(merge) => self.merge(exec, merge, tag),
            SupportedNode::GlobalLimit(limit) => self.limit(exec, limit.skip(), limit.fetch(), tag),
            SupportedNode::LocalLimit => self.limit(exec, 0, total_fetch(exec.inner()), tag),
            SupportedNode::Union => {
                let pipeline = self.union(exec, tag)?;
                self.sort_if(ordered, pipeline, node, tag)
            }
            SupportedNode::Window => self.window(exec, ordered, tag),
            SupportedNode::ScalarSubqueries(node) => self.scalar_subqueries(exec, node, ordered),
            SupportedNode::Write(write) => self.write(exec, write, tag),
            SupportedNode::Scan(scan) => self.scan(exec, scan, ordered, tag),
            SupportedNode::Constant => self.constant(node, tag),
            SupportedNode::Source(source) => Ok(self.source_exec(source, tag)),
            SupportedNode::SplitTable(table) => self.split_table(table, tag),
            SupportedNode::SharedRows(reader) => self.shared_rows(exec, reader, tag),
            SupportedNode::Custom(custom) => self.custom(exec, custom, ordered, tag),
        }
    }

    fn projection(
        &mut self,
        exec: &GateworkExec,
        projection: &ProjectionExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let input = projection.input().schema();
        let columns = projection.expr().iter();
        let expressions = columns.map(|column| self.expression(&column.expr, &input));
        let expressions = expressions.collect::<Result<_>>()?;
        let ordered = ordered || has_ordered_fetch(exec.inner());
        let pipeline = self.child(&exec.children()[0], ordered)?;
        Ok(pipeline.push_operator(Projection::new(expressions, exec.schema()), tag))
    }

    /// Lowers a write: each task writes one file, or one per bucket.
    fn write(
        &mut self,
        exec: &GateworkExec,
        write: &WriteExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let pipeline = self.child(&exec.children()[0], false)?;
        let (target, name) = (write.target().clone(), self.context.query_id().to_string());
        let (context, io) = (self.context.task_context(), self.engine.io()?);
        let writer = FileWriter::new(target, name, exec.schema(), context, io)?;
        Ok(pipeline.push_operator(writer, tag))
    }

    /// Lowers a node that passes rows through; only its `fetch` has an effect.
    fn elided(
        &mut self,
        exec: &GateworkExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let node = exec.inner();
        let pipeline = self.child(&exec.children()[0], ordered || has_ordered_fetch(node))?;
        Ok(limited(pipeline, total_fetch(node), tag))
    }

    fn filter(
        &mut self,
        exec: &GateworkExec,
        filter: &FilterExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let node = exec.inner();
        let pipeline = self.filter_input(exec, filter, ordered || has_ordered_fetch(node))?;
        let projection = filter.projection().as_ref().map(|columns| columns.to_vec().into());
        let predicate = self.expression(filter.predicate(), &filter.input().schema())?;
        Ok(limited(
            pipeline.push_operator(Filter::new(predicate, projection), tag),
            total_fetch(node),
            tag,
        ))
    }

    fn sort_node(
        &mut self,
        exec: &GateworkExec,
        sort: &SortExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let node = exec.inner().as_ref();
        let input = &exec.children()[0];
        let filter = self.threshold_filter(sort, input)?;
        let pipeline = self.sort_input(exec, tag)?;
        // A sort per partition may lack keys that are constant in each partition. So its first rows
        // are not the first of all rows.
        let is_partitioned = partitions(node) > 1;
        let fetch =
            sort.fetch().filter(|_| !(is_partitioned && has_partition_constants(sort.input())));
        if is_partitioned && !ordered && fetch.is_none() {
            // The merge above sorts all rows.
            return Ok(pipeline);
        }
        self.top_n(pipeline, (sort.expr().clone(), fetch), filter, exec.schema(), tag)
    }

    /// Returns the filter of a top-n over `input` to which its thresholds are published. Registers
    /// it for the scans below.
    fn threshold_filter(
        &mut self,
        sort: &SortExec,
        input: &Arc<dyn ExecutionPlan>,
    ) -> Result<Option<Arc<dyn FilterTarget>>> {
        let mut produced = sort.dynamic_expressions_produced();
        let Some(planned) = produced.pop().filter(|_| sort.fetch().is_some()) else {
            return Ok(None);
        };
        let Ok(planned) = Arc::downcast::<DynamicFilterPhysicalExpr>(planned) else {
            return Ok(None);
        };
        let filter = self.bindings.add_filter(&planned, input)?;
        if let Some(id) = filter.expression_id() {
            self.thresholds.insert(id, sort.expr().first().options);
        }
        let keys = filter.children().into_iter().cloned().collect();
        Ok(Some(Arc::new(ThresholdTarget { filter, keys })))
    }

    /// Closes `pipeline` with a sort, and returns a pipeline of the sorted rows.
    pub(super) fn sort(
        &mut self,
        pipeline: PipelineBuilder,
        ordering: LexOrdering,
        fetch: Option<usize>,
        schema: SchemaRef,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        self.top_n(pipeline, (ordering, fetch), None, schema, tag)
    }

    /// As [`Self::sort`]; publishes the thresholds of a `fetch` to `filter`.
    fn top_n(
        &mut self,
        pipeline: PipelineBuilder,
        (ordering, fetch): (LexOrdering, Option<usize>),
        filter: Option<Arc<dyn FilterTarget>>,
        schema: SchemaRef,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let ordering = self.ordering(ordering, &schema)?;
        let config = SortConfig { ordering, fetch, schema, batch_rows: self.batch_rows };
        let sinks = pipeline.num_tasks;
        let (sink, source) = sort::new_with_filter(config, sinks, filter).map_err(to_datafusion)?;
        let name = format!("{} sorted", pipeline.name);
        let producer = self.add_pipeline(pipeline, Arc::new(sink), tag)?;
        Ok(PipelineBuilder::new(name, 1, Arc::new(source), tag).depends_on(producer))
    }

    /// Sorts `pipeline` by `node`'s output ordering if `wanted` and the node has one.
    pub(super) fn sort_if(
        &mut self,
        wanted: bool,
        pipeline: PipelineBuilder,
        node: &dyn ExecutionPlan,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        match node.output_ordering() {
            Some(ordering) if wanted => {
                self.sort(pipeline, ordering.clone(), None, node.schema(), tag)
            }
            _ => Ok(pipeline),
        }
    }

    fn merge(
        &mut self,
        exec: &GateworkExec,
        merge: &SortPreservingMergeExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let child = &exec.children()[0];
        if child.output_partitioning().partition_count() == 1 {
            let pipeline = self.child(child, true)?;
            return Ok(limited(pipeline, merge.fetch(), tag));
        }
        // A sort per partition may lack keys that are constant in each partition; the merge has
        // them. So a single sort of all rows uses the keys of the merge.
        let sort = as_gatework_exec(child.as_ref()).filter(|child| child.inner().is::<SortExec>());
        let (input, tag) = match sort {
            Some(sort) => (&sort.children()[0], Some(self.tag(sort))),
            None => (child, tag),
        };
        let inner = sort.and_then(|sort| sort.inner().downcast_ref::<SortExec>());
        let filter = match inner.filter(|sort| sort.fetch() == merge.fetch()) {
            Some(sort) => self.threshold_filter(sort, input)?,
            None => None,
        };
        let pipeline = match sort {
            Some(sort) => self.sort_input(sort, tag)?,
            None => self.child(input, false)?,
        };
        let order = (merge.expr().clone(), merge.fetch());
        self.top_n(pipeline, order, filter, exec.schema(), tag)
    }

    fn limit(
        &mut self,
        exec: &GateworkExec,
        skip: usize,
        fetch: Option<usize>,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let child = &exec.children()[0];
        let pipeline = self.child(child, is_ordered(child))?;
        Ok(pipeline.push_operator(Limit::new(skip, fetch), tag))
    }
}

/// Returns whether a column of `plan` is constant in each partition but not over all of them.
fn has_partition_constants(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let constants = plan.equivalence_properties().constants();
    constants.iter().any(|constant| constant.across_partitions == AcrossPartitions::Heterogeneous)
}

/// Returns the number of output partitions of `node`.
fn partitions(node: &dyn ExecutionPlan) -> usize {
    node.output_partitioning().partition_count()
}

/// Returns the maximum number of rows of `node`, each of whose partitions has at most `fetch` rows.
/// There is no such limit if a column is constant in each partition only. An ordering by that
/// column may put the last partition's rows first, and the merge above has a limit of its own.
pub(super) fn total_fetch(node: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let (fetch, partitions) = (node.fetch()?, partitions(node.as_ref()).max(1));
    let any_rows = partitions == 1 || !has_partition_constants(node);
    any_rows.then(|| fetch.saturating_mul(partitions))
}

/// Limits `pipeline` to `fetch` rows, if there is a limit.
pub(super) fn limited(
    pipeline: PipelineBuilder,
    fetch: Option<usize>,
    tag: Option<usize>,
) -> PipelineBuilder {
    match fetch {
        Some(fetch) => pipeline.push_operator(Limit::new(0, Some(fetch)), tag),
        None => pipeline,
    }
}
