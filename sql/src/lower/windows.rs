//! Lowering of windows: one task if their order is needed, otherwise tasks that share the window
//! partitions.

use std::sync::Arc;

use datafusion::{
    common::internal_err,
    error::Result,
    physical_expr::{PhysicalExpr, window::WindowExpr},
    physical_plan::{
        ExecutionPlan,
        sorts::sort::SortExec,
        windows::{BoundedWindowAggExec, WindowAggExec},
    },
};
use gatework_operators::{
    local_exchange::{self, Routing},
    sort::{self, SortConfig},
    window,
};
use gatework_shared_state::BufferLimit;

use super::{
    Lowering,
    pipeline_builder::{Buffer, PipelineBuilder},
    to_datafusion,
    window_functions::with_function,
};
use crate::plan::exec::{GateworkExec, as_gatework_exec};

/// Returns the expressions of a window node; `None` if `node` is not a window.
pub fn window_expressions(node: &dyn ExecutionPlan) -> Option<&[Arc<dyn WindowExpr>]> {
    match node.downcast_ref::<WindowAggExec>() {
        Some(window) => Some(window.window_expr()),
        None => Some(node.downcast_ref::<BoundedWindowAggExec>()?.window_expr()),
    }
}

impl Lowering {
    /// Lowers a window.
    pub(super) fn window(
        &mut self,
        exec: &GateworkExec,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let child = &exec.children()[0];
        let partitioned =
            if ordered || self.max_tasks == 1 { None } else { PartitionedInput::of(exec) };
        // Columns of window partitions that cannot spill would have to fit in memory for all tasks
        // at once.
        let partitioned = partitioned
            .filter(|partitioned| !partitioned.buffers_columns || !self.memory_is_limited());
        let input = match partitioned {
            Some(partitioned) => self.partitioned_input(child, &partitioned)?,
            None => {
                let input = self.child(child, true)?;
                self.exchange(input, Routing::PassThrough, 1, child, tag)?
            }
        };
        self.window_over(exec, input, tag)
    }

    /// Appends a window to `input`, with the same number of tasks.
    fn window_over(
        &mut self,
        exec: &GateworkExec,
        input: PipelineBuilder,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let Some(expressions) = window_expressions(exec.inner().as_ref()) else {
            return internal_err!("{} is not a window", exec.inner().name());
        };
        let num_tasks = input.num_tasks;
        let bind = |window| self.bindings.bind_window(window).map(with_function);
        let (sink, source) = window::new(
            expressions.iter().map(bind).collect::<Result<Vec<_>>>()?,
            exec.schema(),
            self.batch_rows,
            num_tasks,
            self.settings.exchange_buffer_bytes,
        )
        .map_err(to_datafusion)?;
        let name = format!("{} window", input.name);
        let producer = self.add_pipeline(input, Arc::new(sink), tag)?;
        // The hand-over buffer has one reader, which reads nothing else, so it cannot close a
        // cycle.
        Ok(PipelineBuilder::new(name, num_tasks, Arc::new(source), tag).depends_on(producer))
    }

    /// Lowers a sort and the windows over it. Each task has all rows of its keys, in order.
    fn partitioned_input(
        &mut self,
        plan: &Arc<dyn ExecutionPlan>,
        partitioned: &PartitionedInput,
    ) -> Result<PipelineBuilder> {
        let Some(exec) = as_gatework_exec(plan.as_ref()) else {
            return internal_err!("{} is not a sort", plan.name());
        };
        let tag = Some(self.tag(exec));
        let child = &exec.children()[0];
        let Some(sort) = exec.inner().downcast_ref::<SortExec>() else {
            let input = self.partitioned_input(child, partitioned)?;
            return self.window_over(exec, input, tag);
        };
        let input = self.sort_input(exec, tag)?;
        // Reseeded: a hash of the same keys may already have selected the rows of a node or a
        // bucket.
        let by_keys = Routing::HashReseeded(self.bindings.bind_all(&partitioned.keys)?);
        let input = self.exchange(input, by_keys, self.max_tasks, child, tag)?;
        let schema = exec.schema();
        let ordering = self.ordering(sort.expr().clone(), &schema)?;
        let config = SortConfig { ordering, fetch: None, schema, batch_rows: self.batch_rows };
        let num_tasks = input.num_tasks;
        let (sink, source) = sort::new_per_task(config, num_tasks).map_err(to_datafusion)?;
        let name = format!("{} sorted", input.name);
        let producer = self.add_pipeline(input, Arc::new(sink), tag)?;
        Ok(PipelineBuilder::new(name, num_tasks, Arc::new(source), tag).depends_on(producer))
    }

    /// Adds an exchange from `pipeline`, which lowers `node`, to `num_tasks` tasks. A pipeline of
    /// one task that needs only one is returned unchanged, and keeps its order.
    pub(super) fn exchange(
        &mut self,
        pipeline: PipelineBuilder,
        routing: Routing,
        num_tasks: usize,
        node: &Arc<dyn ExecutionPlan>,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        if pipeline.num_tasks == 1 && num_tasks == 1 {
            return Ok(pipeline);
        }
        let limit = BufferLimit::new(self.settings.exchange_buffer_bytes);
        let (mut sinks, source) =
            local_exchange::new(routing, &[pipeline.num_tasks], num_tasks, limit.clone())
                .map_err(to_datafusion)?;
        let Some(sink) = sinks.pop() else { return internal_err!("a local exchange has no sink") };
        let name = format!("{} exchanged", pipeline.name);
        let producer = self.add_pipeline(pipeline, Arc::new(sink), tag)?;
        let mut pipeline =
            PipelineBuilder::new(name, num_tasks, Arc::new(source.with_schema(node.schema())), tag);
        pipeline.buffers.push(Buffer { producer, limit });
        Ok(pipeline)
    }
}

/// The partitioning by which windows over one sort can share its rows among tasks.
struct PartitionedInput {
    /// Keys that all the windows are partitioned by.
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Whether a window keeps columns of large window partitions in memory.
    buffers_columns: bool,
}

impl PartitionedInput {
    /// Returns the partitioning of a window over a sort of all rows, possibly with other windows in
    /// between.
    fn of(window: &GateworkExec) -> Option<Self> {
        let expressions = window_expressions(window.inner().as_ref())?;
        let mut keys = expressions.first()?.partition_by().to_vec();
        let mut buffers_columns = window::buffers_columns(expressions);
        let mut below = as_gatework_exec(window.children()[0].as_ref())?;
        while let Some(expressions) = window_expressions(below.inner().as_ref()) {
            let theirs = expressions.first()?.partition_by();
            keys.retain(|key| theirs.contains(key));
            buffers_columns |= window::buffers_columns(expressions);
            below = as_gatework_exec(below.children()[0].as_ref())?;
        }
        let sort = below.inner().downcast_ref::<SortExec>()?;
        (sort.fetch().is_none() && !keys.is_empty()).then_some(Self { keys, buffers_columns })
    }
}
