//! Lowering of joins and of the runtime filters that they publish.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{JoinSide, JoinType, Result, internal_err},
    physical_expr::{
        LexOrdering, PhysicalExpr, add_offset_to_physical_sort_exprs,
        expressions::{Column, DynamicFilterPhysicalExpr, lit},
    },
    physical_expr_common::physical_expr::is_volatile,
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        joins::{
            HashJoinExec, JoinOn, NestedLoopJoinExec,
            utils::{ColumnIndex, JoinFilter as PlannedFilter, build_join_schema},
        },
        projection::ProjectionExec,
    },
};
use gatework_operators::{
    JoinFilter,
    join::hash_join::{self, HashJoinConfig},
    projection::Projection,
    runtime_filter::{FilterProducer, FilterTarget},
};

use super::{
    FilterLink, Lowering,
    operators::{limited, total_fetch},
    order::has_ordered_fetch,
    pipeline_builder::PipelineBuilder,
    supported::is_elided,
    to_datafusion,
};
use crate::{
    plan::exec::{GateworkExec, as_gatework_exec},
    run::remote_filters::RemoteTarget,
};

/// DataFusion's dynamic filter as the target of a join's runtime filter.
struct DynamicTarget {
    /// The filter of this execution, which its scans read.
    filter: Arc<DynamicFilterPhysicalExpr>,
    /// The filter of the plan, which fallback nodes read and EXPLAIN ANALYZE shows.
    planned: Arc<DynamicFilterPhysicalExpr>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl FilterTarget for DynamicTarget {
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.keys
    }

    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<()> {
        let mut updated = Ok(());
        for target in [&self.planned, &self.filter] {
            if let Some(filter) = &filter {
                updated = updated.and(target.update(filter.clone()));
            }
            target.mark_complete();
        }
        updated
    }
}

impl Lowering {
    /// Lowers the residual filter of a planned join of `inputs`.
    fn join_filter(
        &self,
        planned: Option<&PlannedFilter>,
        inputs: [&Arc<dyn ExecutionPlan>; 2],
    ) -> Result<Option<JoinFilter>> {
        let filter = |planned: &PlannedFilter| {
            let column = |column: &ColumnIndex| {
                let input = inputs[usize::from(column.side != JoinSide::Left)];
                (column.side, first_equal_column(input, column.index))
            };
            Ok(JoinFilter {
                expression: self.expression(planned.expression(), planned.schema())?,
                columns: planned.column_indices().iter().map(column).collect(),
                schema: planned.schema().clone(),
            })
        };
        planned.map(filter).transpose()
    }

    /// Binds the key pairs of a planned join.
    fn join_keys(&self, join: &HashJoinExec) -> Result<JoinOn> {
        let schemas = (join.left().schema(), join.right().schema());
        let bind = |(left, right): &(Arc<dyn PhysicalExpr>, Arc<dyn PhysicalExpr>)| {
            Ok((self.key(left, &schemas.0)?, self.key(right, &schemas.1)?))
        };
        join.on().iter().map(bind).collect()
    }

    pub(super) fn hash_join(
        &mut self,
        exec: &GateworkExec,
        join: &HashJoinExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let node = exec.inner();
        let ordered = ordered || has_ordered_fetch(node);
        // The native right join emits the unmatched rows of a batch after its pairs. And a join
        // that spills preserves no order, so with a memory limit the rows are sorted after the
        // join.
        let maintains = node.maintains_input_order().get(1) == Some(&true);
        let keeps_order =
            maintains && *join.join_type() != JoinType::Right && !self.memory_is_limited();
        // The sort keys must exist in the join's output, even those that its projection drops.
        let sorted_by = probe_ordering(join)?.filter(|_| ordered && maintains && !keeps_order);
        let projection = join.projection.as_ref().map(|columns| columns.to_vec());
        let (schema, columns) = match &sorted_by {
            Some(_) => (joined_schema(join), None),
            None => (exec.schema(), projection.as_deref()),
        };
        let in_order = ordered && keeps_order;
        let pipeline =
            self.build_and_probe(exec, join, (schema.clone(), columns), in_order, tag)?;
        let fetch = total_fetch(node);
        match sorted_by {
            Some(ordering) => {
                let pipeline = self.sort(pipeline, ordering, fetch, schema.clone(), tag)?;
                let Some(columns) = projection else { return Ok(pipeline) };
                Ok(pipeline.push_operator(selected(&columns, &schema, exec.schema()), tag))
            }
            None => self.sort_if(
                ordered && !keeps_order,
                limited(pipeline, fetch, tag),
                node.as_ref(),
                tag,
            ),
        }
    }

    /// Adds the build pipeline of a hash join, and returns the probe pipeline. The join emits
    /// `columns` of both sides, with this schema.
    fn build_and_probe(
        &mut self,
        exec: &GateworkExec,
        join: &HashJoinExec,
        (schema, columns): (SchemaRef, Option<&[usize]>),
        in_order: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let [left, right] = exec.children() else {
            return internal_err!("a join has {} inputs, not 2", exec.children().len());
        };
        let (id, producer) = self.filter_producer(join, right)?;
        let build = self.child(left, false)?;
        let probe = self.child(right, in_order)?;
        let config = HashJoinConfig {
            on: self.join_keys(join)?,
            join_type: *join.join_type(),
            filter: self.join_filter(join.filter(), [left, right])?,
            null_equality: join.null_equality(),
            null_aware: join.null_aware,
            projection: columns.map(Arc::from),
            left_schema: left.schema(),
            right_schema: right.schema(),
            schema,
            batch_rows: self.batch_rows,
            in_order,
        };
        let (sink, operator) = hash_join::new(config, build.num_tasks, probe.num_tasks, producer)
            .map_err(to_datafusion)?;
        let build_pipeline = self.add_pipeline(build, Arc::new(sink), tag)?;
        if let Some(link) = id.and_then(|id| self.filters.get_mut(&id)) {
            link.build = Some(build_pipeline);
        }
        let mut pipeline = probe.push_operator(operator, tag).depends_on(build_pipeline);
        pipeline.published_filters.extend(id);
        Ok(pipeline)
    }

    /// Returns the producer of the join's dynamic filter and the filter's id, if the join has one.
    /// Registers the filter under the id.
    fn filter_producer(
        &mut self,
        join: &HashJoinExec,
        probe: &Arc<dyn ExecutionPlan>,
    ) -> Result<(Option<u64>, Option<FilterProducer>)> {
        let mut produced = join.dynamic_expressions_produced();
        let Some(expression) = produced.pop() else { return Ok((None, None)) };
        let Ok(planned) = Arc::downcast::<DynamicFilterPhysicalExpr>(expression) else {
            return Ok((None, None));
        };
        let keys = join.on().iter().map(|(_, right)| right.clone()).collect();
        let remote = planned.expression_id().and_then(|id| self.remote_filter(id));
        let (id, target): (_, Arc<dyn FilterTarget>) = match remote {
            Some(filter) => {
                let query = self.context.query_id();
                (planned.expression_id(), Arc::new(RemoteTarget { query, filter, keys }))
            }
            None => {
                let filter = self.bindings.add_filter(&planned, probe)?;
                // A filter of an earlier execution does not hold for this one.
                let _no_error = planned.update(lit(true));
                (filter.expression_id(), Arc::new(DynamicTarget { filter, planned, keys }))
            }
        };
        let Some(id) = id else { return Ok((None, None)) };
        let (producer, gate) = FilterProducer::new("join", target);
        self.filters.insert(id, FilterLink { gate, build: None });
        Ok((Some(id), Some(producer)))
    }

    pub(super) fn nested_loop_join(
        &mut self,
        exec: &GateworkExec,
        join: &NestedLoopJoinExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let filter = self.join_filter(join.filter(), [join.left(), join.right()])?;
        let projection = join.projection().as_ref().map(|columns| columns.to_vec().into());
        self.loop_join(exec, *join.join_type(), filter, projection, tag)
    }

    pub(super) fn cross_join(
        &mut self,
        exec: &GateworkExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        self.loop_join(exec, JoinType::Inner, None, None, tag)
    }
}

/// Returns the ordering of the probe side's rows over the joined columns; `None` if it has none.
fn probe_ordering(join: &HashJoinExec) -> Result<Option<LexOrdering>> {
    let Some(ordering) = join.right().output_ordering() else { return Ok(None) };
    let left_columns = match join.join_type() {
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => 0,
        _ => join.left().schema().fields().len(),
    };
    let keys = add_offset_to_physical_sort_exprs(ordering.clone(), left_columns as isize)?;
    Ok(LexOrdering::new(keys))
}

/// Returns the first column of `input` that is equal to its column `index`. DataFusion may compute
/// an expression once for each place at which a join's filter reads it.
fn first_equal_column(input: &Arc<dyn ExecutionPlan>, index: usize) -> usize {
    let node = as_gatework_exec(input.as_ref()).map_or(input, |exec| exec.inner());
    if is_elided(node.as_ref()) {
        return node.children().first().map_or(index, |below| first_equal_column(below, index));
    }
    let Some(projection) = node.downcast_ref::<ProjectionExec>() else { return index };
    let expressions = projection.expr();
    let Some(wanted) = expressions.get(index).filter(|it| !is_volatile(&it.expr)) else {
        return index;
    };
    expressions.iter().position(|it| it.expr.as_ref() == wanted.expr.as_ref()).unwrap_or(index)
}

/// Returns the schema of a join before its projection.
fn joined_schema(join: &HashJoinExec) -> SchemaRef {
    let (left, right) = (join.left().schema(), join.right().schema());
    Arc::new(build_join_schema(&left, &right, join.join_type()).0)
}

/// Projects rows with the schema `input` to `columns`, with the schema `output`.
fn selected(columns: &[usize], input: &SchemaRef, output: SchemaRef) -> Projection {
    let column = |index: &usize| -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(input.field(*index).name(), *index))
    };
    Projection::new(columns.iter().map(column).collect(), output)
}
