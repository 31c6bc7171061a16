//! A batch that waits in a buffer between pipelines, in memory or put away.
//!
//! A buffer that blocks its producers is small by its budget. One that does not, because waiting would close
//! a cycle, charges what it holds to the query; what gets no memory is put away, and is fetched back by
//! whoever takes it out.

use std::sync::Arc;

use arrow_array::RecordBatch;
use gatework_shared_state::{Gate, Payload, Take};

use super::{Batch, Pending, QueryContext, Reservation, Setup, Spilled, live::LiveCount};
use crate::Result;

/// A batch in a buffer. Clones share what is charged for it, and its place in a file.
#[derive(Debug, Clone)]
pub struct Held {
    rows: usize,
    bytes: usize,
    sequence: u64,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Here {
        batch: Batch,
        _charge: Option<Arc<Reservation>>,
    },
    /// Batch number `.1` of what was put away.
    Away(Arc<dyn Spilled>, usize),
}

impl Held {
    /// A batch in memory that was reserved for it.
    pub fn charged(batch: Batch, charge: Reservation) -> Self {
        let place = Place::Here { batch: batch.clone(), _charge: Some(Arc::new(charge)) };
        Self { place, ..batch.into() }
    }

    /// Batch number `number` of `file`, of so many rows, at place `sequence` of its morsel's order.
    pub fn away(file: Arc<dyn Spilled>, number: usize, rows: usize, sequence: u64) -> Self {
        Self { rows, bytes: 0, sequence, place: Place::Away(file, number) }
    }

    /// The batch with its size, by which a buffer that blocks its producers counts it also while it is in
    /// a file: a buffer does not grow without bound because memory is short.
    #[must_use]
    pub fn counted(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

impl From<Batch> for Held {
    fn from(batch: Batch) -> Self {
        Self {
            rows: batch.rows(),
            bytes: batch.bytes(),
            sequence: batch.sequence(),
            place: Place::Here { batch, _charge: None },
        }
    }
}

impl Payload for Held {
    fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that a buffer counts it with.
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What comes next out of a buffer.
#[derive(Debug)]
pub enum Taken {
    /// A batch, for the pipeline behind the buffer.
    Batch(Batch),
    /// Nothing before this opens.
    Blocked(Gate),
    /// Nothing any more.
    Finished,
    /// The producers were aborted.
    Aborted,
}

/// The consumer's end of a buffer: fetches back what was put away.
#[derive(Debug)]
pub struct Fetch {
    query: Arc<QueryContext>,
    /// Of the task that fetches; a reader outside has none.
    region: Option<Arc<LiveCount>>,
    fetching: Option<(Pending<RecordBatch>, u64)>,
}

impl Fetch {
    /// For a source.
    pub fn new(setup: &Setup) -> Self {
        let region = Some(setup.region.clone());
        Self { query: setup.query.clone(), region, fetching: None }
    }

    /// For the reader of a query's result.
    pub(super) fn outside(query: &Arc<QueryContext>) -> Self {
        Self { query: query.clone(), region: None, fetching: None }
    }

    /// The next batch that `take` has.
    ///
    /// # Errors
    /// If one that was put away cannot be read.
    pub fn next(&mut self, take: impl FnOnce() -> Take<Held>) -> Result<Taken> {
        if self.fetching.is_none() {
            match take() {
                Take::Item(Held { place: Place::Here { batch, .. }, .. }) => {
                    return Ok(Taken::Batch(batch));
                }
                Take::Item(Held { place: Place::Away(file, number), sequence, .. }) => {
                    let pending = self.query.unspill(&file, number, self.region.as_ref());
                    self.fetching = Some((pending, sequence));
                }
                Take::Blocked(gate) => return Ok(Taken::Blocked(gate)),
                Take::Finished => return Ok(Taken::Finished),
                Take::Aborted => return Ok(Taken::Aborted),
            }
        }
        let Some((pending, sequence)) = self.fetching.take() else { return Ok(Taken::Finished) };
        match pending.take() {
            Some(rows) => Ok(Taken::Batch(Batch::new(rows?).at(sequence))),
            None => {
                let gate = pending.gate().clone();
                self.fetching = Some((pending, sequence));
                Ok(Taken::Blocked(gate))
            }
        }
    }
}
