//! Encoding of rows as the bytes of a file.

use std::{io, sync::Arc};

use arrow::{array::RecordBatch, csv};
use bytes::Bytes;
use datafusion::{
    error::Result as PlanResult,
    parquet::{
        arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
        file::metadata::KeyValue,
    },
};
use parking_lot::Mutex;

use super::{Format, WriteTarget};
use crate::buckets::{Bucket, FOOTER_KEY};

/// Bytes that an encoder has produced and not yet sent.
#[derive(Clone, Default)]
pub(super) struct Encoded(Arc<Mutex<Vec<u8>>>);

impl io::Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) enum Encoder {
    Parquet(Box<ArrowWriter<Encoded>>, Encoded),
    Csv(Box<csv::Writer<Encoded>>, Encoded),
}

impl Encoder {
    pub(super) fn new(target: &WriteTarget, bucket: Option<&Bucket>) -> PlanResult<Self> {
        let bytes = Encoded::default();
        Ok(match &target.format {
            Format::Parquet(properties, arrow_schema) => {
                let options = ArrowWriterOptions::new()
                    .with_properties(properties.as_ref().clone())
                    .with_skip_arrow_metadata(!arrow_schema);
                let (schema, bytes) = (target.schema.clone(), bytes.clone());
                let mut writer = ArrowWriter::try_new_with_options(bytes.clone(), schema, options)?;
                if let Some(bucket) = bucket {
                    let entry = KeyValue::new(FOOTER_KEY.to_owned(), bucket.in_footer());
                    writer.append_key_value_metadata(entry);
                }
                Self::Parquet(Box::new(writer), bytes)
            }
            Format::Csv(builder) => {
                Self::Csv(Box::new(builder.clone().build(bytes.clone())), bytes)
            }
        })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> PlanResult<()> {
        match self {
            Self::Parquet(writer, _) => writer.write(batch)?,
            Self::Csv(writer, _) => writer.write(batch)?,
        }
        Ok(())
    }

    /// Returns the number of bytes in the encoder's memory.
    pub(super) fn memory_size(&self) -> usize {
        match self {
            Self::Parquet(writer, bytes) => writer.memory_size() + bytes.0.lock().len(),
            Self::Csv(_, bytes) => bytes.0.lock().len(),
        }
    }

    /// Ends the current row group, so that its bytes can be sent.
    pub(super) fn flush(&mut self) -> PlanResult<()> {
        match self {
            Self::Parquet(writer, _) => Ok(writer.flush()?),
            Self::Csv(..) => Ok(()),
        }
    }

    /// Returns the bytes to send, if they are at least `min_bytes`.
    pub(super) fn take(&self, min_bytes: usize) -> Option<Bytes> {
        let (Self::Parquet(_, bytes) | Self::Csv(_, bytes)) = self;
        let mut bytes = bytes.0.lock();
        (bytes.len() >= min_bytes.max(1)).then(|| std::mem::take(&mut *bytes).into())
    }

    /// Ends the file and returns its last bytes.
    pub(super) fn close(self) -> PlanResult<Bytes> {
        let bytes = match self {
            Self::Parquet(writer, bytes) => {
                writer.close()?;
                bytes
            }
            Self::Csv(writer, bytes) => {
                drop(writer);
                bytes
            }
        };
        Ok(std::mem::take(&mut *bytes.0.lock()).into())
    }
}
