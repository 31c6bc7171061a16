//! Divides a batch into smaller ones: by rows, or by selections of its rows.

use arrow_buffer::BooleanBuffer;

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
        let mut chunks = match state.batch_rows() {
            Some(rows) => slices(&batch, rows),
            None if state.selects_rows() => halves(&batch),
            None => return batch,
        };
        state.count_splits(&batch, chunks.len().saturating_sub(1));
        chunks.reverse();
        let Some(first) = chunks.pop() else { return batch };
        self.0 = chunks;
        first
    }
}

/// Returns slices of `batch` of at most `rows` rows.
fn slices(batch: &Batch, rows: usize) -> Vec<Batch> {
    if batch.num_physical_rows() <= rows {
        return Vec::new();
    }
    let data = batch.data();
    let slice = |offset: usize| {
        let length = rows.min(data.num_rows() - offset);
        let slice = data.slice(offset, length);
        match batch.selection() {
            Some(selection) => Batch::with_selection(slice, selection.slice(offset, length)),
            None => Batch::new(slice),
        }
    };
    let slices = (0..data.num_rows()).step_by(rows).map(slice);
    // The driver would only skip a chunk without selected rows.
    let slices = slices.filter(|chunk| chunk.num_rows() > 0);
    slices.map(|chunk| chunk.with_sequence(batch.sequence())).collect()
}

/// Returns all columns of `batch` twice: first with the first half of its rows selected, then with
/// the second half. An operator that ignores selections sees each row twice.
fn halves(batch: &Batch) -> Vec<Batch> {
    let (rows, physical) = (batch.num_rows(), batch.num_physical_rows());
    if rows < 2 {
        return Vec::new();
    }
    let is_selected = |row: usize| batch.selection().is_none_or(|selection| selection.value(row));
    let last = (0..physical).filter(|row| is_selected(*row)).nth(rows / 2 - 1).unwrap_or(0);
    let half = |first: bool| {
        let keep = |row: usize| is_selected(row) && (row <= last) == first;
        let selection = BooleanBuffer::collect_bool(physical, keep);
        Batch::with_selection(batch.data().clone(), selection).with_sequence(batch.sequence())
    };
    vec![half(true), half(false)]
}
