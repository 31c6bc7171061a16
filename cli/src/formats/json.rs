//! JSON: columns in the order of their first appearance.
//!
//! arrow-json reads each object into a map that is sorted by keys. The sampled objects are read
//! again for the order of their keys, including those of nested objects.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use arrow::json::reader::infer_json_schema_from_iterator;
use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::{DEFAULT_SCHEMA_INFER_MAX_RECORD, FileFormat};
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder};
use datafusion::object_store::{ObjectMeta, ObjectStore};
use datafusion::physical_plan::Partitioning;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Sample, content};

#[async_trait]
impl Sample for JsonFormat {
    async fn columns(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        let options = self.options();
        if !self.is_newline_delimited() {
            let max = options.schema_infer_max_rec.unwrap_or(DEFAULT_SCHEMA_INFER_MAX_RECORD);
            let mut elements = Elements::default();
            for object in objects {
                let left = max.saturating_sub(elements.values.len());
                let content = || content(store, object, options.compression.into());
                elements.read(content().await?, content().await?, left)?;
            }
            return elements.schema();
        }
        let schema = self.infer_schema(state, store, objects).await?;
        let mut remaining = options.schema_infer_max_rec.unwrap_or(DEFAULT_SCHEMA_INFER_MAX_RECORD);
        let mut keys = Keys::default();
        for object in objects {
            let content = content(store, object, options.compression.into()).await?;
            remaining -= keys.read(content, remaining);
        }
        let fields = keys.sort(schema.fields());
        Ok(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
    }

    async fn for_scan(
        &self,
        _: &dyn Session,
        scan: FileScanConfig,
    ) -> Result<(Option<Self>, FileScanConfig)> {
        if self.is_newline_delimited() {
            return Ok((None, scan));
        }
        // A scan with a partitioning of its own is not divided into ranges of bytes; a range of an
        // array is none.
        let partitions = Partitioning::UnknownPartitioning(scan.file_groups.len());
        let scan = FileScanConfigBuilder::from(scan).with_output_partitioning(Some(partitions));
        Ok((None, scan.build()))
    }
}

/// The first elements of arrays.
#[derive(Default)]
struct Elements {
    values: Vec<Value>,
    keys: Keys,
}

impl Elements {
    /// Reads at most `max` elements of an array from two readers of it: as values, which do not
    /// keep the order of their keys, and for that order.
    fn read(&mut self, first: impl Read, second: impl Read, max: usize) -> Result<()> {
        FirstElements { max, into: Wanted::Values(&mut self.values) }.read(first)?;
        FirstElements { max, into: Wanted::Keys(&mut self.keys) }.read(second)
    }

    fn schema(self) -> Result<SchemaRef> {
        let schema = infer_json_schema_from_iterator(self.values.into_iter().map(Ok))?;
        let fields = self.keys.sort(schema.fields());
        Ok(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
    }
}

/// A visitor of the first elements of an array.
struct FirstElements<'a> {
    max: usize,
    into: Wanted<'a>,
}

/// What elements are read into.
enum Wanted<'a> {
    Values(&'a mut Vec<Value>),
    Keys(&'a mut Keys),
}

impl FirstElements<'_> {
    fn read(mut self, content: impl Read) -> Result<()> {
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(content));
        match json.deserialize_seq(&mut self) {
            // The parser expects the end of the array behind the last element that is wanted.
            Err(error) if self.max > 0 => {
                Err(DataFusionError::Execution(format!("not an array of JSON objects: {error}")))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> Visitor<'de> for &mut FirstElements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while self.max > 0 {
            let element = match &mut self.into {
                Wanted::Values(values) => array.next_element()?.map(|value| values.push(value)),
                Wanted::Keys(keys) => array.next_element_seed(&mut **keys)?,
            };
            if element.is_none() {
                return Ok(());
            }
            self.max -= 1;
        }
        Ok(())
    }
}

/// The keys of some objects in the order of their first appearance.
#[derive(Default)]
pub(super) struct Keys {
    /// The position of each key, and the keys of its values.
    known: HashMap<String, (usize, Keys)>,
}

impl Keys {
    /// Reads the keys of at most `max` objects, one per line, and stops at a line that is not JSON.
    /// Returns the number of objects read.
    pub(super) fn read(&mut self, content: impl Read, max: usize) -> usize {
        let mut lines = BufReader::new(content);
        let (mut line, mut read) = (String::new(), 0);
        while read < max && lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            if !line.trim().is_empty() {
                read += 1;
                let mut json = serde_json::Deserializer::from_str(&line);
                if self.deserialize(&mut json).is_err() {
                    break;
                }
            }
            line.clear();
        }
        read
    }

    /// Sorts fields, also nested ones, by the positions of their keys.
    pub(super) fn sort(&self, fields: &Fields) -> Fields {
        let position =
            |field: &Field| self.known.get(field.name()).map_or(usize::MAX, |known| known.0);
        let mut sorted: Vec<_> = fields.iter().map(|field| self.sort_within(field)).collect();
        sorted.sort_by_key(|field| position(field));
        sorted.into()
    }

    fn sort_within(&self, field: &FieldRef) -> FieldRef {
        match self.known.get(field.name()) {
            Some((_, keys)) => keys.sort_type(field),
            None => field.clone(),
        }
    }

    /// Sorts the fields of objects, or of objects in lists.
    fn sort_type(&self, field: &FieldRef) -> FieldRef {
        let data_type = match field.data_type() {
            DataType::Struct(fields) => DataType::Struct(self.sort(fields)),
            DataType::List(item) => DataType::List(self.sort_type(item)),
            _ => return field.clone(),
        };
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    }

    fn entry(&mut self, key: String) -> &mut Self {
        let position = self.known.len();
        &mut self.known.entry(key).or_insert_with(|| (position, Self::default())).1
    }
}

impl<'de> DeserializeSeed<'de> for &mut Keys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

/// Collects keys of objects, also of objects in lists; other values have none.
impl<'de> Visitor<'de> for &mut Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            map.next_value_seed(self.entry(key))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
