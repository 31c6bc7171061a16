//! Splits a batch into small ones.

use super::wrapper::WrapperState;
use crate::pipeline::Batch;

/// Chunks not yet emitted, the next one last.
#[derive(Debug, Default)]
pub(super) struct BatchSplitter(Vec<Batch>);

impl BatchSplitter {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Batch> {
        self.0.pop()
    }

    /// Splits `batch`, returns the first chunk and keeps the others.
    pub(super) fn split(&mut self, batch: Batch, state: &WrapperState) -> Batch {
        let Some(rows) = state.batch_rows() else { return batch };
        if batch.num_physical_rows() <= rows {
            return batch;
        }
        let sequence = batch.sequence();
        let (data, selection) = batch.clone().into_parts();
        let mut offset = 0;
        let mut chunks = Vec::new();
        while offset < data.num_rows() {
            let length = rows.min(data.num_rows() - offset);
            let slice = data.slice(offset, length);
            let chunk = match &selection {
                Some(selection) => Batch::with_selection(slice, selection.slice(offset, length)),
                None => Batch::new(slice),
            };
            // The driver would only skip a chunk without selected rows.
            if chunk.num_rows() > 0 {
                chunks.push(chunk.with_sequence(sequence));
            }
            offset += length;
        }
        state.count_splits(chunks.len().saturating_sub(1));
        chunks.reverse();
        let Some(first) = chunks.pop() else { return batch };
        self.0 = chunks;
        first
    }
}
