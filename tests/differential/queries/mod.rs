//! Random queries over random tables, on a plain session and on a gatework session.
//!
//! A seed determines the tables and the query, but not the schedule of the threads. A differing
//! case is shrunk, and shown with the statements that create it. One lock guards the signatures of
//! earlier findings.
//!
//! Options: `--count N`, `--seed S`, `--first N`, `--mode NAME` or `all`, `--threads N`,
//! `--findings FILE`. A finding names its mode; with `all`, the number of the query selects the
//! mode.

mod aggregates;
mod expressions;
pub(crate) mod random;
mod select;
mod shrink;
pub(crate) mod storage;
pub(crate) mod tables;
mod tree;
mod types;
mod values;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use datafusion::{
    error::Result,
    prelude::{SessionConfig, SessionContext},
};
use gatework::Executor;
use tempfile::TempDir;

use crate::{
    args::Args,
    outcome::{Outcome, Runner, Verdict, count_nodes},
    report::{Report, Severity},
    sessions::Mode,
};
use random::Random;
use select::Queries;
use shrink::{Case, shrink};
use storage::Stored;
use tables::Table;

/// Number of queries over one set of tables.
const QUERIES_OF_TABLES: u64 = 20;
/// Number of findings of one kind that are kept.
const ALIKE: usize = 2;

/// Runs random queries.
pub(crate) fn run(args: &Args) -> Report {
    let (count, seed) = (args.number::<u64>("count", 2000), args.number("seed", 1));
    let report = Report::new(format!("{count} queries, seed {seed}"), args.text("findings"));
    let default = [Mode::Plain, Mode::Tiny, Mode::Serial];
    let fuzzer = Fuzzer {
        modes: Mode::named(args.text("mode"), &default),
        seed,
        report: &report,
        seen: Mutex::default(),
    };
    // Queries of the same tables run together.
    let start = args.number("first", 0) / QUERIES_OF_TABLES * QUERIES_OF_TABLES;
    let next = AtomicU64::new(start);
    thread::scope(|scope| {
        for _ in 0..args.number("threads", 2) {
            scope.spawn(|| {
                loop {
                    // Relaxed: only the number itself is shared.
                    let first = next.fetch_add(QUERIES_OF_TABLES, Ordering::Relaxed);
                    if first >= start + count {
                        return;
                    }
                    fuzzer.run(first, (start + count).min(first + QUERIES_OF_TABLES));
                }
            });
        }
    });
    report
}

struct Fuzzer<'a> {
    modes: Vec<Mode>,
    seed: u64,
    report: &'a Report,
    /// Number of findings by kind.
    seen: Mutex<HashMap<String, usize>>,
}

/// Sessions over the same tables.
struct Sessions {
    runner: Runner,
    reference: SessionContext,
    tested: SessionContext,
    executor: Executor,
    /// Folder with the tables' files.
    _folder: TempDir,
}

impl Sessions {
    fn new(tables: &[Table], mode: Mode, seed: u64) -> Self {
        let (runner, folder, executor) = (Runner::new(), TempDir::new().unwrap(), mode.executor());
        // From statistics, which leave NaN out, DataFusion takes a column of 0.25 and NaN for
        // constant.
        let config = SessionConfig::new().with_target_partitions(2).with_collect_statistics(false);
        let reference = SessionContext::new_with_config(config);
        let tested = mode.session(&executor, SessionConfig::new(), seed);
        let register = async {
            for table in tables {
                let stored = Stored::new(table, folder.path());
                stored.register(&table.name, &reference).await?;
                stored.register(&table.name, &tested).await?;
            }
            Result::<()>::Ok(())
        };
        runner.block_on(register).unwrap();
        Self { runner, reference, tested, executor, _folder: folder }
    }

    fn run(&self, sql: &str) -> (Verdict, Outcome) {
        let expected = self.runner.sql(&self.reference, sql);
        let actual = self.runner.sql(&self.tested, sql);
        (self.runner.verdict(&self.reference, sql, &expected, &actual), actual)
    }

    /// Detaches threads that hang.
    fn end(self, hung: bool) {
        if hung {
            self.runner.abandon();
            std::mem::forget(self.executor);
        } else {
            self.executor.shutdown();
        }
    }
}

impl Fuzzer<'_> {
    /// Runs the queries of some numbers over one set of tables.
    fn run(&self, first: u64, end: u64) {
        let group = first / QUERIES_OF_TABLES;
        let mode = self.modes[group as usize % self.modes.len()];
        let tables = Table::random_set(&mut Random::new(self.seed ^ group << 32));
        let mut sessions = Sessions::new(&tables, mode, group);
        for number in first..end {
            let mut random = Random::new(self.seed ^ group << 32 ^ (number + 1) << 8);
            let query = Queries::new(&mut random, &tables).query();
            let case = Case { tables: tables.clone(), query };
            let place = format!("--seed {} query {number}, {mode:?}", self.seed);
            let (verdict, outcome) = sessions.run(&case.query.to_string());
            if let Outcome::Rows(ran) = &outcome {
                count_nodes(self.report, &ran.physical);
            }
            let hung = matches!(outcome, Outcome::Hung);
            self.report_verdict(&place, case, mode, verdict);
            if hung {
                let fresh = Sessions::new(&tables, mode, group);
                std::mem::replace(&mut sessions, fresh).end(true);
            }
        }
        self.check_leftovers(&sessions, group);
        sessions.end(false);
    }

    fn check_leftovers(&self, sessions: &Sessions, group: u64) {
        let reserved = sessions.tested.runtime_env().memory_pool.reserved();
        if reserved != 0 {
            let text = format!("{reserved} bytes are still reserved");
            self.report.find(Severity::OnlyOneRefuses, format!("tables {group}"), text);
        }
    }

    fn report_verdict(&self, place: &str, case: Case, mode: Mode, verdict: Verdict) {
        let (severity, text) = match verdict {
            Verdict::Equal => return self.report.count("equal rows"),
            Verdict::BothRefuse => return self.report.count("both refuse"),
            Verdict::Undetermined => {
                return self.report.count("undetermined: DataFusion varies as well");
            }
            Verdict::OutOfMemory(side) => {
                return self.report.count(&format!("{side} has too little memory"));
            }
            Verdict::Different(severity, text) => (severity, text),
        };
        if !self.is_new(severity, &text) {
            return self.report.count(&format!("like a finding above: {severity:?}"));
        }
        let fails = |case: &Case| failure(case, mode, severity).is_some();
        let case = match severity {
            Severity::Fatal => case,
            _ => catch_unwind(AssertUnwindSafe(|| shrink(case.clone(), fails))).unwrap_or(case),
        };
        // The results of the shrunk case, not of the original one.
        let text = failure(&case, mode, severity).unwrap_or(text);
        let sql = case.query.to_string();
        let tables = case.tables.iter().filter(|table| sql.contains(&table.name));
        let tables: Vec<_> = tables.map(Table::sql).collect();
        let text = format!("{}\n{sql}\n    {text}", tables.join("\n"));
        self.report.find(severity, place, text);
    }

    /// Whether few findings of this kind were seen.
    fn is_new(&self, severity: Severity, text: &str) -> bool {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 2);
        let kind = words.take(14).collect::<Vec<_>>().join(" ");
        let mut seen = self.seen.lock().unwrap();
        let count = seen.entry(format!("{severity:?} {kind}")).or_default();
        *count += 1;
        *count <= ALIKE
    }
}

/// Returns how a case fails, if it fails with the same severity. Tries several times, since a
/// failure may depend on chance.
fn failure(case: &Case, mode: Mode, severity: Severity) -> Option<String> {
    let sql = case.query.to_string();
    let sessions = Sessions::new(&case.tables, mode, 1);
    let failure = (0..2).find_map(|_| match sessions.run(&sql).0 {
        Verdict::Different(found, text) if found == severity => Some(text),
        _ => None,
    });
    sessions.end(false);
    failure
}
