//! Windows: of one task where their order is wanted, else of as many as there are, which share the window partitions.

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
use gatework_shared_state::Budget;

use super::{
    Lowering, failed,
    flow::{Buffer, Flow},
};
use crate::shell::{Shell, as_shell};

/// The expressions of a window; `None` if `node` is none.
pub fn window_expressions(node: &dyn ExecutionPlan) -> Option<&[Arc<dyn WindowExpr>]> {
    match node.downcast_ref::<WindowAggExec>() {
        Some(window) => Some(window.window_expr()),
        None => Some(node.downcast_ref::<BoundedWindowAggExec>()?.window_expr()),
    }
}

impl Lowering {
    /// The flow of a window.
    pub(super) fn window(
        &mut self,
        shell: &Shell,
        ordered: bool,
        tag: Option<usize>,
    ) -> Result<Flow> {
        let child = &shell.children()[0];
        let apart = if ordered || self.instances == 1 { None } else { Apart::of(shell) };
        // Tasks that each keep columns which cannot go to files would have to fit side by side.
        let apart = apart.filter(|apart| !apart.keeps_columns || !self.memory_is_limited());
        let input = match apart {
            Some(apart) => self.grouped(child, &apart)?,
            None => {
                let input = self.child(child, true)?;
                self.exchange(input, Routing::PassThrough, 1, child, tag)?
            }
        };
        self.windowed(shell, input, tag)
    }

    /// `input` with the columns of a window, in as many tasks.
    fn windowed(&mut self, shell: &Shell, input: Flow, tag: Option<usize>) -> Result<Flow> {
        let Some(expressions) = window_expressions(shell.original().as_ref()) else {
            return internal_err!("{} is no window", shell.original().name());
        };
        let instances = input.instances;
        let expressions = expressions.iter().map(|window| self.bindings.bind_window(window));
        let (sink, source) = window::new(
            expressions.collect::<Result<Vec<_>>>()?,
            shell.schema(),
            self.batch_rows,
            instances,
            self.settings.exchange_bytes,
        )
        .map_err(failed)?;
        let name = format!("{} window", input.name);
        let producer = self.close(input, Arc::new(sink), tag)?;
        // The hand-over has one reader, which reads nothing else: it cannot close a cycle.
        Ok(Flow::new(name, instances, Arc::new(source), tag).after(producer))
    }

    /// The flow of a sort, and of windows over it, each task of which has all rows of the keys it has any of, and has
    /// its rows in order.
    fn grouped(&mut self, plan: &Arc<dyn ExecutionPlan>, apart: &Apart) -> Result<Flow> {
        let Some(shell) = as_shell(plan.as_ref()) else {
            return internal_err!("{} is no sort", plan.name());
        };
        let tag = Some(self.tag(shell));
        let child = &shell.children()[0];
        let Some(sort) = shell.original().downcast_ref::<SortExec>() else {
            let input = self.grouped(child, apart)?;
            return self.windowed(shell, input, tag);
        };
        let input = self.child(child, false)?;
        // The rows of a node or a bucket may have been chosen by a hash of the same keys.
        let by_keys = Routing::Rehash(self.bindings.bind_all(&apart.keys)?);
        let input = self.exchange(input, by_keys, self.instances, child, tag)?;
        let schema = shell.schema();
        let ordering = self.ordering(sort.expr().clone(), &schema)?;
        let config = SortConfig { ordering, fetch: None, schema, batch_rows: self.batch_rows };
        let instances = input.instances;
        let (runs, merge) = sort::each(config, instances).map_err(failed)?;
        let name = format!("{} sorted", input.name);
        let producer = self.close(input, Arc::new(runs), tag)?;
        Ok(Flow::new(name, instances, Arc::new(merge), tag).after(producer))
    }

    /// The `flow` of `node` with so many tasks; one that has one, and is to have one, stays as it is, and keeps its order.
    fn exchange(
        &mut self,
        flow: Flow,
        routing: Routing,
        instances: usize,
        node: &Arc<dyn ExecutionPlan>,
        tag: Option<usize>,
    ) -> Result<Flow> {
        if flow.instances == 1 && instances == 1 {
            return Ok(flow);
        }
        let budget = Budget::new(self.settings.exchange_bytes);
        let (mut sinks, source) =
            local_exchange::new(routing, &[flow.instances], instances, budget.clone())
                .map_err(failed)?;
        let Some(sink) = sinks.pop() else { return internal_err!("an exchange without a sink") };
        let name = format!("{} exchanged", flow.name);
        let producer = self.close(flow, Arc::new(sink), tag)?;
        let mut flow = Flow::new(name, instances, Arc::new(source.with_schema(node.schema())), tag);
        flow.buffers.push(Buffer { producer, budget });
        Ok(flow)
    }
}

/// How windows over one sort can share its rows among tasks.
struct Apart {
    /// Keys that all of them are partitioned by.
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// One of them keeps columns of large window partitions in memory.
    keeps_columns: bool,
}

impl Apart {
    /// That of a window, if it lies over a sort of all rows, maybe with other windows between.
    fn of(window: &Shell) -> Option<Self> {
        let expressions = window_expressions(window.original().as_ref())?;
        let mut keys = expressions.first()?.partition_by().to_vec();
        let mut keeps_columns = window::keeps_columns(expressions);
        let mut below = as_shell(window.children()[0].as_ref())?;
        while let Some(expressions) = window_expressions(below.original().as_ref()) {
            let theirs = expressions.first()?.partition_by();
            keys.retain(|key| theirs.contains(key));
            keeps_columns |= window::keeps_columns(expressions);
            below = as_shell(below.children()[0].as_ref())?;
        }
        let sort = below.original().downcast_ref::<SortExec>()?;
        (sort.fetch().is_none() && !keys.is_empty()).then_some(Self { keys, keeps_columns })
    }
}
