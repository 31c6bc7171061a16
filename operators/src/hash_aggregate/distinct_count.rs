//! `count(DISTINCT value)` without group keys, where partial states are made or merged.
//!
//! DataFusion keeps a hash set per task, and merges them in the order of their hashes: an order in
//! which insertions into a set of the same hash function collide, so that ten million values take
//! ten seconds. The values are kept as group keys here, in the order of their arrival.

use arrow::{
    array::{Array, ArrayRef, AsArray, UInt32Array, make_array},
    compute::{filter, is_not_null, take},
    datatypes::DataType,
};
use datafusion_common::{DataFusionError, ScalarValue, utils::SingleRowListArrayBuilder};
use datafusion_expr::Accumulator;

use super::config::{AggregateCall, AggregateConfig, AggregateInput};
use crate::{
    dictionary::{self, EntriesId},
    keys::{GroupValues, KeyEncoder, KeyNulls},
};

/// Maximum number of entries of a dictionary of which each is marked once it is added: a mebibyte.
const MAX_ENTRIES: usize = 1 << 20;

/// Type of the values, and of the keys with the same bits.
#[derive(Debug, Clone)]
pub(super) struct DistinctType {
    pub(super) kind: DataType,
    pub(super) key: DataType,
}

/// The values so far.
pub(super) struct DistinctCount {
    kind: DataType,
    key: DataType,
    encoder: KeyEncoder,
    values: GroupValues,
    /// The entries of the current dictionary, and whether each is among the values.
    dictionary: Option<(EntriesId, Vec<bool>)>,
    groups: Vec<usize>,
}

impl DistinctType {
    /// Returns the type of the values that `call` counts; `None` if it counts no distinct values,
    /// or values that DataFusion counts: nested ones, dictionaries and those of rare types.
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
        let is_rows = encoder.empty_keys().is_variable_length();
        Ok((!is_rows).then_some(Self { kind, key }))
    }
}

impl DistinctCount {
    /// Returns the accumulator of `call`, if its values have a [`DistinctType`].
    pub(super) fn of(
        call: &AggregateCall,
        config: &AggregateConfig,
    ) -> Result<Option<Self>, DataFusionError> {
        let Some(DistinctType { kind, key }) = DistinctType::of(call, config)? else {
            return Ok(None);
        };
        let encoder = KeyEncoder::new(&[(key.clone(), false)], KeyNulls::Equal)?;
        let values = GroupValues::new(&encoder);
        Ok(Some(Self { kind, key, encoder, values, dictionary: None, groups: Vec::new() }))
    }

    /// Adds the values of another task.
    pub(super) fn merge(&mut self, other: &mut Self) {
        if other.values.len() > self.values.len() {
            std::mem::swap(&mut self.values, &mut other.values);
        }
        self.values.intern(other.values.keys(), other.values.hashes(), &mut self.groups);
        self.groups = Vec::new();
    }

    /// Adds values that may be a dictionary, of which each entry is added once.
    fn add_encoded(&mut self, values: &ArrayRef) -> Result<(), DataFusionError> {
        let codes = dictionary::codes(values, &self.kind);
        let Some((codes, entries)) = codes.filter(|(_, entries)| entries.len() <= MAX_ENTRIES)
        else {
            return self.add(&dictionary::decode(values, &self.kind)?);
        };
        let current = self.dictionary.take_if(|(known, _)| known.is(entries));
        let (id, mut added) =
            current.unwrap_or_else(|| (EntriesId::of(entries), vec![false; entries.len()]));
        let is_new = |code: &&u32| !std::mem::replace(&mut added[**code as usize], true);
        let new: Vec<u32> = codes.iter().filter(is_new).copied().collect();
        if !new.is_empty() {
            self.add(&take(entries, &UInt32Array::from(new), None)?)?;
        }
        self.dictionary = Some((id, added));
        Ok(())
    }

    fn add(&mut self, values: &ArrayRef) -> Result<(), DataFusionError> {
        let values = match values.logical_null_count() {
            0 => values.clone(),
            _ => filter(values, &is_not_null(values)?)?,
        };
        let bits = retyped(values, &self.key)?;
        let keys = self.encoder.encode(&[bits])?;
        self.values.assign(&keys, &mut self.groups);
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
pub(super) fn retyped(values: ArrayRef, kind: &DataType) -> Result<ArrayRef, DataFusionError> {
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
        self.add_encoded(&values[0])
    }

    fn evaluate(&mut self) -> Result<ScalarValue, DataFusionError> {
        Ok(ScalarValue::Int64(Some(self.values.len() as i64)))
    }

    fn size(&self) -> usize {
        let entries = self.dictionary.as_ref().map_or(0, |(_, added)| added.len());
        self.values.bytes() + entries + 8 * self.groups.capacity()
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
