//! Scalar subqueries: their one value is known before anything that uses it starts.
//!
//! Each subquery is a flow that ends in a [`ScalarResult`]. Every leaf of the main input waits for
//! its gate, so no expression of the main input is evaluated before. The gate opens on every way out;
//! after a failed subquery the query has failed as well, and nobody looks at the value.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::DataType};
use datafusion::{
    common::{DataFusionError, ScalarValue, exec_err, internal_err},
    error::Result,
    logical_expr::physical_planning_context::{ScalarSubqueryResults, SubqueryIndex},
    physical_plan::scalar_subquery::ScalarSubqueryExec,
};
use gatework_operators::{OrFail, compact};
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{
        Batch, FinishResult, LocalSink, LocalSource, Setup, Sink, SinkResult, Source, SourceResult,
        Start, TaskContext,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

use super::{Lowering, flow::Flow};
use crate::shell::Shell;

impl Lowering {
    pub(super) fn scalar_subqueries(
        &mut self,
        shell: &Shell,
        node: &ScalarSubqueryExec,
        ordered: bool,
    ) -> Result<Flow> {
        let [main, subqueries @ ..] = shell.children() else {
            return internal_err!("scalar subqueries without a main input");
        };
        let own = self.bindings.add_subqueries(node.results(), node.subqueries().len());
        let mut gates = Vec::new();
        for (link, subquery) in node.subqueries().iter().zip(subqueries) {
            let flow = self.child(subquery, false)?;
            let kind = subquery.schema().field(0).data_type().clone();
            let results = Results { own: own.clone(), planned: node.results().clone() };
            let place = (link.index, node.subqueries().len());
            let (result, gate) = ScalarResult::new(results, place, kind, flow.instances);
            self.close(flow, Arc::new(result), None)?;
            gates.push(gate);
        }
        let outer = self.start_after.len();
        self.start_after.extend(gates);
        let flow = self.child(main, ordered);
        self.start_after.truncate(outer);
        flow
    }
}

/// Where the values of scalar subqueries are kept.
#[derive(Debug)]
struct Results {
    /// This execution's, to which its expressions are bound.
    own: ScalarSubqueryResults,
    /// The plan's: for nodes that DataFusion executes, and for EXPLAIN ANALYZE.
    planned: ScalarSubqueryResults,
}

impl Results {
    /// Sets the value of one of `count` subqueries.
    fn set(&self, index: SubqueryIndex, count: usize, value: ScalarValue) -> Result<()> {
        self.own.set(index, value.clone())?;
        match self.planned.get(index) {
            Some(known) if known == value => return Ok(()),
            None => {}
            Some(_) => self.forget(index, count),
        }
        // Another execution may set it first: to its own value, which is as good.
        let _set_by_another = self.planned.set(index, value);
        Ok(())
    }

    /// Takes the plan's value of one subquery away.
    fn forget(&self, index: SubqueryIndex, count: usize) {
        let others = (0..count).map(SubqueryIndex::new).filter(|other| *other != index);
        let kept: Vec<_> = others.filter_map(|i| Some((i, self.planned.get(i)?))).collect();
        self.planned.clear();
        for (other, value) in kept {
            let _set_by_another = self.planned.set(other, value);
        }
    }
}

/// Takes the one value of a scalar subquery.
#[derive(Debug)]
struct ScalarResult {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    results: Results,
    index: SubqueryIndex,
    /// Subqueries of the same plan level.
    count: usize,
    kind: DataType,
    /// Tasks that have not finished, and the value if one came.
    state: Mutex<(usize, Option<ScalarValue>)>,
    known: Gate,
}

impl ScalarResult {
    fn new(
        results: Results,
        (index, count): (SubqueryIndex, usize),
        kind: DataType,
        tasks: usize,
    ) -> (Self, Gate) {
        let known = Dependency::blocked("scalar subquery", DependencyKind::Execution);
        let state = Mutex::new((tasks, None));
        let shared = Arc::new(Shared { results, index, count, kind, state, known: known.clone() });
        (Self { shared }, known)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.known.set_always_ready();
    }
}

impl Shared {
    fn take(&self, rows: &RecordBatch) -> Result<()> {
        let mut state = self.state.lock();
        if rows.num_rows() > 1 || rows.num_rows() == 1 && state.1.is_some() {
            return exec_err!("Scalar subquery returned more than one row");
        }
        if rows.num_rows() == 1 {
            state.1 = Some(ScalarValue::try_from_array(rows.column(0), 0)?);
        }
        Ok(())
    }

    /// After the last task: the value, or a NULL if there was no row.
    fn finish(&self) -> Result<(), DataFusionError> {
        let mut state = self.state.lock();
        state.0 -= 1;
        if state.0 > 0 {
            return Ok(());
        }
        let value = match state.1.take() {
            Some(value) => value,
            None => ScalarValue::try_from(&self.kind)?,
        };
        self.results.set(self.index, self.count, value)?;
        self.known.set_always_ready();
        Ok(())
    }
}

impl Sink for ScalarResult {
    fn name(&self) -> &str {
        "scalar subquery"
    }

    fn local(&self, _setup: Setup) -> RuntimeResult<Box<dyn LocalSink>> {
        Ok(Box::new(LocalScalar { shared: self.shared.clone() }))
    }
}

struct LocalScalar {
    shared: Arc<Shared>,
}

impl LocalSink for LocalScalar {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> RuntimeResult<SinkResult> {
        if let Some(batch) = batch {
            self.shared.take(&compact(batch)?).or_fail()?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &TaskContext) -> RuntimeResult<FinishResult> {
        self.shared.finish().or_fail()?;
        Ok(FinishResult::Done)
    }
}

/// A source that starts when gates are open.
#[derive(Debug)]
pub(super) struct StartAfter {
    source: Arc<dyn Source>,
    gates: Vec<Gate>,
}

impl StartAfter {
    pub(super) fn new(source: Arc<dyn Source>, gates: Vec<Gate>) -> Self {
        Self { source, gates }
    }
}

impl Source for StartAfter {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn local(&self, setup: Setup) -> RuntimeResult<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStartAfter {
            source: self.source.local(setup)?,
            gates: self.gates.clone(),
        }))
    }
}

struct LocalStartAfter {
    source: Box<dyn LocalSource>,
    gates: Vec<Gate>,
}

impl LocalSource for LocalStartAfter {
    fn start(&mut self, task: &TaskContext) -> RuntimeResult<Start> {
        match self.gates.iter().find(|gate| !gate.is_ready()) {
            Some(gate) => Ok(Start::Blocked(gate.clone().into())),
            None => self.source.start(task),
        }
    }

    fn next(&mut self, task: &TaskContext) -> RuntimeResult<SourceResult> {
        self.source.next(task)
    }

    fn abort(&mut self) {
        self.source.abort();
    }
}
