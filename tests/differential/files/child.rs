//! The process that reads damaged files. It announces each step on standard output, so that its
//! parent knows what killed it:
//!
//! ```text
//! begin 17 what was done to which file
//! side DataFusion | gatework
//! count what came of it
//! finding severity text with newlines as \u{1f}
//! end 17
//! ```

use std::{
    collections::HashMap,
    fs,
    io::{Write as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use arrow::array::RecordBatch;
use datafusion::prelude::{SessionConfig, SessionContext};
use gatework::{
    Executor,
    verify::{ResultOrder, compare},
};

use super::{
    mutate::mutant,
    seeds::{self, Seed},
};
use crate::{
    args::Args,
    outcome::{Outcome, Runner},
    queries::random::Random,
    report::Severity,
    sessions::Mode,
};

/// The queries on a damaged file.
const QUERIES: [&str; 3] = [
    "SELECT * FROM t",
    "SELECT count(*), max(id) FROM t",
    "SELECT id FROM t WHERE id > 7 AND id < 60",
];
/// Words of gatework's errors about Arrow files for which DataFusion allocates and zeroes up to
/// 2 GiB before it refuses them, so that it is not asked: a length that ends behind the file, and a
/// file without a footer, whose magic bytes DataFusion takes for the length of a message.
const COSTLY_TO_REFUSE: [&str; 2] = ["in a file of", "correct footer"];
/// Memory bound; no file exceeds a few megabytes.
const MEMORY: u64 = 1 << 30;

/// Reads the damaged files of a range of numbers.
pub(crate) fn child(args: &Args) -> ExitCode {
    let folder = PathBuf::from(args.text("folder"));
    let (first, count): (u64, u64) = (args.number("first", 0), args.number("count", 1));
    let mut reader = Reader {
        seeds: seeds::read(&folder),
        mutants: folder.join(format!("mutants-{}", std::process::id())),
        seed: args.number("seed", 1),
        skip: args.number("skip", u64::MAX),
        runner: Runner::new(),
        executor: Mode::Plain.executor(),
        right: HashMap::new(),
    };
    fs::create_dir_all(&reader.mutants).unwrap();
    (first..first + count).for_each(|number| reader.read(number));
    fs::remove_dir_all(&reader.mutants).unwrap();
    reader.executor.shutdown();
    send("done", "");
    ExitCode::SUCCESS
}

fn send(what: &str, text: &str) {
    let text = text.replace('\n', "\u{1f}");
    let mut out = stdout().lock();
    writeln!(out, "{what} {text}").unwrap();
    out.flush().unwrap();
}

struct Reader {
    seeds: Vec<Seed>,
    mutants: PathBuf,
    seed: u64,
    /// Number of a file that kills the process in DataFusion.
    skip: u64,
    runner: Runner,
    executor: Executor,
    /// Results of the well-formed files, by file and query.
    right: HashMap<(PathBuf, &'static str), Option<Vec<RecordBatch>>>,
}

impl Reader {
    fn read(&mut self, number: u64) {
        let mut random = Random::new(self.seed ^ (number + 1) << 16);
        // Formats with equal weight, although there are more Parquet files.
        let formats = [
            seeds::Format::Parquet,
            seeds::Format::Parquet,
            seeds::Format::Csv,
            seeds::Format::Json,
            seeds::Format::Arrow,
        ];
        let format = *random.one(&formats);
        let seeds: Vec<_> = self.seeds.iter().filter(|seed| seed.format == format).collect();
        let seed = (*random.one(&seeds)).clone();
        let (bytes, done) = mutant(format, &seed.bytes, &mut random);
        let name = seed.path.file_name().unwrap().to_string_lossy();
        send(&format!("begin {number}"), &format!("{name}: {done}"));
        let path = self.mutants.join(format!("{number}.{}", format.word()));
        fs::write(&path, bytes).unwrap();
        self.compare(&seed, &path, number == self.skip);
        fs::remove_file(&path).unwrap();
        send(&format!("end {number}"), "");
    }

    fn compare(&mut self, seed: &Seed, path: &Path, skip: bool) {
        let config = SessionConfig::new().with_target_partitions(2);
        let plain = Side::new(SessionContext::new_with_config(config), "DataFusion");
        let tested = Mode::Plain.session(&self.executor, SessionConfig::new(), 1);
        let tested = Side::new(tested, "gatework");
        let tested_refuses = tested.create(&self.runner, seed, path);
        let is_costly = |text: &String| COSTLY_TO_REFUSE.iter().any(|words| text.contains(words));
        let plain_refuses = match &tested_refuses {
            _ if skip => Some("this file kills the process".to_owned()),
            Some(text) if is_costly(text) => Some("not asked".to_owned()),
            _ => plain.create(&self.runner, seed, path),
        };
        for sql in QUERIES {
            let expected = plain.answer(&self.runner, sql, plain_refuses.as_deref());
            let actual = tested.answer(&self.runner, sql, tested_refuses.as_deref());
            judge(sql, &expected, &actual, self.right(seed, sql));
        }
        let reserved = tested.session.runtime_env().memory_pool.reserved();
        if reserved != 0 {
            finding(Severity::OnlyOneRefuses, &format!("{reserved} bytes are still reserved"));
        }
    }

    /// Returns the result of the well-formed file.
    fn right(&mut self, seed: &Seed, sql: &'static str) -> Option<&[RecordBatch]> {
        let runner = &self.runner;
        let right = self.right.entry((seed.path.clone(), sql)).or_insert_with(|| {
            let side = Side::new(SessionContext::new(), "DataFusion");
            let refuses = side.create(runner, seed, &seed.path);
            match side.answer(runner, sql, refuses.as_deref()) {
                Outcome::Rows(ran) => Some(ran.rows),
                _ => None,
            }
        });
        right.as_deref()
    }
}

/// A session that reads a file, and its name.
struct Side {
    session: SessionContext,
    name: &'static str,
}

impl Side {
    fn new(session: SessionContext, name: &'static str) -> Self {
        Self { session, name }
    }

    /// Creates the table. Schema inference is DataFusion's on both sides. gatework checks the
    /// lengths in Arrow files before, and contains panics. Returns why the table is refused, if it
    /// is.
    fn create(&self, runner: &Runner, seed: &Seed, path: &Path) -> Option<String> {
        send("side", "DataFusion");
        let sql = format!(
            "CREATE EXTERNAL TABLE t STORED AS {} LOCATION '{}'",
            seed.format.word(),
            path.display()
        );
        let outcome = runner.sql(&self.session, &sql);
        send("side", "neither");
        match outcome {
            Outcome::Rows(_) => None,
            Outcome::Refused(text) => Some(text),
            Outcome::Hung => Some("DataFusion hangs while it looks for a schema".to_owned()),
            Outcome::Panicked(text) => {
                let text = format!("{} panics while it looks for a schema: {text}", self.name);
                let severity = match self.name {
                    "gatework" => Severity::Panic,
                    _ => Severity::NotOurs,
                };
                finding(severity, &text);
                Some(text)
            }
        }
    }

    /// Queries the table, unless it was refused. Using more than 1 GiB is a finding.
    fn answer(&self, runner: &Runner, sql: &str, refuses: Option<&str>) -> Outcome {
        if let Some(text) = refuses {
            return Outcome::Refused(text.to_owned());
        }
        send("side", self.name);
        forget_peak_memory();
        let before = memory("VmRSS:");
        let outcome = runner.sql(&self.session, sql);
        send("side", "neither");
        if memory("VmHWM:").saturating_sub(before) > MEMORY {
            let severity = match self.name {
                "gatework" => Severity::Fatal,
                _ => Severity::NotOurs,
            };
            finding(severity, &format!("{sql}: more than 1 GiB of memory was used"));
        }
        outcome
    }
}

fn finding(severity: Severity, text: &str) {
    send(&format!("finding {severity:?}"), text);
}

fn same(actual: &[RecordBatch], expected: &[RecordBatch]) -> Result<(), String> {
    compare(actual, expected, &ResultOrder::unordered())
        .map_err(|difference| difference.to_string())
}

/// Checks the outcome: a damaged file must give a clear error or the right rows, and damage that
/// DataFusion detects must be detected.
fn judge(sql: &str, expected: &Outcome, actual: &Outcome, right: Option<&[RecordBatch]>) {
    let is_right = |rows: &[RecordBatch]| right.is_some_and(|right| same(rows, right).is_ok());
    match (expected, actual) {
        (_, Outcome::Hung) => finding(Severity::Fatal, &format!("{sql}: gatework hangs")),
        (_, Outcome::Panicked(text)) => {
            let theirs = match expected {
                Outcome::Panicked(_) => " (so does DataFusion)",
                _ => "",
            };
            finding(Severity::Panic, &format!("{sql}: gatework panics{theirs}: {text}"));
        }
        (Outcome::Panicked(_) | Outcome::Hung, _) => send("count", "only DataFusion panics"),
        (Outcome::Refused(_), Outcome::Refused(_)) => send("count", "both refuse"),
        (Outcome::Rows(expected), Outcome::Rows(actual)) => {
            match same(&actual.rows, &expected.rows) {
                Ok(()) => send("count", "equal rows"),
                Err(_) if is_right(&actual.rows) => send("count", "only gatework's rows are right"),
                Err(text) if is_right(&expected.rows) => {
                    finding(Severity::WrongRows, &format!("{sql}: {text}"));
                }
                Err(text) => finding(Severity::Open, &format!("{sql}: both wrong: {text}")),
            }
        }
        (Outcome::Refused(_), Outcome::Rows(actual)) if is_right(&actual.rows) => {
            send("count", "right rows, where DataFusion refuses");
        }
        (Outcome::Refused(text), Outcome::Rows(_)) => {
            let text = format!("{sql}: gatework gives wrong rows, DataFusion refuses: {text}");
            finding(Severity::WrongRows, &text);
        }
        (Outcome::Rows(rows), Outcome::Refused(text)) if is_right(&rows.rows) => {
            let text = format!("{sql}: gatework refuses, DataFusion gives the right rows: {text}");
            finding(Severity::Open, &text);
        }
        (Outcome::Rows(_), Outcome::Refused(_)) => {
            send("count", "refused, where DataFusion gives wrong rows");
        }
    }
}

/// Resets the system's peak memory of this process.
fn forget_peak_memory() {
    let _measured_from_the_start_then = fs::write("/proc/self/clear_refs", "5");
}

/// Returns a memory figure of this process, in bytes.
fn memory(figure: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}
