//! The printed and written report of the queries.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::error::Error;
use crate::output::LineWriter;

use super::data::Data;

/// The oracles of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oracles {
    /// None: `--no-verify`.
    None,
    /// Plain DataFusion.
    Reference,
    /// Plain DataFusion, and the answers of the specification.
    ReferenceAndAnswers,
}

impl Oracles {
    fn name(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Reference => "by DataFusion",
            Self::ReferenceAndAnswers => "by DataFusion, answers",
        }
    }
}

/// The outcome of one query. Its fields are those of the `--json` file.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    pub(super) query: u32,
    /// Rows of the statements that return some.
    pub(super) rows: usize,
    /// Run time of each run, in seconds.
    pub(super) seconds: Vec<f64>,
    /// Whether every run equals every applicable oracle.
    pub(super) verified: bool,
    /// Fallback nodes of the plan.
    pub(super) fallbacks: Vec<String>,
    /// Why the query failed or how it differs; absent after success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Outcome {
    pub(super) fn new(query: u32) -> Self {
        Self {
            query,
            rows: 0,
            seconds: Vec::new(),
            verified: false,
            fallbacks: Vec::new(),
            error: None,
        }
    }

    fn is_good(&self) -> bool {
        self.error.is_none() && self.fallbacks.is_empty()
    }

    fn best(&self) -> Option<f64> {
        self.seconds.iter().copied().min_by(f64::total_cmp)
    }

    /// The middle run, or the mean of the middle two.
    fn median(&self) -> Option<f64> {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        match sorted.len() % 2 {
            0 => Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper)),
            _ => Some(upper),
        }
    }
}

/// A report that is printed while queries run.
pub(super) struct Report {
    out: LineWriter,
    oracles: Oracles,
    outcomes: Vec<Outcome>,
}

impl Report {
    /// Prints the head.
    pub(super) fn begin(
        out: LineWriter,
        data: &Data,
        threads: NonZeroUsize,
        oracles: Oracles,
    ) -> Result<Self, Error> {
        let scale = data.scale.map_or("unknown".to_owned(), |scale| scale.to_string());
        let folder = data.folder().display();
        out.line(&format!("TPC-H at scale factor {scale}, data in {folder}, {threads} threads"))?;
        out.line("")?;
        out.line(&line(["query", "rows", "best", "median", "verified", "fallbacks"]))?;
        Ok(Self { out, oracles, outcomes: Vec::new() })
    }

    /// Prints the line of one query.
    pub(super) fn add(&mut self, outcome: Outcome) -> Result<(), Error> {
        let verified = if outcome.verified || self.oracles == Oracles::None {
            self.oracles.name()
        } else {
            "NO"
        };
        let fallbacks = match outcome.fallbacks.is_empty() {
            true => "none".to_owned(),
            false => outcome.fallbacks.join(", "),
        };
        self.out.line(&line([
            &format!("q{}", outcome.query),
            &outcome.rows.to_string(),
            &seconds(outcome.best()),
            &seconds(outcome.median()),
            verified,
            &fallbacks,
        ]))?;
        if let Some(error) = &outcome.error {
            self.out.line(&format!("       {error}"))?;
        }
        self.outcomes.push(outcome);
        Ok(())
    }

    /// Prints the totals.
    ///
    /// # Errors
    ///
    /// If any query failed, differed or fell back.
    pub(super) fn end(&self) -> Result<(), Error> {
        let total = |time: fn(&Outcome) -> Option<f64>| {
            self.outcomes.iter().filter_map(time).fold(0.0, |sum, time| sum + time)
        };
        let rows: usize = self.outcomes.iter().map(|outcome| outcome.rows).sum();
        let count = |wanted: fn(&Outcome) -> bool| {
            self.outcomes.iter().filter(|&outcome| wanted(outcome)).count()
        };
        let all = self.outcomes.len();
        self.out.line(&line([
            "total",
            &rows.to_string(),
            &seconds(Some(total(Outcome::best))),
            &seconds(Some(total(Outcome::median))),
            &format!("{} of {all}", count(|outcome| outcome.verified)),
            &format!("{} of {all}", count(|outcome| !outcome.fallbacks.is_empty())),
        ]))?;
        let bad = self.outcomes.iter().filter(|outcome| !outcome.is_good());
        let bad: Vec<_> = bad.map(|outcome| format!("q{}", outcome.query)).collect();
        match bad.is_empty() {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "{} of {all} queries failed, differed or fell back: {}",
                bad.len(),
                bad.join(", ")
            ))),
        }
    }

    /// Writes the outcomes as an array of objects.
    pub(super) fn write_json(&self, file: File) -> io::Result<()> {
        let mut out = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut out, &self.outcomes)?;
        writeln!(out)?;
        out.flush()
    }
}

fn seconds(time: Option<f64>) -> String {
    time.map_or("-".to_owned(), |time| format!("{time:.3} s"))
}

fn line([query, rows, best, median, verified, fallbacks]: [&str; 6]) -> String {
    format!("{query:<6} {rows:>9} {best:>11} {median:>11}  {verified:<22}  {fallbacks}")
}

#[cfg(test)]
mod tests;
