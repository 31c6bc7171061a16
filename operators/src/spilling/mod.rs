//! What breakers that spill share.

mod units;

pub(crate) use units::{LEVELS, SpilledPart, UnitSet, Units, unit_of};

use std::{collections::VecDeque, ops::Range, sync::Arc};

use arrow::array::{RecordBatch, RecordBatchOptions};
use gatework_runtime::{
    Error, Result,
    pipeline::{Pending, Reservation, Setup, Spilled, ToSpill},
};
use gatework_shared_state::Gate;

use crate::{OrFail, concat::gather_views};

/// Resizes `reservation` to `bytes`; so few that it would not help to spill them are there without one.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn resize(reservation: &mut Reservation, bytes: usize, overdraft: usize) -> Result<()> {
    match reservation.resize(bytes) {
        Err(Error::OutOfMemory { .. }) if bytes < overdraft => Ok(()),
        other => other,
    }
}

/// Memory of one that cannot spill what it holds. What is refused is owed until others have given some back.
pub(crate) struct Debt {
    setup: Setup,
    reservation: Reservation,
    owed: usize,
}

impl Debt {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { reservation: setup.reservation(), setup, owed: 0 }
    }

    /// Reserves `bytes` more for what is held already. [`settle`](Self::settle) is to follow.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<()> {
        self.set(self.reservation.bytes() + self.owed + bytes)
    }

    /// Reserves `bytes` in all. [`settle`](Self::settle) is to follow.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<()> {
        self.owed = 0;
        match self.reservation.resize(bytes) {
            Err(Error::OutOfMemory { .. }) => self.owed = bytes - self.reservation.bytes(),
            other => other?,
        }
        Ok(())
    }

    /// Where to wait before more is taken.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if nobody else has memory to give back.
    pub(crate) fn settle(&mut self) -> Result<Option<Gate>> {
        match self.reservation.grow(self.owed) {
            Ok(()) => self.owed = 0,
            Err(error @ Error::OutOfMemory { .. }) => {
                return self.setup.ask_for_memory(self.owed).map(Some).ok_or(error);
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Owes nothing any more, since what was refused is about to be handed on. Whether anything was.
    pub(crate) fn forgive(&mut self) -> bool {
        std::mem::take(&mut self.owed) > 0
    }

    /// All that is reserved.
    pub(crate) fn reservation(&mut self) -> &mut Reservation {
        &mut self.reservation
    }
}

/// Why something is spilled that nobody was refused memory for, in case that it cannot be.
pub(crate) fn nothing_left() -> Error {
    Error::Setup("nothing is left to be spilled".into())
}

/// `columns` without what the buffers of views hold besides their own values.
pub(crate) fn own_buffers(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(gather_views);
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
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        self.begin_each(rows, Box::new(batches.into_iter().map(Ok)), held, with)
    }

    /// Begins to write `rows` rows in batches that are made as they are written.
    pub(crate) fn begin_each(
        &mut self,
        rows: usize,
        batches: ToSpill,
        held: Vec<Reservation>,
        with: T,
    ) -> Result<()> {
        debug_assert!(self.pending.is_none(), "the file before would be lost");
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

/// Spilled batches in turn, some of them read ahead.
pub(crate) struct Reading {
    setup: Setup,
    left: VecDeque<(Arc<dyn Spilled>, usize)>,
    ahead: VecDeque<Pending<RecordBatch>>,
}

/// What comes next of spilled batches.
pub(crate) enum Read {
    /// A batch.
    Batch(RecordBatch),
    /// It is not there before this opens.
    Blocked(Gate),
    /// There is none.
    End,
}

const READ_AHEAD: usize = 2;

impl Reading {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { setup, left: VecDeque::new(), ahead: VecDeque::new() }
    }

    /// Appends `batches` of `file`.
    pub(crate) fn push(&mut self, file: &Arc<dyn Spilled>, batches: Range<usize>) {
        self.left.extend(batches.map(|batch| (file.clone(), batch)));
    }

    /// The next batch.
    pub(crate) fn next(&mut self) -> Result<Read> {
        while self.ahead.len() < READ_AHEAD
            && let Some((file, batch)) = self.left.pop_front()
        {
            self.ahead.push_back(self.setup.unspill(&file, batch));
        }
        let Some(next) = self.ahead.front() else { return Ok(Read::End) };
        let Some(batch) = next.take() else { return Ok(Read::Blocked(next.gate().clone())) };
        self.ahead.pop_front();
        Ok(Read::Batch(batch?))
    }
}
