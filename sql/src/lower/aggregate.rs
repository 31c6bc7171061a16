//! Lowering of aggregates. A final aggregate over a partial one becomes one aggregate.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::{
    error::Result,
    functions_aggregate::count::Count,
    physical_expr::PhysicalExpr,
    physical_plan::{
        ExecutionPlan,
        aggregates::{
            AggregateExec, AggregateInputMode, AggregateOutputMode, aggregate_expressions,
        },
        sorts::sort_preserving_merge::SortPreservingMergeExec,
    },
};
use gatework_operators::hash_aggregate::{
    self, AggregateCall, AggregateConfig, AggregateInput, AggregateResult, GroupBy,
    PartialAggregate,
};

use super::{Lowering, pipeline_builder::PipelineBuilder, supported::is_elided, to_datafusion};
use crate::plan::exec::{GateworkExec, as_gatework_exec};

impl Lowering {
    pub(super) fn aggregate(
        &mut self,
        exec: &GateworkExec,
        aggregate: &AggregateExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let schema = exec.schema();
        let node = exec.inner().as_ref();
        // Of a pair, the partial aggregate has the arguments and the final one has the output
        // schema.
        let (raw_exec, raw) = match partial_below(exec, aggregate) {
            Some((below, partial)) => (below, partial),
            None => (exec, aggregate),
        };
        let input = match raw.mode().input_mode() {
            AggregateInputMode::Raw => AggregateInput::Raw,
            AggregateInputMode::Partial => AggregateInput::Partial,
        };
        let output = match aggregate.mode().output_mode() {
            AggregateOutputMode::Final => AggregateResult::Final,
            AggregateOutputMode::Partial => AggregateResult::Partial,
        };
        let group_by = self.group_by(raw, &schema)?;
        let keys = group_by.keys.len() + usize::from(group_by.set_ids.is_some());
        let mut arguments = aggregate_expressions(raw.aggr_expr(), raw.mode(), keys)?;
        let input_schema = raw_exec.children()[0].schema();
        for argument in arguments.iter_mut().flatten() {
            *argument = self.expression(argument, &input_schema)?;
        }
        // The partial aggregate may rely on the order of its input. That order holds within its
        // groups only, not within those of other grouping sets. The final aggregate sorts what it
        // merges.
        let functions = raw.aggr_expr().iter().zip(aggregate.aggr_expr());
        let functions =
            functions.map(|(raw, last)| if raw.order_bys().is_empty() { raw } else { last });
        let aggregates = functions
            .zip(arguments)
            .zip(raw.filter_expr())
            .map(|((function, arguments), filter)| {
                let filter = filter.as_ref().filter(|_| input == AggregateInput::Raw);
                Ok(AggregateCall {
                    function: self.bindings.bind_aggregate(function)?,
                    arguments,
                    filter: filter
                        .map(|filter| self.expression(filter, &input_schema))
                        .transpose()?,
                    counts_distinct: function.is_distinct() && function.fun().inner().is::<Count>(),
                })
            })
            .collect::<Result<_>>()?;
        // A function that depends on its input order needs an input that preserves it.
        let child = &raw_exec.children()[0];
        let needs_order = raw.aggr_expr().iter().any(|call| !call.order_bys().is_empty());
        let pipeline = self.child(child, needs_order)?;
        let config = AggregateConfig {
            group_by,
            aggregates,
            input,
            output,
            input_schema,
            schema,
            batch_rows: self.batch_rows,
            memory_is_limited: self.memory_is_limited(),
        };
        if !ordered && config.can_flush_partial() {
            return Ok(
                pipeline.push_operator(PartialAggregate::new(config).map_err(to_datafusion)?, tag)
            );
        }
        let is_parallel = config.merges_in_parallel().map_err(to_datafusion)?;
        let num_source_tasks = if is_parallel { pipeline.num_tasks } else { 1 };
        let (sink, source) = hash_aggregate::new(config, pipeline.num_tasks, num_source_tasks)
            .map_err(to_datafusion)?;
        let name = format!("{} aggregated", pipeline.name);
        let producer = self.add_pipeline(pipeline, Arc::new(sink), tag)?;
        let pipeline = PipelineBuilder::new(name, num_source_tasks, Arc::new(source), tag)
            .depends_on(producer);
        self.sort_if(ordered, pipeline, node, tag)
    }

    fn group_by(&self, aggregate: &AggregateExec, schema: &SchemaRef) -> Result<GroupBy> {
        let (group, input) = (aggregate.group_expr(), aggregate.input().schema());
        let expressions = |columns: &[(Arc<dyn PhysicalExpr>, String)]| {
            let keys = columns.iter().map(|(expression, _)| self.key(expression, &input));
            keys.collect::<Result<Vec<_>>>()
        };
        let keys = expressions(group.expr())?;
        let raw = aggregate.mode().input_mode() == AggregateInputMode::Raw;
        if !group.has_grouping_set() || !raw {
            // The output of a partial aggregate has the grouping id as an ordinary key.
            let keys = if raw { keys } else { group.output_exprs() };
            return Ok(GroupBy { keys, ..GroupBy::default() });
        }
        let sets = group.groups().to_vec();
        let data_type = schema.field(keys.len()).data_type().clone();
        let set_ids = Some((data_type, set_ids(&sets)));
        Ok(GroupBy { keys, sets, set_ids })
    }
}

/// Returns whether a node only merges or repartitions rows.
fn is_repartitioning(node: &dyn ExecutionPlan) -> bool {
    is_elided(node) || node.is::<SortPreservingMergeExec>()
}

/// Returns the partial aggregate that a final one finishes, past nodes that only move its rows.
fn partial_below<'a>(
    exec: &'a GateworkExec,
    aggregate: &AggregateExec,
) -> Option<(&'a GateworkExec, &'a AggregateExec)> {
    if aggregate.mode().input_mode() != AggregateInputMode::Partial {
        return None;
    }
    let mut below = as_gatework_exec(exec.children().first()?.as_ref())?;
    while is_repartitioning(below.inner().as_ref()) && below.inner().fetch().is_none() {
        below = as_gatework_exec(below.children().first()?.as_ref())?;
    }
    let partial = below.inner().downcast_ref::<AggregateExec>()?;
    (partial.mode().input_mode() == AggregateInputMode::Raw).then_some((below, partial))
}

/// Returns the grouping id of each set: its mask, with the first key in the highest bit. The bits
/// above the mask count the equal sets before it.
fn set_ids(sets: &[Vec<bool>]) -> Vec<u64> {
    let mask = |set: &[bool]| set.iter().fold(0, |mask, out| mask << 1 | u64::from(*out));
    sets.iter()
        .enumerate()
        .map(|(index, set)| {
            let repeats = sets[..index].iter().filter(|earlier| *earlier == set).count() as u64;
            mask(set) | (repeats << set.len())
        })
        .collect()
}
