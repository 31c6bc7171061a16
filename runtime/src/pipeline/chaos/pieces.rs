//! A batch cut into tiny ones.

use super::part::Part;
use crate::pipeline::Batch;

/// Pieces that have not been handed out, the next one last.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Batch>);

impl Pieces {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Batch> {
        self.0.pop()
    }

    /// Cuts `batch` and answers the first piece; the others are kept.
    pub(super) fn cut(&mut self, batch: Batch, part: &Part) -> Batch {
        let Some(rows) = part.batch_rows() else { return batch };
        if batch.physical_rows() <= rows {
            return batch;
        }
        let sequence = batch.sequence();
        let (data, selection) = batch.clone().into_parts();
        let mut offset = 0;
        let mut pieces = Vec::new();
        while offset < data.num_rows() {
            let length = rows.min(data.num_rows() - offset);
            let slice = data.slice(offset, length);
            let piece = match &selection {
                Some(selection) => Batch::with_selection(slice, selection.slice(offset, length)),
                None => Batch::new(slice),
            };
            // A piece of which nothing is selected would only be skipped by the driver.
            if piece.rows() > 0 {
                pieces.push(piece.at(sequence));
            }
            offset += length;
        }
        part.count_cuts(pieces.len().saturating_sub(1));
        pieces.reverse();
        let Some(first) = pieces.pop() else { return batch };
        self.0 = pieces;
        first
    }
}
