//! `count(DISTINCT value)` without group keys.
//!
//! DataFusion keeps a hash set per task, and merges them in the order of their hashes: an order in
//! which insertions into a set of the same hash function collide, so that ten million values take
//! ten seconds. The values are kept as group keys here, in the order of their arrival.

use arrow::{
    array::{Array, ArrayRef, AsArray, make_array},
    compute::{filter, is_not_null},
    datatypes::DataType,
};
use datafusion_common::{DataFusionError, ScalarValue, utils::SingleRowListArrayBuilder};
use datafusion_expr::Accumulator;

use super::config::{AggregateCall, AggregateConfig, AggregateInput};
use crate::keys::{GroupValues, KeyEncoder, KeyNulls};

/// The values so far.
pub(super) struct DistinctCount {
    /// Type of the values, and of the keys with the same bits.
    kind: DataType,
    key: DataType,
    encoder: KeyEncoder,
    values: GroupValues,
    hashes: Vec<u64>,
    groups: Vec<usize>,
}

impl DistinctCount {
    /// Returns the accumulator of `call`; `None` if it counts no distinct values, or values that
    /// DataFusion counts: nested ones, dictionaries and those of rare types.
    pub(super) fn of(
        call: &AggregateCall,
        config: &AggregateConfig,
    ) -> Result<Option<Self>, DataFusionError> {
        let [argument] = call.arguments.as_slice() else { return Ok(None) };
        if !call.counts_distinct || call.function.expressions().len() != 1 {
            return Ok(None);
        }
        let state = call.function.state_fields()?;
        let [DataType::List(field)] = state.iter().map(|it| it.data_type()).collect::<Vec<_>>()[..]
        else {
            return Ok(None);
        };
        let kind = field.data_type().clone();
        // The state of dictionaries is a list of their values.
        if config.input == AggregateInput::Raw && argument.data_type(&config.input_schema)? != kind
        {
            return Ok(None);
        }
        // Floats are told apart by their bits, as DataFusion does.
        let key = match &kind {
            DataType::Float32 => DataType::UInt32,
            DataType::Float64 => DataType::UInt64,
            DataType::Float16 | DataType::Dictionary(..) => return Ok(None),
            kind => kind.clone(),
        };
        let encoder = KeyEncoder::new(&[(key.clone(), false)], KeyNulls::Equal)?;
        if encoder.empty_keys().is_variable_length() {
            return Ok(None);
        }
        let values = GroupValues::new(&encoder);
        Ok(Some(Self { kind, key, encoder, values, hashes: Vec::new(), groups: Vec::new() }))
    }

    /// Adds the values of another task.
    pub(super) fn merge(&mut self, mut other: Self) {
        if other.values.len() > self.values.len() {
            std::mem::swap(&mut self.values, &mut other.values);
        }
        self.values.intern(other.values.keys(), other.values.hashes(), &mut self.groups);
        self.groups = Vec::new();
    }

    fn add(&mut self, values: &ArrayRef) -> Result<(), DataFusionError> {
        let values = match values.logical_null_count() {
            0 => values.clone(),
            _ => filter(values, &is_not_null(values)?)?,
        };
        let bits = retyped(values, &self.key)?;
        let keys = self.encoder.encode(&[bits])?;
        keys.hash_into(&mut self.hashes);
        self.values.intern(&keys, &self.hashes, &mut self.groups);
        Ok(())
    }

    fn decode(&self) -> Result<ArrayRef, DataFusionError> {
        let mut columns = self.encoder.decode(self.values.keys())?;
        let values = columns.swap_remove(0);
        retyped(values, &self.kind)
    }
}

/// Returns the bits of `values`, floats or unsigned numbers, as values of type `kind`, of the same
/// width.
fn retyped(values: ArrayRef, kind: &DataType) -> Result<ArrayRef, DataFusionError> {
    if values.data_type() == kind {
        return Ok(values);
    }
    Ok(make_array(values.to_data().into_builder().data_type(kind.clone()).build()?))
}

impl std::fmt::Debug for DistinctCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} distinct values", self.values.len())
    }
}

impl Accumulator for DistinctCount {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<(), DataFusionError> {
        self.add(&values[0])
    }

    fn evaluate(&mut self) -> Result<ScalarValue, DataFusionError> {
        Ok(ScalarValue::Int64(Some(self.values.len() as i64)))
    }

    fn size(&self) -> usize {
        self.values.bytes() + 8 * (self.hashes.capacity() + self.groups.capacity())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>, DataFusionError> {
        let values = SingleRowListArrayBuilder::new(self.decode()?).build_list_scalar();
        Ok(vec![values])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<(), DataFusionError> {
        let lists = states[0].as_list::<i32>();
        lists.iter().flatten().try_for_each(|values| self.add(&values))
    }
}
