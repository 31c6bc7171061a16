//! Bytes on their way into an object store.

use std::{sync::Arc, task::Poll};

use bytes::Bytes;
use datafusion::{
    error::{DataFusionError, Result as PlanResult},
    object_store::{ObjectStore, ObjectStoreExt, buffered::BufWriter, path::Path},
};
use futures::{FutureExt, future::BoxFuture};
use gatework_operators::stream_scan::PollGate;
use gatework_runtime::pipeline::Setup;
use tokio::{io::AsyncWriteExt, runtime::Handle};

/// A file on its way into the store. Dropped before it is known to be whole, it is given up there, and its query ends
/// when it has been.
pub(super) struct Upload {
    pub(super) setup: Setup,
    pub(super) writer: Option<BufWriter>,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) part_bytes: usize,
    /// Of the file that is begun next, and of the last one that was.
    pub(super) path: Path,
    pub(super) sent: Path,
    pub(super) io: Handle,
    pub(super) sending: Option<BoxFuture<'static, (BufWriter, PlanResult<Sent>)>>,
    pub(super) gate: PollGate,
}

/// What has been sent.
pub(super) enum Sent {
    Part,
    /// The file is there.
    Whole,
}

impl Upload {
    /// Begins to send `bytes`, the last ones or not.
    pub(super) fn send(&mut self, bytes: Bytes, last: bool) {
        self.sent = self.path.clone();
        let (store, path) = (&self.store, &self.path);
        let fresh = || BufWriter::with_capacity(store.clone(), path.clone(), self.part_bytes);
        let mut writer = self.writer.take().unwrap_or_else(fresh);
        let sending = async move {
            let sent = send(&mut writer, bytes, last).await;
            (writer, sent)
        };
        self.sending = Some(sending.boxed());
    }

    /// Whether all is sent that was begun.
    pub(super) fn poll(&mut self) -> PlanResult<bool> {
        let Some(sending) = &mut self.sending else { return Ok(true) };
        let _entered = self.io.enter();
        match self.gate.poll(|context| sending.poll_unpin(context)) {
            Poll::Pending => Ok(false),
            Poll::Ready((writer, sent)) => {
                self.sending = None;
                if !matches!(sent, Ok(Sent::Whole)) {
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
        let (store, path, presence) = (self.store.clone(), self.sent.clone(), self.setup.outside());
        self.io.spawn(async move {
            let writer = match sending {
                Some(sending) => match sending.await {
                    (_, Ok(Sent::Whole)) => {
                        let _removed = store.delete(&path).await;
                        None
                    }
                    (writer, _) => Some(writer),
                },
                None => writer,
            };
            if let Some(mut writer) = writer {
                // Nobody is left to be told.
                let _given_up = writer.abort().await;
            }
            drop(presence);
        });
    }
}

async fn send(writer: &mut BufWriter, bytes: Bytes, last: bool) -> PlanResult<Sent> {
    writer.put(bytes).await?;
    if !last {
        return Ok(Sent::Part);
    }
    writer.shutdown().await.map_err(DataFusionError::IoError)?;
    Ok(Sent::Whole)
}
