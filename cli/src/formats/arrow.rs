//! Arrow: checks lengths before DataFusion allocates what a damaged file declares.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::Sample;

/// First and last bytes of a file; a stream has none.
const MAGIC: &[u8] = b"ARROW1";
/// Bytes of the footer's length and the magic at the end of a file.
const END_BYTES: u64 = 10;
/// Precedes the length of a message.
const CONTINUATION: [u8; 4] = [0xFF; 4];

#[async_trait]
impl Sample for ArrowFormat {
    async fn columns(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        for object in objects {
            check(store, object).await?;
        }
        self.infer_schema(state, store, objects).await
    }

    async fn for_scan(
        &self,
        _: &dyn Session,
        scan: FileScanConfig,
    ) -> Result<(Option<Self>, FileScanConfig)> {
        Ok((None, scan))
    }
}

/// Refuses a file or stream whose footer or first message declares an impossible length.
async fn check(store: &Arc<dyn ObjectStore>, object: &ObjectMeta) -> Result<()> {
    let begin = store.get_range(&object.location, 0..object.size.min(8)).await?;
    let (what, length, max_length) = if begin.starts_with(MAGIC) {
        let Some(start) = object.size.checked_sub(END_BYTES) else {
            return truncated_error(object);
        };
        let end = store.get_range(&object.location, start..object.size).await?;
        if !end.ends_with(MAGIC) {
            return truncated_error(object);
        }
        ("footer", length(&end), start)
    } else {
        let message = if begin.starts_with(&CONTINUATION) { begin.slice(4..) } else { begin };
        ("first message", length(&message), object.size)
    };
    match length {
        Some(length) if (0..=max_length.cast_signed()).contains(&length) => Ok(()),
        Some(length) => damaged(
            object,
            &format!("its {what} has a length of {length} bytes, in a file of {}", object.size),
        ),
        None => truncated_error(object),
    }
}

/// The length in the first four bytes of `bytes`.
fn length(bytes: &Bytes) -> Option<i64> {
    let bytes = bytes.first_chunk::<4>()?;
    Some(i64::from(i32::from_le_bytes(*bytes)))
}

fn truncated_error(object: &ObjectMeta) -> Result<()> {
    damaged(object, "it is truncated or not an Arrow file")
}

fn damaged(object: &ObjectMeta, what: &str) -> Result<()> {
    let location = &object.location;
    Err(DataFusionError::Execution(format!("/{location} is not a whole Arrow file: {what}")))
}
