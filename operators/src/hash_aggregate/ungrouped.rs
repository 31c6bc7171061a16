//! Aggregation without keys: one group, one accumulator per function and task. One source task
//! merges them; distinct values that are counted are merged by all ([`super::distinct_values`]).

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion_common::{DataFusionError, ScalarValue, cast::as_boolean_array};
use datafusion_expr::Accumulator;
use gatework_runtime::{Result, pipeline::DriverContext};

use super::{
    config::{AggregateCall, AggregateInput, AggregatePlan, AggregateResult},
    distinct_count::DistinctCount,
    task_groups::TaskGroups,
};
use crate::ResultExt;

/// One accumulator per aggregate call.
pub(super) struct Accumulators(Vec<CallAccumulator>);

enum CallAccumulator {
    /// None: the values are groups, those of this number in [`AggregatePlan::distinct`].
    Values(usize),
    Distinct(Box<DistinctCount>),
    Other(Box<dyn Accumulator>),
}

impl CallAccumulator {
    fn new(plan: &AggregatePlan, index: usize) -> Result<Self, DataFusionError> {
        if let Some(values) = plan.distinct.iter().position(|values| values.call == index) {
            return Ok(Self::Values(values));
        }
        let call = &plan.config.aggregates[index];
        Ok(match DistinctCount::of(call, &plan.config)? {
            Some(count) => Self::Distinct(Box::new(count)),
            None => Self::Other(call.function.create_accumulator()?),
        })
    }

    fn get_mut(&mut self) -> Option<&mut dyn Accumulator> {
        match self {
            Self::Values(_) => None,
            Self::Distinct(count) => Some(count.as_mut()),
            Self::Other(accumulator) => Some(accumulator.as_mut()),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Values(_) => 0,
            Self::Distinct(count) => count.size(),
            Self::Other(accumulator) => accumulator.size(),
        }
    }

    fn merge(&mut self, mut other: Self) -> Result<(), DataFusionError> {
        if let (Self::Distinct(count), Self::Distinct(other)) = (&mut *self, &mut other) {
            count.merge(other);
        } else if let (Some(accumulator), Some(other)) = (self.get_mut(), other.get_mut()) {
            let state = other.state()?;
            let columns = state.iter().map(|value| value.to_array_of_size(1));
            accumulator.merge_batch(&columns.collect::<Result<Vec<_>, _>>()?)?;
        }
        Ok(())
    }
}

impl Accumulators {
    pub(super) fn new(plan: &AggregatePlan) -> Result<Self> {
        let calls = 0..plan.config.aggregates.len();
        let create = calls.map(|index| CallAccumulator::new(plan, index));
        Ok(Self(create.collect::<Result<_, _>>().query_err()?))
    }

    /// Aggregates the rows of `batch`. Values of [`AggregatePlan::distinct`] are added to `groups`.
    pub(super) fn update(
        &mut self,
        plan: &AggregatePlan,
        batch: &RecordBatch,
        groups: &mut [TaskGroups],
        task: &DriverContext,
    ) -> Result<()> {
        for (accumulator, call) in self.0.iter_mut().zip(&plan.config.aggregates) {
            let values = arguments(call, batch).query_err()?;
            match accumulator {
                CallAccumulator::Values(index) => {
                    let keys = plan.distinct[*index].keys(&values[0])?;
                    if !keys.is_empty() {
                        groups[*index].add_keys(keys, task)?;
                    }
                }
                accumulator => {
                    let Some(accumulator) = accumulator.get_mut() else { continue };
                    let updated = match plan.config.input {
                        AggregateInput::Raw => accumulator.update_batch(&values),
                        AggregateInput::Partial => accumulator.merge_batch(&values),
                    };
                    updated.query_err()?;
                }
            }
        }
        Ok(())
    }

    /// Merges another task's accumulators into these.
    pub(super) fn merge(&mut self, other: Self) -> Result<()> {
        for (accumulator, other) in self.0.iter_mut().zip(other.0) {
            accumulator.merge(other).query_err()?;
        }
        Ok(())
    }

    /// Returns the only output row; `counts` has the number of each of [`AggregatePlan::distinct`].
    pub(super) fn emit(mut self, plan: &AggregatePlan, counts: &[usize]) -> Result<RecordBatch> {
        let mut values: Vec<ScalarValue> = Vec::new();
        for accumulator in &mut self.0 {
            if let CallAccumulator::Values(index) = accumulator {
                values.push(ScalarValue::Int64(Some(counts[*index] as i64)));
                continue;
            }
            let Some(accumulator) = accumulator.get_mut() else { continue };
            match plan.config.output {
                AggregateResult::Final => values.push(accumulator.evaluate().query_err()?),
                AggregateResult::Partial => values.extend(accumulator.state().query_err()?),
            }
        }
        let columns = values.iter().map(|value| value.to_array_of_size(1));
        let columns = columns.collect::<Result<Vec<_>, _>>().query_err()?;
        super::source::build_output_batch(&plan.config.schema, columns, 1)
    }

    /// Returns the memory of the accumulators, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(CallAccumulator::size).sum()
    }
}

/// Returns the arguments of `call` in those rows of `batch` that pass its filter. They are computed
/// for these only, because they may fail on others.
fn arguments(call: &AggregateCall, batch: &RecordBatch) -> Result<Vec<ArrayRef>, DataFusionError> {
    let filtered;
    let batch = match &call.filter {
        Some(filter) => {
            let keep = filter.evaluate(batch)?.into_array_of_size(batch.num_rows())?;
            filtered = filter_record_batch(batch, as_boolean_array(&keep)?)?;
            &filtered
        }
        None => batch,
    };
    let rows = batch.num_rows();
    call.arguments.iter().map(|it| it.evaluate(batch)?.into_array_of_size(rows)).collect()
}
