//! JSON: columns in the order of their first appearance.
//!
//! arrow-json reads each object into a map that is sorted by keys. The sampled objects are read
//! again for the order of their keys, including those of nested objects.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::{DEFAULT_SCHEMA_INFER_MAX_RECORD, FileFormat};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::object_store::{ObjectMeta, ObjectStore};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Sample, content};

#[async_trait]
impl Sample for JsonFormat {
    async fn columns(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        let schema = self.infer_schema(state, store, objects).await?;
        // An array would have to be read completely.
        if !self.is_newline_delimited() {
            return Ok(schema);
        }
        let options = self.options();
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
        Ok((None, scan))
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
