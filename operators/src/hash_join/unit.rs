//! Joins of units that are in files, one by one.
//!
//! The left rows of a unit are read into a table, the right rows are looked up, then the table is drained.
//! If the left rows do not fit, both sides are cut by other bits of the hash, and what comes of that is
//! joined in turn. If that does not help, because most rows have one key, the left rows are joined in
//! pieces that fit, each with all right rows; which of these found a match is kept from piece to piece.

use std::sync::Arc;

use arrow::buffer::BooleanBuffer;
use gatework_runtime::{
    Error, Result,
    pipeline::{Batch, OperatorResult, Setup, TaskContext},
};
use gatework_shared_state::Gate;

use super::{
    collected::Collected,
    config::Shared,
    drain::Drained,
    probing::{NextPairs, Probing},
    table::Table,
};
use crate::spilling::{LEVELS, Read, Reading, SpilledPart, Units};

/// Rows of both sides that match nothing elsewhere.
struct Unit {
    build: Vec<SpilledPart>,
    probe: Vec<SpilledPart>,
    /// By which bits they have been cut.
    level: u32,
    /// Whether cutting them again may help.
    divisible: bool,
}

/// What comes next of units.
pub(super) enum Next {
    /// Rows.
    Batch(Batch),
    /// Nothing before this opens.
    Blocked(Gate),
    /// Nothing.
    End,
}

/// What is being done.
enum Phase {
    /// The left rows are read.
    Load(Collected),
    /// They did not fit: they are cut.
    DivideBuild(Units, Option<Collected>),
    /// So are the right rows.
    DivideProbe(Units, Vec<Vec<SpilledPart>>),
    /// The right rows are looked up in a table, with the one at hand and the number of the next.
    Probe(Table, Reading, Option<Box<Probing>>, usize),
    /// Left rows are given: those at hand, and from this drain unit on.
    Drain(Table, Drained, usize),
    /// Nothing any more.
    Done,
}

/// A unit that is being joined.
struct Joining {
    unit: Unit,
    /// What is being read: left rows, or right rows that are to be cut.
    reading: Reading,
    phase: Phase,
    /// Which right rows have found a match so far, batch by batch, if there are several pieces.
    matched: Vec<BooleanBuffer>,
    /// No left rows are left behind those at hand.
    last: bool,
}

/// Joins a unit, and the units that come of it.
pub(super) struct UnitJoin {
    shared: Arc<Shared>,
    setup: Setup,
    units: Vec<Unit>,
    joining: Option<Box<Joining>>,
}

fn reading(setup: &Setup, parts: &[SpilledPart]) -> Reading {
    let mut reading = Reading::new(setup.clone());
    for part in parts {
        reading.push(&part.file, part.batches.clone());
    }
    reading
}

fn rows(parts: &[SpilledPart]) -> usize {
    parts.iter().map(|part| part.rows).sum()
}

impl UnitJoin {
    pub(super) fn new(
        shared: Arc<Shared>,
        setup: Setup,
        build: Vec<SpilledPart>,
        probe: Vec<SpilledPart>,
    ) -> Self {
        let unit = Unit { build, probe, level: 0, divisible: true };
        Self { shared, setup, units: vec![unit], joining: None }
    }

    pub(super) fn next(&mut self, task: &TaskContext) -> Result<Next> {
        loop {
            task.check()?;
            if let Some(joining) = &mut self.joining {
                match joining.go_on(&self.shared, &self.setup, &mut self.units, task)? {
                    Some(next) => return Ok(next),
                    None => self.joining = None,
                }
            }
            let Some(unit) = self.units.pop() else { return Ok(Next::End) };
            if self.shared.has_output(rows(&unit.build), rows(&unit.probe)) {
                self.joining = Some(Box::new(Joining::new(unit, &self.shared, &self.setup)));
            }
        }
    }
}

impl Shared {
    /// Whether there may be output for so many left and right rows.
    fn has_output(&self, left: usize, right: usize) -> bool {
        match (left, right) {
            (0, 0) => false,
            (0, _) => !self.empty_build_is_empty_result(),
            (_, 0) => self.marks_left(),
            _ => true,
        }
    }
}

impl Joining {
    fn new(unit: Unit, shared: &Shared, setup: &Setup) -> Self {
        let reading = reading(setup, &unit.build);
        let phase = Phase::Load(Collected::new(shared, setup.reservation()));
        Self { unit, reading, phase, matched: Vec::new(), last: false }
    }

    /// The next output; `None` when this unit has had all. Units that come of it are added to `units`.
    fn go_on(
        &mut self,
        shared: &Shared,
        setup: &Setup,
        units: &mut Vec<Unit>,
        task: &TaskContext,
    ) -> Result<Option<Next>> {
        loop {
            task.check()?;
            let gate = match &mut self.phase {
                Phase::Load(_) => self.load(shared, setup, task)?,
                Phase::DivideBuild(..) => self.divide_build(shared, setup)?,
                Phase::DivideProbe(..) => match self.divide_probe(shared)? {
                    Some(gate) => Some(gate),
                    None => {
                        self.add_units(units);
                        return Ok(None);
                    }
                },
                Phase::Probe(..) => match self.probe(shared, task)? {
                    Some(next) => return Ok(Some(next)),
                    None => None,
                },
                Phase::Drain(table, drained, unit)
                    if shared.marks_left()
                        && (!drained.is_done() || *unit < table.drain_units()) =>
                {
                    if drained.is_done() {
                        *drained = shared.drain_unit(table, *unit);
                        *unit += 1;
                    }
                    match shared.next_drained(table, drained)? {
                        Some(rows) => return Ok(Some(Next::Batch(Batch::new(rows)))),
                        None => None,
                    }
                }
                Phase::Drain(..) if self.last => return Ok(None),
                Phase::Done => return Ok(None),
                Phase::Drain(..) => {
                    self.phase = Phase::Load(Collected::new(shared, setup.reservation()));
                    None
                }
            };
            if let Some(gate) = gate.or_else(|| task.breath()) {
                return Ok(Some(Next::Blocked(gate)));
            }
        }
    }

    /// Reads left rows until there are no more, or no more fit.
    fn load(&mut self, shared: &Shared, setup: &Setup, task: &TaskContext) -> Result<Option<Gate>> {
        let Phase::Load(rows) = &mut self.phase else { return Ok(None) };
        let full = loop {
            task.check()?;
            match self.reading.next()? {
                Read::Blocked(gate) => return Ok(Some(gate)),
                Read::End => {
                    self.last = true;
                    break false;
                }
                Read::Batch(batch) => rows.push_divided(shared, &batch)?,
            }
            match rows.reserve(shared, setup.overdraft()) {
                Ok(()) => {}
                // Those that did not fit are here all the same.
                Err(Error::OutOfMemory { .. }) => break true,
                Err(error) => return Err(error),
            }
        };
        let Phase::Load(rows) = std::mem::replace(&mut self.phase, Phase::Done) else {
            return Ok(None);
        };
        self.phase = if full && self.unit.divisible && self.unit.level + 1 < LEVELS {
            let units = Units::new(setup.clone(), self.unit.level + 1, 0);
            Phase::DivideBuild(units, Some(rows))
        } else {
            let (table, steps) = Table::prepare(shared, rows, true)?;
            (0..steps).try_for_each(|step| task.check().and_then(|()| table.build(step, task)))?;
            table.finish()?;
            Phase::Probe(table, reading(setup, &self.unit.probe), None, 0)
        };
        Ok(None)
    }

    fn divide_build(&mut self, shared: &Shared, setup: &Setup) -> Result<Option<Gate>> {
        let Phase::DivideBuild(units, collected) = &mut self.phase else { return Ok(None) };
        loop {
            if let Some(gate) = units.settle_all(false)? {
                return Ok(Some(gate));
            }
            if let Some(rows) = collected {
                match rows.take(shared)? {
                    Some((rows, hashes, held)) => units.add(rows, &hashes, Some(held))?,
                    None => *collected = None,
                }
                continue;
            }
            match self.reading.next()? {
                Read::Blocked(gate) => return Ok(Some(gate)),
                Read::End => break,
                Read::Batch(rows) => {
                    let hashes = shared.hashes(&rows.columns()[shared.kept.len()..])?;
                    units.add(rows, &hashes, None)?;
                }
            }
        }
        if let Some(gate) = units.settle_all(true)? {
            return Ok(Some(gate));
        }
        if let Phase::DivideBuild(units, _) = std::mem::replace(&mut self.phase, Phase::Done) {
            let (_, build) = units.take();
            self.reading = reading(setup, &self.unit.probe);
            let units = Units::new(setup.clone(), self.unit.level + 1, 0);
            self.phase = Phase::DivideProbe(units, build);
        }
        Ok(None)
    }

    fn divide_probe(&mut self, shared: &Shared) -> Result<Option<Gate>> {
        let Phase::DivideProbe(units, _) = &mut self.phase else { return Ok(None) };
        loop {
            if let Some(gate) = units.settle_all(false)? {
                return Ok(Some(gate));
            }
            match self.reading.next()? {
                Read::Blocked(gate) => return Ok(Some(gate)),
                Read::End => return units.settle_all(true),
                Read::Batch(rows) => {
                    let hashes = shared.hashes(&shared.right_keys(&rows)?)?;
                    units.add(rows, &hashes, None)?;
                }
            }
        }
    }

    /// What came of a unit that was cut.
    fn add_units(&mut self, units: &mut Vec<Unit>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Done);
        let Phase::DivideProbe(probe, build) = phase else { return };
        let (_, probe) = probe.take();
        let all = rows(&self.unit.build);
        units.extend(build.into_iter().zip(probe).map(|(build, probe)| {
            // One that is nearly the whole is one key, or few.
            let divisible = rows(&build) < all / 8 * 7;
            Unit { build, probe, level: self.unit.level + 1, divisible }
        }));
    }

    /// The next output of the right rows; `None` when they have had all.
    fn probe(&mut self, shared: &Shared, task: &TaskContext) -> Result<Option<Next>> {
        let Phase::Probe(table, right, probing, number) = &mut self.phase else { return Ok(None) };
        loop {
            if let Some(at_hand) = probing {
                match shared.next_pairs(table, at_hand, task)? {
                    NextPairs::Batch(pairs) => return Ok(Some(Next::Batch(pairs))),
                    NextPairs::Breath(gate) => return Ok(Some(Next::Blocked(gate))),
                    NextPairs::End => {}
                }
            }
            if let Some(probed) = probing.take() {
                *number += 1;
                if self.last {
                    if let OperatorResult::Batch(rest) = shared.rest(*probed)? {
                        return Ok(Some(Next::Batch(rest)));
                    }
                } else if let Some(matched) = probed.matched {
                    let matched = BooleanBuffer::from(matched);
                    match self.matched.get_mut(*number - 1) {
                        Some(known) => *known = matched,
                        None => self.matched.push(matched),
                    }
                }
            }
            match right.next()? {
                Read::Blocked(gate) => return Ok(Some(Next::Blocked(gate))),
                Read::End => break,
                Read::Batch(rows) => {
                    let keys = shared.right_keys(&rows)?;
                    let mut next = shared.probe(table, rows, 0, &keys)?;
                    if let Some(known) = self.matched.get(*number) {
                        next.matched = Some(known.iter().collect());
                    }
                    *probing = Some(Box::new(next));
                    if let Some(gate) = task.breath() {
                        return Ok(Some(Next::Blocked(gate)));
                    }
                }
            }
        }
        if let Phase::Probe(table, ..) = std::mem::replace(&mut self.phase, Phase::Done) {
            self.phase = Phase::Drain(table, Drained::default(), 0);
        }
        Ok(None)
    }
}
