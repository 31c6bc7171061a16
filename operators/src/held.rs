//! The producer's end of a buffer between pipelines: batches on their way into it.

use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Fetch, Held, Setup, SinkResult, SourceResult, Taken},
};
use gatework_shared_state::{Budget, Gate, Give, OnFull, Take};

use arrow::array::RecordBatch;

use crate::{
    result::answer,
    spilling::{Writing, Written, own_buffers},
};

/// Charges what goes into a buffer that overflows, and puts away what gets no memory. A `T` says where in
/// the buffer a batch goes.
pub(crate) struct Holding<T> {
    budget: Budget,
    setup: Setup,
    /// With the batches, and their place in the order.
    writing: Writing<(Vec<Sent<T>>, u64)>,
}

/// A batch that is being written: where it goes in the buffer, its rows and its bytes.
struct Sent<T>(T, usize, usize);

/// What is to be done with batches.
pub(crate) enum Settled<T> {
    /// They go into the buffer.
    Ready(Vec<(T, Held)>),
    /// They are being put away until this opens.
    Blocked(Gate),
    /// There are none.
    Nothing,
}

impl<T> Holding<T> {
    /// For a buffer with this budget, on behalf of the operator of `setup`.
    pub(crate) fn new(budget: Budget, setup: Setup) -> Self {
        Self { budget, writing: Writing::new(setup.clone()), setup }
    }

    /// Holds the parts of a batch that has place `sequence` in its order.
    pub(crate) fn hold(
        &mut self,
        parts: Vec<(T, RecordBatch)>,
        sequence: u64,
    ) -> Result<Settled<T>> {
        let batches = parts.into_iter().map(|(to, rows)| (to, Batch::new(rows).at(sequence)));
        if self.budget.on_full() == OnFull::Block {
            return Ok(Settled::Ready(batches.map(|(to, batch)| (to, batch.into())).collect()));
        }
        let batches: Vec<_> = batches.map(|(to, batch)| (to, batch.bytes(), batch)).collect();
        let mut charge = self.setup.reservation();
        match charge.grow(batches.iter().map(|(_, bytes, _)| bytes).sum()) {
            Ok(()) => {
                let charged =
                    |(to, bytes, batch)| (to, Held::charged(batch, charge.split_some(bytes)));
                Ok(Settled::Ready(batches.into_iter().map(charged).collect()))
            }
            Err(Error::OutOfMemory { .. }) if self.setup.can_spill() => {
                let (mut places, mut rows) = (Vec::new(), Vec::new());
                for (to, bytes, batch) in batches {
                    places.push(Sent(to, batch.rows(), bytes));
                    rows.push(own_buffers(batch.data())?);
                }
                self.writing.begin(rows, Vec::new(), (places, sequence))?;
                self.settle()
            }
            Err(error) => Err(error),
        }
    }

    /// What has become of batches that were being put away.
    pub(crate) fn settle(&mut self) -> Result<Settled<T>> {
        Ok(match self.writing.poll()? {
            Written::Nothing => Settled::Nothing,
            Written::Blocked(gate) => Settled::Blocked(gate),
            Written::File(file, (places, sequence)) => {
                let places = places.into_iter().enumerate();
                let away = |(number, Sent(to, rows, bytes))| {
                    (to, Held::away(file.clone(), number, rows, sequence).counted(bytes))
                };
                Settled::Ready(places.map(away).collect())
            }
        })
    }
}

impl<T> Settled<T> {
    /// Hands what goes into the buffer to `push`, one after the other, and gives the sink's answer: what the
    /// last push said; without one, what `push` says of the room there is.
    pub(crate) fn answer(self, mut push: impl FnMut(Option<(T, Held)>) -> Give) -> SinkResult {
        match self {
            Self::Blocked(gate) => SinkResult::Blocked(gate.into()),
            Self::Nothing => answer(push(None)),
            Self::Ready(parts) => {
                let said = parts.into_iter().map(|part| push(Some(part))).last();
                answer(said.unwrap_or_else(|| push(None)))
            }
        }
    }
}

/// The next batch out of a buffer, as a source answers it.
pub(crate) fn next(fetch: &mut Fetch, take: impl FnOnce() -> Take<Held>) -> Result<SourceResult> {
    Ok(match fetch.next(take)? {
        Taken::Batch(batch) => SourceResult::Batch(batch),
        Taken::Blocked(gate) => SourceResult::Blocked(gate.into()),
        Taken::Finished => SourceResult::Finished,
        Taken::Aborted => return Err(Error::ProducerAborted),
    })
}
