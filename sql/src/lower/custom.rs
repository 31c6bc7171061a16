//! Lowering of an application's own plan nodes ([`NativeNode`]).

use std::sync::Arc;

use datafusion::{
    common::plan_err,
    error::Result,
    physical_expr::{Distribution, LexOrdering, OrderingRequirements, PhysicalExpr},
    physical_plan::ExecutionPlan,
};
use gatework_operators::local_exchange::Routing;

use super::{
    Lowering,
    operators::{limited, total_fetch},
    order::has_ordered_fetch,
    pipeline_builder::PipelineBuilder,
};
use crate::{
    nodes::{NativeNode, NodeContext, NodeOperators, NodeOutput},
    plan::exec::GateworkExec,
};

/// How the rows of an input reach a node's tasks.
enum InputTasks {
    /// Any number of tasks, whose rows are in no order.
    Any,
    /// One task.
    One,
    /// One task, in the order that the input declares.
    InOrder,
    /// One task, in this order.
    SortedBy(LexOrdering),
    /// Rows with equal keys are in the same task.
    ByKeys(Vec<Arc<dyn PhysicalExpr>>),
}

impl Lowering {
    pub(super) fn custom(
        &mut self,
        exec: &GateworkExec,
        node: &dyn NativeNode,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let wants_order = ordered || has_ordered_fetch(exec.inner());
        let inputs = exec.children().iter().zip(input_tasks(node, wants_order));
        let inputs = inputs
            .map(|(child, tasks)| self.custom_input(child, tasks, tag))
            .collect::<Result<Vec<_>>>()?;
        let context = NodeContext {
            num_input_tasks: inputs.iter().map(|input| input.num_tasks).collect(),
            max_tasks: self.max_tasks,
            batch_rows: self.batch_rows,
            task_context: self.context.task_context(),
            bindings: &self.bindings,
        };
        let operators = node.operators(&context)?;
        let has_order = matches!(operators.output, NodeOutput::Source(..))
            || node.maintains_input_order().contains(&true);
        let pipeline = self.assemble(node.name(), inputs, operators, tag)?;
        let sorts = wants_order && !(has_order && pipeline.num_tasks == 1);
        let pipeline = self.sort_if(sorts, pipeline, exec.inner().as_ref(), tag)?;
        Ok(limited(pipeline, total_fetch(exec.inner()), tag))
    }

    fn custom_input(
        &mut self,
        child: &Arc<dyn ExecutionPlan>,
        tasks: InputTasks,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let ordered = matches!(tasks, InputTasks::InOrder);
        let input = self.child(child, ordered)?;
        match tasks {
            InputTasks::Any => Ok(input),
            // An order by constants may come from several tasks.
            InputTasks::One | InputTasks::InOrder => {
                self.exchange(input, Routing::PassThrough, 1, child, tag)
            }
            InputTasks::SortedBy(ordering) => self.sort(input, ordering, None, child.schema(), tag),
            InputTasks::ByKeys(keys) => {
                let keys = self.bindings.bind_all(&keys)?;
                self.exchange(input, Routing::HashReseeded(keys), self.max_tasks, child, tag)
            }
        }
    }

    /// Closes the inputs that have a sink, and returns the pipeline of the node's rows.
    fn assemble(
        &mut self,
        name: &str,
        inputs: Vec<PipelineBuilder>,
        operators: NodeOperators,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let NodeOperators { mut sinks, output } = operators;
        let (mut producers, mut streamed) = (Vec::new(), Vec::new());
        for (index, input) in inputs.into_iter().enumerate() {
            match sinks.iter().position(|(of, _)| *of == index) {
                Some(position) => {
                    let (_, sink) = sinks.swap_remove(position);
                    producers.push(self.add_pipeline(input, sink, tag)?);
                }
                None => streamed.push(input),
            }
        }
        if let Some((input, _)) = sinks.first() {
            return plan_err!("{name} has a second sink for input {input}, or no such input");
        }
        let pipeline = match (output, streamed.pop()) {
            (NodeOutput::Source(source, num_tasks), None) => {
                self.source(name, num_tasks.max(1), source, tag)
            }
            (NodeOutput::Operator(operator), Some(mut input)) if streamed.is_empty() => {
                input.operators.push((operator, tag));
                input
            }
            (NodeOutput::Source(..), Some(_)) => {
                return plan_err!("{name} has a source, so each input needs a sink: with_sink(…)");
            }
            (NodeOutput::Operator(_), _) => {
                return plan_err!(
                    "{name} has an operator, so all inputs but one need a sink: with_sink(…)"
                );
            }
        };
        Ok(producers.into_iter().fold(pipeline, PipelineBuilder::depends_on))
    }
}

/// Returns how `node` needs its inputs. `wants_order` says whether its output must be in order.
fn input_tasks(node: &dyn NativeNode, wants_order: bool) -> Vec<InputTasks> {
    let (orderings, maintained) = (node.required_input_ordering(), node.maintains_input_order());
    let distributions = node.input_distribution_requirements();
    let children = node.children();
    let inputs = children.iter().enumerate();
    let mut tasks: Vec<_> = inputs
        .map(|(index, child)| {
            let required = match orderings.get(index) {
                Some(Some(ordering @ OrderingRequirements::Hard(_))) => Some(ordering.first()),
                _ => None,
            };
            let partitions = child.properties().partitioning.partition_count();
            match (required, distributions.child_distribution(index)) {
                // The order holds within each partition. Only a sort by all keys merges them.
                (Some(required), _) if partitions > 1 => {
                    InputTasks::SortedBy(required.clone().into())
                }
                (Some(_), _) => InputTasks::InOrder,
                (None, _) if wants_order && maintained.get(index) == Some(&true) => {
                    InputTasks::InOrder
                }
                (None, Some(Distribution::SinglePartition)) => InputTasks::One,
                (None, Some(distribution)) => match keys_of(distribution) {
                    Some(keys) => InputTasks::ByKeys(keys.clone()),
                    None => InputTasks::Any,
                },
                (None, None) => InputTasks::Any,
            }
        })
        .collect();
    // Rows with equal keys of all inputs meet in one task.
    let is_one = |input: &InputTasks| !matches!(input, InputTasks::Any | InputTasks::ByKeys(_));
    if tasks.iter().any(is_one) {
        for input in tasks.iter_mut().filter(|input| matches!(input, InputTasks::ByKeys(_))) {
            *input = InputTasks::One;
        }
    }
    tasks
}

#[expect(deprecated, reason = "nodes may still use the former name of KeyPartitioned")]
fn keys_of(distribution: &Distribution) -> Option<&Vec<Arc<dyn PhysicalExpr>>> {
    match distribution {
        Distribution::KeyPartitioned(keys) | Distribution::HashPartitioned(keys) => Some(keys),
        _ => None,
    }
}
