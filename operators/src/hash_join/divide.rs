//! The left side of a join that does not fit: rows are cut into units by bits of their keys' hashes, and
//! some of the units go to files.
//!
//! Which ones is the whole join's choice, so that a probe row knows where its matches are: whoever is
//! short of memory adds units to the set, and every build task writes what it has of them. Rows of the
//! others become the table. (Hybrid hash join: DeWitt et al., "Implementation Techniques for Main Memory
//! Database Systems", 1984.)

use std::{fmt, mem, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use gatework_runtime::{Error, Result, pipeline::Setup};
use gatework_shared_state::Gate;

use super::{
    collected::Collected,
    config::Shared,
    index::Index,
    table::{Bounds, Joined, Table, merge_bounds},
};
use crate::spilling::{SpilledPart, UnitSet, Units};

/// What one build task has of the left side.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) rows: Collected,
    /// Rows in files, by unit, and the units that all rows are in files of; empty if nothing was spilled.
    pub(super) away: Vec<Vec<SpilledPart>>,
    pub(super) away_set: UnitSet,
    /// Bounds per key, if they are noted and known.
    pub(super) bounds: Option<Bounds>,
    pub(super) has_null: bool,
}

/// What a join's table is made of: parts, and a table that somebody began to make, who has left.
#[derive(Debug)]
pub(super) enum Offered {
    Part(Box<Part>),
    Begun(Box<Preparing>),
}

/// Cuts rows of the left side into units.
pub(super) struct Divider {
    shared: Arc<Shared>,
    units: Units,
    /// Rows that were collected before.
    todo: Option<Collected>,
    away: Vec<Vec<SpilledPart>>,
}

impl Divider {
    /// Cuts what was `collected`, and more; rows `away` are in files already.
    pub(super) fn new(
        shared: Arc<Shared>,
        setup: Setup,
        collected: Collected,
        away: Vec<Vec<SpilledPart>>,
    ) -> Self {
        let units = Units::new(setup, 0, Index::MOST_ROW_BYTES);
        Self { shared, units, todo: Some(collected), away }
    }

    /// Adds rows of the left side. [`settle`](Self::settle) is to follow.
    pub(super) fn add(&mut self, kept: &RecordBatch, keys: Vec<ArrayRef>) -> Result<()> {
        let (rows, hashes) = self.shared.to_divide(kept, keys)?;
        self.units.add(rows, &hashes, None)
    }

    /// The rows, as they are cut.
    pub(super) fn units(&mut self) -> &mut Units {
        &mut self.units
    }

    /// Goes on; a gate: to be called again. With `end`, all rows are where they belong afterwards.
    pub(super) fn settle(&mut self, end: bool) -> Result<Option<Gate>> {
        let shared = self.shared.clone();
        loop {
            let gate = self.units.settle(
                || shared.away(),
                |set| shared.send_more_away(set),
                end && self.todo.is_none(),
            )?;
            if gate.is_some() {
                return Ok(gate);
            }
            let Some(todo) = &mut self.todo else { return Ok(None) };
            match todo.take(&shared)? {
                Some((rows, hashes, held)) => self.units.add(rows, &hashes, Some(held))?,
                None => self.todo = None,
            }
        }
    }

    /// After all is settled: the rows that stay, in `kept`, and those in files.
    pub(super) fn take(self) -> Result<(Collected, Vec<Vec<SpilledPart>>)> {
        let setup = self.units.setup().clone();
        let mut kept = Collected::new(&self.shared, setup.reservation());
        let (here, mut away) = self.units.take();
        for (rows, held) in here {
            kept.push_divided(&self.shared, &rows)?;
            kept.reservation.absorb(held);
        }
        // It is reserved but for what is needed while columns are copied.
        match kept.reserve(&self.shared, 0) {
            Err(Error::OutOfMemory { .. }) => {}
            other => other?,
        }
        for (away, before) in away.iter_mut().zip(self.away) {
            away.extend(before);
        }
        Ok((kept, away))
    }
}

/// Makes one table of all parts, after rows of units that others sent away have been as well.
pub(super) struct Preparing {
    shared: Arc<Shared>,
    setup: Setup,
    parts: Vec<Part>,
    /// With the bounds of the part, and whether it has a NULL.
    dividing: Option<(Divider, Option<Bounds>, bool)>,
}

impl fmt::Debug for Preparing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preparing").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// How the table is getting on.
pub(super) enum Prepared {
    /// Not before this opens.
    Blocked(Gate),
    /// There it is, with the number of its build units.
    Table(Joined, usize),
}

impl Preparing {
    /// What is to be made of these; what is begun already goes on.
    pub(super) fn new(shared: Arc<Shared>, setup: Setup, offered: Vec<Offered>) -> Box<Self> {
        let mut preparing = Box::new(Self { shared, setup, parts: Vec::new(), dividing: None });
        for one in offered {
            match one {
                Offered::Part(part) => preparing.parts.push(*part),
                Offered::Begun(begun) => preparing = begun,
            }
        }
        preparing
    }

    pub(super) fn go_on(&mut self) -> Result<Prepared> {
        loop {
            let away_set = self.shared.away();
            if let Some((divider, _, _)) = &mut self.dividing
                && let Some(gate) = divider.settle(true)?
            {
                return Ok(Prepared::Blocked(gate));
            }
            if let Some((divider, bounds, has_null)) = self.dividing.take() {
                let (rows, away) = divider.take()?;
                self.parts.push(Part { rows, away, away_set, bounds, has_null });
                continue;
            }
            if let Some(at) = self.parts.iter().position(|part| part.away_set != away_set) {
                let part = self.parts.swap_remove(at);
                let divider =
                    Divider::new(self.shared.clone(), self.setup.clone(), part.rows, part.away);
                self.dividing = Some((divider, part.bounds, part.has_null));
                continue;
            }
            let mut part = self.merge(away_set);
            let can_spill = self.shared.can_spill(&self.setup);
            let overdraft = if can_spill { self.setup.overdraft() } else { 0 };
            match part.rows.reserve(&self.shared, overdraft) {
                // One table may need more than its parts reserved: an index over keys that lie far apart.
                Err(Error::OutOfMemory { .. }) if can_spill && away_set != UnitSet::ALL => {
                    self.shared.send_more_away(away_set);
                    self.parts.push(part);
                    continue;
                }
                // All rows are in files, and an empty table is small.
                Err(Error::OutOfMemory { .. }) if can_spill => {}
                other => other?,
            }
            let (table, units) = Table::prepare(&self.shared, part.rows, can_spill)?;
            let joined = Joined::new(&self.shared, table, part.bounds, part.has_null, part.away);
            return Ok(Prepared::Table(joined, units));
        }
    }

    /// All parts as one.
    fn merge(&mut self, away_set: UnitSet) -> Part {
        let mut rows = Collected::new(&self.shared, self.setup.reservation());
        let (mut away, mut bounds, mut has_null) = (Vec::new(), None, false);
        for (number, mut part) in mem::take(&mut self.parts).into_iter().enumerate() {
            rows.append(part.rows);
            bounds = if number == 0 { part.bounds } else { merge_bounds(bounds, part.bounds) };
            has_null |= part.has_null;
            away.resize_with(away.len().max(part.away.len()), Vec::new);
            for (all, parts) in away.iter_mut().zip(&mut part.away) {
                all.append(parts);
            }
        }
        Part { rows, away, away_set, bounds, has_null }
    }
}
