//! Rows cut into units by bits of their hash, of which some go to files.
//!
//! Rows are collected until there is a few megabytes of them; then each unit gets a batch with buffers of
//! its own, so that a unit that is spilled gives all of its memory back. Rows that are cut again take
//! other bits (a *level*).

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, Reservation, Setup, Spilled},
};
use gatework_shared_state::Gate;

use super::{Writing, Written, own_buffers, resize};
use crate::{OrFail, concat::concat_rows, keys::partition_indices};

const BITS: u32 = 5;

/// How many units rows are cut into.
pub(crate) const UNITS: usize = 1 << BITS;

/// How often rows can be cut: tables take the lower half of a hash, and its upper four bits.
pub(crate) const LEVELS: u32 = 5;

/// The unit of rows with `hash` among those that are cut at `level`.
pub(crate) fn unit_of(hash: u64, level: u32) -> usize {
    (hash >> (60 - BITS * (level + 1))) as usize & (UNITS - 1)
}

/// Some of the units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct UnitSet(pub(crate) u32);

impl UnitSet {
    /// All of them.
    pub(crate) const ALL: Self = Self(u32::MAX);

    /// Whether there is none.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `unit` is among them.
    pub(crate) fn contains(self, unit: usize) -> bool {
        self.0 >> unit & 1 == 1
    }

    /// Their numbers.
    pub(crate) fn units(self) -> impl Iterator<Item = usize> {
        (0..UNITS).filter(move |unit| self.contains(*unit))
    }

    /// These and more: half of all first, then a quarter of those that are left.
    pub(crate) fn extended(self) -> Self {
        let left = self.0.count_zeros();
        let more = if self.is_empty() { left / 2 } else { left.div_ceil(4) };
        let added = (0..UNITS).filter(|unit| !self.contains(*unit)).take(more as usize);
        Self(added.fold(self.0, |set, unit| set | 1 << unit))
    }
}

/// Rows of one unit in a file.
#[derive(Debug, Clone)]
pub(crate) struct SpilledPart {
    pub(crate) file: Arc<dyn Spilled>,
    pub(crate) batches: Range<usize>,
    pub(crate) rows: usize,
}

/// Rows that are collected until they are cut.
const GROUP_BYTES: usize = 4 << 20;

/// One task's rows, by unit.
pub(crate) struct Units {
    setup: Setup,
    level: u32,
    /// What a row in memory costs besides its own bytes.
    row_bytes: usize,
    /// Rows that have not been cut, and the unit of each.
    staged: Vec<RecordBatch>,
    unit_of_row: Vec<u8>,
    staged_bytes: usize,
    memory: Reservation,
    /// There was no memory for what is there.
    short: bool,
    here: Vec<Vec<(RecordBatch, Reservation)>>,
    /// Bytes that are reserved for those.
    here_bytes: usize,
    away: Vec<Vec<SpilledPart>>,
    /// With the unit, the batches and the rows of each part of the file.
    writing: Writing<Vec<(usize, Range<usize>, usize)>>,
}

impl Units {
    /// No rows, to be cut at `level`.
    pub(crate) fn new(setup: Setup, level: u32, row_bytes: usize) -> Self {
        Self {
            level,
            row_bytes,
            staged: Vec::new(),
            unit_of_row: Vec::new(),
            staged_bytes: 0,
            memory: setup.reservation(),
            short: false,
            here: (0..UNITS).map(|_| Vec::new()).collect(),
            here_bytes: 0,
            away: (0..UNITS).map(|_| Vec::new()).collect(),
            writing: Writing::new(setup.clone()),
            setup,
        }
    }

    /// Adds `rows`, of which `held` may be reserved already. [`settle`](Self::settle) is to follow.
    pub(crate) fn add(
        &mut self,
        rows: RecordBatch,
        hashes: &[u64],
        held: Option<Reservation>,
    ) -> Result<()> {
        debug_assert_eq!(rows.num_rows(), hashes.len());
        self.staged_bytes += Batch::new(rows.clone()).bytes();
        self.unit_of_row.extend(hashes.iter().map(|hash| unit_of(*hash, self.level) as u8));
        self.staged.push(rows);
        if let Some(held) = held {
            self.memory.absorb(held);
        }
        let wanted = self.staged_bytes.max(self.memory.bytes());
        match resize(&mut self.memory, wanted, self.setup.overdraft()) {
            Err(Error::OutOfMemory { .. }) => self.short = true,
            other => other?,
        }
        Ok(())
    }

    /// Cuts what there is a group of, or all if it is the `end`, and writes the rows of the units that
    /// `away` names, which `more` extends if the others do not fit. A gate: to be called again.
    pub(crate) fn settle(
        &mut self,
        away: impl Fn() -> UnitSet,
        more: impl Fn(UnitSet),
        end: bool,
    ) -> Result<Option<Gate>> {
        loop {
            let set = away();
            let stale = set.units().any(|unit| !self.here[unit].is_empty());
            let full = self.staged_bytes >= GROUP_BYTES;
            let rest = end && (!self.staged.is_empty() || self.writing.is_busy());
            if !(stale || full || rest || self.short) {
                return Ok(None);
            }
            if let Some(gate) = self.writing()? {
                return Ok(Some(gate));
            }
            match self.cut(set) {
                Ok(()) => {}
                // All of the rows that were refused memory are there.
                Err(Error::OutOfMemory { .. }) if set != UnitSet::ALL => {
                    self.short = true;
                    more(set);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does the same with all units.
    pub(crate) fn settle_all(&mut self, end: bool) -> Result<Option<Gate>> {
        self.settle(|| UnitSet::ALL, |_| {}, end)
    }

    /// Cuts all rows, and begins to write those of `set`.
    fn cut(&mut self, set: UnitSet) -> Result<()> {
        self.short = false;
        let (mut batches, mut held, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for unit in set.units() {
            let first = batches.len();
            let mut rows = 0;
            for (batch, reservation) in self.here[unit].drain(..) {
                rows += batch.num_rows();
                self.here_bytes -= reservation.bytes();
                batches.push(batch);
                held.push(reservation);
            }
            if rows > 0 {
                parts.push((unit, first..batches.len(), rows));
            }
        }
        let mut refused = None;
        if !self.staged.is_empty() {
            let staged = concat_rows(&std::mem::take(&mut self.staged))?;
            let of_rows = std::mem::take(&mut self.unit_of_row);
            self.staged_bytes = 0;
            let indices = partition_indices(of_rows.iter().map(|unit| usize::from(*unit)), UNITS);
            for (unit, indices) in indices.into_iter().enumerate() {
                if indices.is_empty() {
                    continue;
                }
                let rows = take_record_batch(&staged, &UInt32Array::from(indices)).or_fail()?;
                let rows = own_buffers(&rows)?;
                let (count, bytes) = (rows.num_rows(), Batch::new(rows.clone()).bytes());
                let mut reservation = self.memory.split_some(bytes);
                if set.contains(unit) {
                    parts.push((unit, batches.len()..batches.len() + 1, count));
                    batches.push(rows);
                    held.push(reservation);
                    continue;
                }
                let wanted = bytes + count * self.row_bytes;
                match reservation.resize(wanted.max(reservation.bytes())) {
                    Err(error @ Error::OutOfMemory { .. }) => refused = Some(error),
                    other => other?,
                }
                self.here_bytes += reservation.bytes();
                self.here[unit].push((rows, reservation));
            }
        }
        self.memory.resize(0)?;
        if !batches.is_empty() {
            self.writing.begin(batches, held, parts)?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// The gate of a file that is still being written.
    fn writing(&mut self) -> Result<Option<Gate>> {
        match self.writing.poll()? {
            Written::Nothing => {}
            Written::Blocked(gate) => return Ok(Some(gate)),
            Written::File(file, parts) => {
                for (unit, batches, rows) in parts {
                    self.away[unit].push(SpilledPart { file: file.clone(), batches, rows });
                }
            }
        }
        Ok(None)
    }

    /// After all is settled: the rows that are in memory, and those in files by unit.
    pub(crate) fn take(self) -> (Vec<(RecordBatch, Reservation)>, Vec<Vec<SpilledPart>>) {
        debug_assert!(self.staged.is_empty() && !self.writing.is_busy());
        (self.here.into_iter().flatten().collect(), self.away)
    }

    /// Bytes that are reserved for rows that have been cut, and are in memory.
    pub(crate) fn reserved(&self) -> usize {
        self.here_bytes
    }

    /// Whether rows are on their way to a file.
    pub(crate) fn is_writing(&mut self) -> Result<bool> {
        Ok(self.writing()?.is_some())
    }

    /// What they were made with.
    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_extended_until_it_is_whole() {
        let mut sets = vec![UnitSet::default()];
        while sets.last() != Some(&UnitSet::ALL) {
            let last = sets[sets.len() - 1];
            assert_eq!(last.extended().0 & last.0, last.0);
            sets.push(last.extended());
        }
        assert_eq!(sets[1].units().count(), UNITS / 2);
        assert!(sets.len() < 16, "{}", sets.len());
        assert_eq!(UnitSet::ALL.extended(), UnitSet::ALL);
    }

    #[test]
    fn levels_take_bits_of_their_own() {
        for level in 0..LEVELS {
            let hash = 21 << (60 - BITS * (level + 1));
            let units: Vec<usize> = (0..LEVELS).map(|level| unit_of(hash, level)).collect();
            assert!(
                units.iter().enumerate().all(|(at, unit)| (*unit == 21) == (at == level as usize))
            );
            assert!((1 << 32..1 << 60).contains(&hash));
        }
    }
}
