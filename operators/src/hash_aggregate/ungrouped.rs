//! Aggregation without keys: one group, one accumulator per function and task. One source task
//! merges them.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion_common::{DataFusionError, ScalarValue, cast::as_boolean_array};
use datafusion_expr::Accumulator;
use gatework_runtime::Result;

use super::{
    config::{AggregateCall, AggregateConfig, AggregateInput, AggregatePlan, AggregateResult},
    distinct_count::DistinctCount,
};
use crate::ResultExt;

/// One accumulator per aggregate call.
pub(super) struct Accumulators(Vec<CallAccumulator>);

enum CallAccumulator {
    Distinct(Box<DistinctCount>),
    Other(Box<dyn Accumulator>),
}

impl CallAccumulator {
    fn new(call: &AggregateCall, config: &AggregateConfig) -> Result<Self, DataFusionError> {
        Ok(match DistinctCount::of(call, config)? {
            Some(count) => Self::Distinct(Box::new(count)),
            None => Self::Other(call.function.create_accumulator()?),
        })
    }

    fn get(&self) -> &dyn Accumulator {
        match self {
            Self::Distinct(count) => count.as_ref(),
            Self::Other(accumulator) => accumulator.as_ref(),
        }
    }

    fn get_mut(&mut self) -> &mut dyn Accumulator {
        match self {
            Self::Distinct(count) => count.as_mut(),
            Self::Other(accumulator) => accumulator.as_mut(),
        }
    }

    fn merge(&mut self, other: Self) -> Result<(), DataFusionError> {
        match (self, other) {
            (Self::Distinct(count), Self::Distinct(other)) => count.merge(*other),
            (accumulator, mut other) => {
                let state = other.get_mut().state()?;
                let columns = state.iter().map(|value| value.to_array_of_size(1));
                accumulator.get_mut().merge_batch(&columns.collect::<Result<Vec<_>, _>>()?)?;
            }
        }
        Ok(())
    }
}

impl Accumulators {
    pub(super) fn new(plan: &AggregatePlan) -> Result<Self> {
        let config = &plan.config;
        let create = config.aggregates.iter().map(|call| CallAccumulator::new(call, config));
        Ok(Self(create.collect::<Result<_, _>>().query_err()?))
    }

    /// Aggregates the rows of `batch`.
    pub(super) fn update(&mut self, plan: &AggregatePlan, batch: &RecordBatch) -> Result<()> {
        self.update_inner(plan, batch).query_err()
    }

    fn update_inner(
        &mut self,
        plan: &AggregatePlan,
        batch: &RecordBatch,
    ) -> Result<(), DataFusionError> {
        for (accumulator, call) in self.0.iter_mut().zip(&plan.config.aggregates) {
            // Arguments are computed only for rows that pass the filter, because they may fail on
            // others.
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
            let arguments = call.arguments.iter();
            let values = arguments
                .map(|argument| argument.evaluate(batch)?.into_array_of_size(rows))
                .collect::<Result<Vec<ArrayRef>, _>>()?;
            match plan.config.input {
                AggregateInput::Raw => accumulator.get_mut().update_batch(&values)?,
                AggregateInput::Partial => accumulator.get_mut().merge_batch(&values)?,
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

    /// Returns the only output row.
    pub(super) fn emit(mut self, plan: &AggregatePlan) -> Result<RecordBatch> {
        let mut values: Vec<ScalarValue> = Vec::new();
        for accumulator in &mut self.0 {
            match plan.config.output {
                AggregateResult::Final => {
                    values.push(accumulator.get_mut().evaluate().query_err()?)
                }
                AggregateResult::Partial => {
                    values.extend(accumulator.get_mut().state().query_err()?)
                }
            }
        }
        let columns = values.iter().map(|value| value.to_array_of_size(1));
        let columns = columns.collect::<Result<Vec<_>, _>>().query_err()?;
        super::source::build_output_batch(&plan.config.schema, columns, 1)
    }

    /// Returns the memory of the accumulators, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|accumulator| accumulator.get().size()).sum()
    }
}
