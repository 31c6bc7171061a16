//! Unions and loop joins: the breakers that are only a sink, a source, and a buffer.

use std::sync::Arc;

use datafusion::{
    common::{JoinType, internal_err},
    error::Result,
    physical_plan::ExecutionPlan,
};
use gatework_operators::{
    JoinFilter,
    local_exchange::{self, Routing},
    nested_loop_join::NestedLoopJoin,
};
use gatework_shared_state::Budget;

use super::{
    Lowering, failed,
    flow::{Buffer, Flow},
};
use crate::shell::Shell;

impl Lowering {
    pub(super) fn union(&mut self, shell: &Shell, tag: Option<usize>) -> Result<Flow> {
        let inputs = shell
            .children()
            .iter()
            .map(|child| self.child(child, false))
            .collect::<Result<Vec<_>>>()?;
        let tasks: Vec<usize> = inputs.iter().map(|flow| flow.instances).collect();
        let budget = Budget::new(self.settings.exchange_bytes);
        let (sinks, source) =
            local_exchange::new(Routing::PassThrough, &tasks, self.instances, budget.clone())
                .map_err(failed)?;
        // Children may differ in names and nullability, which only the union's schema covers.
        let source = source.with_schema(shell.schema());
        let mut flow = Flow::new("union", self.instances, Arc::new(source), tag);
        for (input, sink) in inputs.into_iter().zip(sinks) {
            let producer = self.close(input, Arc::new(sink), tag)?;
            flow.buffers.push(Buffer { producer, budget: budget.clone() });
        }
        Ok(flow)
    }

    pub(super) fn loop_join(
        &mut self,
        shell: &Shell,
        join_type: JoinType,
        filter: Option<JoinFilter>,
        projection: Option<Arc<[usize]>>,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let [left, right] = shell.children() else {
            return internal_err!("a join with {} children", shell.children().len());
        };
        let build = self.child(left, false)?;
        let probe = self.child(right, false)?;
        let join = NestedLoopJoin {
            join_type,
            filter,
            left_columns: left.schema().fields().len(),
            right_columns: right.schema().fields().len(),
            projection,
            schema: shell.schema(),
            batch_size: self.batch_rows,
        };
        let (sink, operator) = join.operators(build.instances, probe.instances);
        let producer = self.close(build, Arc::new(sink), tag)?;
        Ok(probe.then(operator, tag).after(producer))
    }
}
