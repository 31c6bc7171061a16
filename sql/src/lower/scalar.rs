//! Lowering of scalar subqueries. The value is known before any operator that uses it starts.
//!
//! Each subquery is a pipeline that ends in a [`ScalarSubquerySink`]. Every source of the main
//! input waits for its gate, so no expression of the main input is evaluated before. The gate
//! becomes ready in every case: after a failed subquery the query has failed too, and no operator
//! reads the value.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::DataType};
use datafusion::{
    common::{DataFusionError, ScalarValue, exec_err, internal_err},
    error::Result,
    logical_expr::physical_planning_context::{ScalarSubqueryResults, SubqueryIndex},
    physical_plan::scalar_subquery::ScalarSubqueryExec,
};
use gatework_operators::{ResultExt, apply_selection};
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, LocalSource, OperatorContext, Sink,
        SinkResult, Source, SourceResult, StartResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, StateLock};

use super::{Lowering, pipeline_builder::PipelineBuilder};
use crate::plan::exec::GateworkExec;

impl Lowering {
    pub(super) fn scalar_subqueries(
        &mut self,
        exec: &GateworkExec,
        node: &ScalarSubqueryExec,
        ordered: bool,
    ) -> Result<PipelineBuilder> {
        let [main, subqueries @ ..] = exec.children() else {
            return internal_err!("a ScalarSubqueryExec has no main input");
        };
        let own = self.bindings.add_subqueries(node.results(), node.subqueries().len());
        let mut gates = Vec::new();
        for (link, subquery) in node.subqueries().iter().zip(subqueries) {
            let pipeline = self.child(subquery, false)?;
            let data_type = subquery.schema().field(0).data_type().clone();
            let results = Results { own: own.clone(), planned: node.results().clone() };
            let index_and_count = (link.index, node.subqueries().len());
            let (result, gate) =
                ScalarSubquerySink::new(results, index_and_count, data_type, pipeline.num_tasks);
            self.add_pipeline(pipeline, Arc::new(result), None)?;
            gates.push(gate);
        }
        let outer = self.start_after.len();
        self.start_after.extend(gates);
        let pipeline = self.child(main, ordered);
        self.start_after.truncate(outer);
        pipeline
    }
}

/// The destinations of the values of scalar subqueries.
#[derive(Debug)]
struct Results {
    /// The results of this execution, to which its expressions are bound.
    own: ScalarSubqueryResults,
    /// The results of the plan, for fallback nodes and EXPLAIN ANALYZE.
    planned: ScalarSubqueryResults,
}

impl Results {
    /// Sets the value of one of `count` subqueries.
    fn set(&self, index: SubqueryIndex, count: usize, value: ScalarValue) -> Result<()> {
        self.own.set(index, value.clone())?;
        match self.planned.get(index) {
            Some(known) if known == value => return Ok(()),
            None => {}
            Some(_) => self.clear_planned(index, count),
        }
        // Another execution may set its own value first, which is as good.
        let _set_by_another = self.planned.set(index, value);
        Ok(())
    }

    /// Clears the plan's value of one subquery.
    fn clear_planned(&self, index: SubqueryIndex, count: usize) {
        let others = (0..count).map(SubqueryIndex::new).filter(|other| *other != index);
        let kept: Vec<_> = others.filter_map(|i| Some((i, self.planned.get(i)?))).collect();
        self.planned.clear();
        for (other, value) in kept {
            let _set_by_another = self.planned.set(other, value);
        }
    }
}

/// Receives the value of a scalar subquery.
#[derive(Debug)]
struct ScalarSubquerySink {
    shared: Arc<ScalarSubqueryState>,
}

#[derive(Debug)]
struct ScalarSubqueryState {
    results: Results,
    index: SubqueryIndex,
    /// Subqueries of the same plan level.
    count: usize,
    data_type: DataType,
    /// Number of unfinished tasks, and the value once a row has arrived.
    state: StateLock<(usize, Option<ScalarValue>)>,
    value_ready: Gate,
}

impl ScalarSubquerySink {
    fn new(
        results: Results,
        (index, count): (SubqueryIndex, usize),
        data_type: DataType,
        num_tasks: usize,
    ) -> (Self, Gate) {
        let value_ready = Dependency::blocked("scalar subquery", DependencyKind::Start);
        let state = StateLock::new((num_tasks, None));
        let shared = Arc::new(ScalarSubqueryState {
            results,
            index,
            count,
            data_type,
            state,
            value_ready: value_ready.clone(),
        });
        (Self { shared }, value_ready)
    }
}

impl Drop for ScalarSubqueryState {
    fn drop(&mut self) {
        self.value_ready.set_always_ready();
    }
}

impl ScalarSubqueryState {
    fn push(&self, rows: &RecordBatch) -> Result<()> {
        let mut state = self.state.lock();
        if rows.num_rows() > 1 || rows.num_rows() == 1 && state.1.is_some() {
            return exec_err!("Scalar subquery returned more than one row");
        }
        if rows.num_rows() == 1 {
            state.1 = Some(ScalarValue::try_from_array(rows.column(0), 0)?);
        }
        Ok(())
    }

    /// Called by each task at its end. The last task sets the value, or NULL if there was no row.
    fn finish(&self) -> Result<(), DataFusionError> {
        let mut state = self.state.lock();
        state.0 -= 1;
        if state.0 > 0 {
            return Ok(());
        }
        let value = match state.1.take() {
            Some(value) => value,
            None => ScalarValue::try_from(&self.data_type)?,
        };
        self.results.set(self.index, self.count, value)?;
        state.set_always_ready(&self.value_ready);
        Ok(())
    }
}

impl Sink for ScalarSubquerySink {
    fn name(&self) -> &str {
        "scalar subquery sink"
    }

    fn local(&self, _context: OperatorContext) -> RuntimeResult<Box<dyn LocalSink>> {
        Ok(Box::new(LocalScalarSubquerySink { shared: self.shared.clone() }))
    }
}

struct LocalScalarSubquerySink {
    shared: Arc<ScalarSubqueryState>,
}

impl LocalSink for LocalScalarSubquerySink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> RuntimeResult<SinkResult> {
        if let Some(batch) = batch {
            self.shared.push(&apply_selection(batch)?).query_err()?;
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> RuntimeResult<FinishResult> {
        self.shared.finish().query_err()?;
        Ok(FinishResult::Done)
    }
}

/// A source that starts when all of `gates` are ready.
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

    fn local(&self, context: OperatorContext) -> RuntimeResult<Box<dyn LocalSource>> {
        Ok(Box::new(LocalStartAfter {
            source: self.source.local(context)?,
            gates: self.gates.clone(),
        }))
    }
}

struct LocalStartAfter {
    source: Box<dyn LocalSource>,
    gates: Vec<Gate>,
}

impl LocalSource for LocalStartAfter {
    fn start(&mut self, task: &DriverContext) -> RuntimeResult<StartResult> {
        match self.gates.iter().find(|gate| !gate.is_ready()) {
            Some(gate) => Ok(StartResult::Blocked(gate.clone().into())),
            None => self.source.start(task),
        }
    }

    fn next(&mut self, task: &DriverContext) -> RuntimeResult<SourceResult> {
        self.source.next(task)
    }

    fn abort(&mut self) {
        self.source.abort();
    }
}
