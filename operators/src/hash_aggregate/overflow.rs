//! Groups that do not fit into memory: cut into units, and written to files.
//!
//! A sink that gets no memory for its table empties it into partial states, which are cut into batches of a unit each
//! where they are written, and spills all parts it has. A source that gets none while it merges a unit does the same with the unit, cut by
//! other bits of the hash, and merges the units of the unit after it. (Graefe, "Query Evaluation
//! Techniques for Large Databases", 1993: hybrid hashing, with recursion.)

use std::{ops::Range, sync::Arc};

use gatework_runtime::{
    Error, Result,
    pipeline::{Setup, ToSpill},
};
use gatework_shared_state::Gate;

use super::{
    config::Shared,
    groups::{Groups, Part, States, Uncut},
};
use crate::{
    batch_bytes::MAX_BATCH_BYTES,
    spilling::{Writing, Written, nothing_left},
};

/// Parts of groups, by unit, that go to files when memory is short.
pub(super) struct Overflow {
    shared: Arc<Shared>,
    setup: Setup,
    /// How often the groups have been cut into units before.
    level: u32,
    parts: Vec<Vec<Part>>,
    /// With the batches of each unit.
    writing: Writing<Vec<Range<usize>>>,
    spilled: bool,
}

impl Overflow {
    pub(super) fn new(shared: Arc<Shared>, setup: Setup, level: u32) -> Self {
        let parts = no_parts(&shared);
        let writing = Writing::new(setup.clone());
        Self { shared, setup, level, parts, writing, spilled: false }
    }

    /// Whether anything has been spilled.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled
    }

    /// Bytes that are reserved for parts in memory.
    pub(super) fn reserved(&self) -> usize {
        let states = |part: &Part| match part {
            Part::States(states) => states.reserved(),
            _ => 0,
        };
        self.parts.iter().flatten().map(states).sum()
    }

    /// Empties `groups` into parts; `more` may be to come.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if these take more memory than there is, although they are made.
    pub(super) fn partition(&mut self, groups: &mut Groups, more: bool) -> Result<()> {
        groups.partition(self.level, &mut self.parts, more)
    }

    /// Begins to write `groups` and all parts to a file because of `error`, unless that does not help.
    pub(super) fn spill(&mut self, groups: &mut Groups, error: Error) -> Result<()> {
        let bits = self.shared.units.trailing_zeros();
        // Groups whose hashes are equal so far are few, and large.
        if !self.setup.can_spill() || bits * (self.level + 1) > 60 {
            return Err(error);
        }
        let uncut = groups.take_uncut(self.level)?;
        match groups.let_go() {
            // What is written next gives memory back.
            Ok(()) | Err(Error::OutOfMemory { .. }) => {}
            Err(error) => return Err(error),
        }
        let counts = uncut.as_ref().map_or(Vec::new(), |(uncut, _)| uncut.counts());
        let (mut rows, mut ranges) = (counts.iter().sum::<usize>(), Vec::new());
        let bytes = uncut.as_ref().map_or(0, |(_, memory)| memory.bytes());
        let rows_of = |most: usize| most.saturating_mul(rows).checked_div(bytes).unwrap_or(rows);
        let most = rows_of(MOST_BYTES).max(LEAST_ROWS.min(rows_of(MAX_BATCH_BYTES))).max(1);
        let (mut batches, mut held, mut count) = (Vec::new(), Vec::new(), 0);
        let parts = std::mem::replace(&mut self.parts, no_parts(&self.shared));
        for (unit, parts) in parts.into_iter().enumerate() {
            let first = count;
            for part in parts {
                match part {
                    Part::States(mut states) => {
                        rows += states.len();
                        held.extend(states.take_reservation());
                        let cuts = states.cuts();
                        count += cuts.len();
                        batches.push(ToWrite::Part(states, cuts));
                    }
                    other => self.parts[unit].push(other),
                }
            }
            let groups = counts.get(unit).copied().unwrap_or(0);
            let starts = (0..groups).step_by(most);
            count += starts.len();
            batches.extend(starts.map(|start| ToWrite::Cut(unit, start..groups.min(start + most))));
            ranges.push(first..count);
        }
        if batches.is_empty() {
            return Err(error);
        }
        self.spilled = true;
        let shared = self.shared.clone();
        let uncut = uncut.map(|(uncut, memory)| {
            held.push(memory);
            uncut
        });
        self.writing.begin_each(rows, to_write(shared, batches, uncut), held, ranges)
    }

    /// The gate of a file that is still being written.
    pub(super) fn writing(&mut self) -> Result<Option<Gate>> {
        let (file, ranges) = match self.writing.poll()? {
            Written::Nothing => return Ok(None),
            Written::Blocked(gate) => return Ok(Some(gate)),
            Written::File(file, ranges) => (file, ranges),
        };
        for (parts, range) in self.parts.iter_mut().zip(ranges) {
            if !range.is_empty() {
                parts.push(Part::Spilled(file.clone(), range));
            }
        }
        Ok(None)
    }

    /// The parts of each unit.
    pub(super) fn take(&mut self) -> Vec<Vec<Part>> {
        std::mem::replace(&mut self.parts, no_parts(&self.shared))
    }
}

/// Bytes of groups that become one batch in a file, about: whoever writes it hears of a cancel between two.
const MOST_BYTES: usize = if cfg!(test) { 512 } else { 2 << 20 };
const LEAST_ROWS: usize = if cfg!(test) { 3 } else { 1024 };

/// What becomes batches in a file.
enum ToWrite {
    /// One for each range of the groups.
    Part(States, Vec<Range<usize>>),
    /// Some of the groups of a unit that have not been cut.
    Cut(usize, Range<usize>),
}

/// The batches, made where they are written: to cut millions of groups takes longer than a task may go on for.
fn to_write(shared: Arc<Shared>, batches: Vec<ToWrite>, uncut: Option<Uncut>) -> ToSpill {
    let mut units = Vec::new();
    Box::new(batches.into_iter().flat_map(move |batch| -> ToSpill {
        match (batch, &uncut) {
            (ToWrite::Part(states, cuts), _) => Box::new(states.into_batches(cuts, shared.clone())),
            (ToWrite::Cut(unit, range), Some(uncut)) => {
                if units.is_empty() {
                    units = uncut.indices();
                }
                Box::new(std::iter::once(uncut.cut_batch(&units[unit][range])))
            }
            (ToWrite::Cut(..), None) => Box::new(std::iter::once(Err(nothing_left()))),
        }
    }))
}

fn no_parts(shared: &Shared) -> Vec<Vec<Part>> {
    (0..shared.units).map(|_| Vec::new()).collect()
}
