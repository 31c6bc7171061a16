//! Lowering of plan nodes of one's own, whose types are registered with the executor.

use datafusion::{common::plan_err, error::Result, physical_expr::Distribution};
use gatework_operators::local_exchange::Routing;

use super::{
    Lowering,
    operators::{limited, total_fetch},
    order::has_ordered_fetch,
    pipeline_builder::PipelineBuilder,
};
use crate::{
    exec::GateworkExec,
    nodes::{NativeNode, NodeContext, NodeOperators, NodeOutput},
};

impl Lowering {
    pub(super) fn custom(
        &mut self,
        exec: &GateworkExec,
        node: &dyn NativeNode,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let inputs = (0..exec.children().len())
            .map(|index| self.custom_input(exec, node, index, ordered, tag))
            .collect::<Result<Vec<_>>>()?;
        let context = NodeContext {
            num_input_tasks: inputs.iter().map(|input| input.num_tasks).collect(),
            max_tasks: self.max_tasks,
            batch_rows: self.batch_rows,
            task_context: self.context.task_context(),
        };
        let operators = node.operators(&context)?;
        let pipeline = self.assemble(node.name(), inputs, operators, tag)?;
        let keeps_order = node.maintains_input_order().contains(&true) && pipeline.num_tasks == 1;
        let pipeline =
            self.sort_if(ordered && !keeps_order, pipeline, exec.inner().as_ref(), tag)?;
        Ok(limited(pipeline, total_fetch(exec.inner()), tag))
    }

    /// Lowers an input as the node's properties require it.
    fn custom_input(
        &mut self,
        exec: &GateworkExec,
        node: &dyn NativeNode,
        index: usize,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let child = &exec.children()[index];
        let requires_order = node.required_input_ordering().get(index).is_some_and(Option::is_some);
        let maintains_order = node.maintains_input_order().get(index) == Some(&true);
        let wants_order = ordered || has_ordered_fetch(exec.inner());
        if requires_order || wants_order && maintains_order {
            return self.child(child, true);
        }
        let input = self.child(child, false)?;
        match node.input_distribution_requirements().child_distribution(index) {
            Some(Distribution::SinglePartition) => {
                self.exchange(input, Routing::PassThrough, 1, child, tag)
            }
            Some(Distribution::KeyPartitioned(keys)) if self.max_tasks > 1 => {
                let keys = self.bindings.bind_all(keys)?;
                self.exchange(input, Routing::HashReseeded(keys), self.max_tasks, child, tag)
            }
            _ => Ok(input),
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
                PipelineBuilder::new(name, num_tasks.max(1), source, tag)
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
