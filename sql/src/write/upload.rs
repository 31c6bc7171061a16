//! Uploads of bytes to an object store.

use std::{sync::Arc, task::Poll};

use bytes::Bytes;
use datafusion::{
    error::{DataFusionError, Result as PlanResult},
    object_store::{ObjectStore, ObjectStoreExt, buffered::BufWriter, path::Path},
};
use futures::{FutureExt, future::BoxFuture};
use gatework_operators::stream_scan::PollGate;
use gatework_runtime::pipeline::OperatorContext;
use tokio::{io::AsyncWriteExt, runtime::Handle};

/// The upload of a file to the object store. If it is dropped before the file is complete, it is
/// aborted. The query ends only after that.
pub(super) struct Upload {
    pub(super) context: OperatorContext,
    pub(super) writer: Option<BufWriter>,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) part_bytes: usize,
    /// Path of the next file to be started, and of the last one that was.
    pub(super) path: Path,
    pub(super) sent_path: Path,
    pub(super) io: Handle,
    pub(super) sending: Option<BoxFuture<'static, (BufWriter, PlanResult<SendState>)>>,
    pub(super) gate: PollGate,
}

/// Result of a send.
pub(super) enum SendState {
    Part,
    /// The file is complete.
    Complete,
}

impl Upload {
    /// Starts to send `bytes`; `last` completes the file.
    pub(super) fn send(&mut self, bytes: Bytes, last: bool) {
        self.sent_path = self.path.clone();
        let (store, path) = (&self.store, &self.path);
        let fresh = || BufWriter::with_capacity(store.clone(), path.clone(), self.part_bytes);
        let mut writer = self.writer.take().unwrap_or_else(fresh);
        let sending = async move {
            let sent = send(&mut writer, bytes, last).await;
            (writer, sent)
        };
        self.sending = Some(sending.boxed());
    }

    /// Polls the send; returns true if none is pending.
    pub(super) fn poll(&mut self) -> PlanResult<bool> {
        let Some(sending) = &mut self.sending else { return Ok(true) };
        let _entered = self.io.enter();
        match self.gate.poll(|context| sending.poll_unpin(context)) {
            Poll::Pending => Ok(false),
            Poll::Ready((writer, sent)) => {
                self.sending = None;
                if !matches!(sent, Ok(SendState::Complete)) {
                    self.writer = Some(writer);
                }
                sent.map(|_| true)
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (writer, sending) = (self.writer.take(), self.sending.take());
        if writer.is_none() && sending.is_none() {
            return;
        }
        let (store, path, external_work) =
            (self.store.clone(), self.sent_path.clone(), self.context.external_work());
        self.io.spawn(async move {
            let writer = match sending {
                Some(sending) => match sending.await {
                    (_, Ok(SendState::Complete)) => {
                        let _removed = store.delete(&path).await;
                        None
                    }
                    (writer, _) => Some(writer),
                },
                None => writer,
            };
            if let Some(mut writer) = writer {
                // An error cannot be reported: the query has dropped its writer.
                let _given_up = writer.abort().await;
            }
            drop(external_work);
        });
    }
}

async fn send(writer: &mut BufWriter, bytes: Bytes, last: bool) -> PlanResult<SendState> {
    writer.put(bytes).await?;
    if !last {
        return Ok(SendState::Part);
    }
    writer.shutdown().await.map_err(DataFusionError::IoError)?;
    Ok(SendState::Complete)
}
