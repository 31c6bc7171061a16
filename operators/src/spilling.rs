//! What breakers that spill share.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    datatypes::DataType,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Pending, Reservation, Setup, Spilled},
};
use gatework_shared_state::Gate;

use crate::OrFail;

/// What a task that can spill may hold without a reservation while others hold all there is: to spill
/// so little would not help.
const OVERDRAFT_BYTES: usize = 256 << 10;

/// Resizes `reservation` to `bytes`, which may be too little for a state that `can_spill` and is small.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn resize(reservation: &mut Reservation, bytes: usize, can_spill: bool) -> Result<()> {
    match reservation.resize(bytes) {
        Err(Error::OutOfMemory { .. }) if can_spill && bytes < OVERDRAFT_BYTES => Ok(()),
        other => other,
    }
}

/// `columns` without what the buffers of views hold besides their own values.
pub(crate) fn own_buffers(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => column.clone(),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns.collect(), &options).or_fail()
}

/// A file that a breaker has written, at most one at a time; with each goes a `T`.
pub(crate) struct Writing<T> {
    setup: Setup,
    pending: Option<(Pending<Arc<dyn Spilled>>, T)>,
}

/// How a file is getting on.
pub(crate) enum Written<T> {
    /// There is none.
    Nothing,
    /// It is not done before this opens.
    Blocked(Gate),
    /// It is done.
    File(Arc<dyn Spilled>, T),
}

impl<T> Writing<T> {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { setup, pending: None }
    }

    /// Begins to write `batches`, whose memory is `held`. The file before must be done.
    pub(crate) fn begin(
        &mut self,
        batches: Vec<RecordBatch>,
        held: Vec<Reservation>,
        with: T,
    ) -> Result<()> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        self.setup.metrics().add("spilled rows", rows as u64);
        self.pending = Some((self.setup.spill(batches, held)?, with));
        Ok(())
    }

    /// Whether one has been begun and not been asked for since.
    pub(crate) fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    /// The file, once it is done.
    pub(crate) fn poll(&mut self) -> Result<Written<T>> {
        let Some((pending, with)) = self.pending.take() else { return Ok(Written::Nothing) };
        let Some(file) = pending.take() else {
            let gate = pending.gate().clone();
            self.pending = Some((pending, with));
            return Ok(Written::Blocked(gate));
        };
        let file = file?;
        self.setup.metrics().add("spilled bytes", file.bytes());
        Ok(Written::File(file, with))
    }
}
