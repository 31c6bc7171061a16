//! Lowering of unions and nested loop joins: a sink and a source or operator, with no other logic.

use std::sync::Arc;

use datafusion::{
    common::{JoinType, internal_err},
    error::Result,
    physical_plan::ExecutionPlan,
};
use gatework_operators::{
    JoinFilter,
    join::nested_loop_join::NestedLoopJoin,
    local_exchange::{self, Routing},
};
use gatework_shared_state::BufferLimit;

use super::{
    Lowering,
    pipeline_builder::{Buffer, PipelineBuilder},
    to_datafusion,
};
use crate::plan::exec::GateworkExec;

impl Lowering {
    pub(super) fn union(
        &mut self,
        exec: &GateworkExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let inputs = exec
            .children()
            .iter()
            .map(|child| self.child(child, false))
            .collect::<Result<Vec<_>>>()?;
        let tasks: Vec<usize> = inputs.iter().map(|pipeline| pipeline.num_tasks).collect();
        let limit = BufferLimit::new(self.settings.exchange_buffer_bytes);
        let (sinks, source) =
            local_exchange::new(Routing::PassThrough, &tasks, self.max_tasks, limit.clone())
                .map_err(to_datafusion)?;
        // Children may differ in column names and nullability; the union's schema applies.
        let source = source.with_schema(exec.schema());
        let mut pipeline = PipelineBuilder::new("union", self.max_tasks, Arc::new(source), tag);
        for (input, sink) in inputs.into_iter().zip(sinks) {
            let producer = self.add_pipeline(input, Arc::new(sink), tag)?;
            pipeline.buffers.push(Buffer { producer, limit: limit.clone() });
        }
        Ok(pipeline)
    }

    pub(super) fn loop_join(
        &mut self,
        exec: &GateworkExec,
        join_type: JoinType,
        filter: Option<JoinFilter>,
        projection: Option<Arc<[usize]>>,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let [left, right] = exec.children() else {
            return internal_err!("a join has {} inputs, not 2", exec.children().len());
        };
        let build = self.child(left, false)?;
        let probe = self.child(right, false)?;
        let join = NestedLoopJoin {
            join_type,
            filter,
            left_columns: left.schema().fields().len(),
            right_columns: right.schema().fields().len(),
            projection,
            schema: exec.schema(),
            batch_size: self.batch_rows,
        };
        let (sink, operator) = join.operators(build.num_tasks, probe.num_tasks);
        let producer = self.add_pipeline(build, Arc::new(sink), tag)?;
        Ok(probe.push_operator(operator, tag).depends_on(producer))
    }
}
