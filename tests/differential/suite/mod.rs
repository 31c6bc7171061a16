//! DataFusion's own sqllogictest files, statement by statement on a plain and a gatework session.
//!
//! The expected results in the files are ignored: both sessions must return the same result by
//! SQL's rules. Each file has two sessions of its own. Threads take files from a queue under one
//! lock.
//!
//! Options: `--files PAUSE` (part of a path), `--every N` (every Nth file only), `--mode NAME` or
//! `all`, `--findings FILE`, `--threads N`.

mod crate_files;
mod data;
mod parse;
mod skips;
mod tables;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use datafusion::prelude::{SessionConfig, SessionContext};
use gatework::Executor;
use tempfile::TempDir;

use crate::{
    args::Args,
    outcome::{Outcome, Runner, Verdict, count_nodes},
    report::{Report, Severity},
    sessions::Mode,
};
use parse::{Expected, Record};

/// Runs the suite.
pub(crate) fn run(args: &Args) -> Report {
    let report = Report::new("DataFusion's suite", args.text("findings"));
    let root = crate_files::folder();
    let data = TempDir::new().unwrap();
    data::write(data.path());
    let modes = Mode::named(args.text("mode"), &[Mode::Plain]);
    let files = chosen(&root.join("test_files"), args, &report);
    let jobs = files.iter().flat_map(|file| modes.iter().map(move |mode| (file, *mode)));
    let jobs = Mutex::new(jobs.collect::<Vec<_>>().into_iter());
    let place = SuiteFolders { root: &root, data: data.path() };
    thread::scope(|scope| {
        for _ in 0..args.number("threads", 2) {
            scope.spawn(|| {
                loop {
                    let job = jobs.lock().unwrap().next();
                    let Some((file, mode)) = job else { return };
                    run_guarded(file, mode, place, &report);
                }
            });
        }
    });
    report
}

/// Runs a file. A panic outside the sessions' tasks, for instance while planning a comparison,
/// costs one file only.
fn run_guarded(file: &Path, mode: Mode, place: SuiteFolders, report: &Report) {
    let run = || run_file(file, mode, place, report);
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        let text = "the test itself panicked".to_owned();
        report.find(Severity::Panic, format!("{}, {mode:?}", file.display()), text);
    }
}

/// Folders of the suite.
#[derive(Clone, Copy)]
struct SuiteFolders<'a> {
    /// The folder of the crate.
    root: &'a Path,
    /// The folder of replacements for files that are not published.
    data: &'a Path,
}

/// Returns the files to run, relative to `folder`, the largest first.
fn chosen(folder: &Path, args: &Args, report: &Report) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    add_files(folder, &mut paths);
    paths.sort();
    let is_wanted = |path: &PathBuf| path.to_string_lossy().contains(args.text("files"));
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths.into_iter().filter(is_wanted).step_by(args.number("every", 1)) {
        let relative = path.strip_prefix(folder).unwrap();
        match skips::file(&relative.to_string_lossy()) {
            Some(reason) => report.count(&format!("files not run: {reason}")),
            None => files.push(relative.to_owned()),
        }
    }
    let size = |file: &PathBuf| fs::metadata(folder.join(file)).unwrap().len();
    files.sort_by_key(|file| std::cmp::Reverse(size(file)));
    files
}

fn add_files(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_files(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "slt") {
            paths.push(path);
        }
    }
}

/// One session and its folder for files that statements write.
struct Side {
    session: SessionContext,
    folder: TempDir,
}

impl Side {
    fn new(session: SessionContext, file: &Path, runner: &Runner) -> Self {
        let folder = TempDir::new().unwrap();
        let stem = file.file_stem().unwrap();
        fs::create_dir_all(folder.path().join("scratch").join(stem)).unwrap();
        let name = file.file_name().unwrap().to_string_lossy();
        let session = match &*name {
            "dynamic_file.slt" => session.enable_url_table(),
            _ => session,
        };
        runner.block_on(tables::register(&session, &name, folder.path()));
        Self { session, folder }
    }

    /// Substitutes the folders in a statement.
    fn fill_in(&self, sql: &str, place: SuiteFolders) -> String {
        let mut sql =
            sql.replace("test_files/scratch", &format!("{}/scratch", self.folder.path().display()));
        for (folder, name) in data::FOLDERS {
            sql = sql.replace(folder, &place.data.join(name).to_string_lossy());
        }
        sql.replace("'test_files/", &format!("'{}/test_files/", place.root.display()))
            .replace("'data/", &format!("'{}/data/", place.root.display()))
    }
}

/// Both sessions of a file.
struct Sides {
    runner: Runner,
    mode: Mode,
    reference: Side,
    tested: Side,
    executor: Executor,
}

impl Sides {
    fn new(file: &Path, mode: Mode) -> Self {
        let runner = Runner::new();
        // DataFusion's runner has four partitions, and so have both sessions.
        let config = || SessionConfig::new().with_target_partitions(4);
        let executor = mode.executor();
        let reference = SessionContext::new_with_config(config());
        let tested = mode.session(&executor, config(), 1);
        Self {
            reference: Side::new(reference, file, &runner),
            tested: Side::new(tested, file, &runner),
            runner,
            mode,
            executor,
        }
    }
}

fn run_file(file: &Path, mode: Mode, place: SuiteFolders, report: &Report) {
    let mut records = parse::records(&place.root.join("test_files").join(file));
    let relative = file.to_string_lossy();
    for record in &mut records {
        record.sql = skips::determined(&relative, &record.sql);
    }
    let sides = Sides::new(file, mode);
    let mut write_failed = false;
    for (index, record) in records.iter().enumerate() {
        match skips::statement(&relative, &record.sql) {
            Some(reason) => report.count(&format!("statements not run: {reason}")),
            None => match run_record(record, &sides, place, report) {
                Next::Statement => (),
                Next::File(reason) => {
                    for _ in index + 1..records.len() {
                        report.count(&format!("statements not run: after one that {reason}"));
                    }
                    if reason == HANGS {
                        return sides.runner.abandon();
                    }
                    write_failed = true;
                    break;
                }
            },
        }
    }
    check_leftovers(&relative, &sides, write_failed, report);
}

/// What runs after a statement.
enum Next {
    Statement,
    /// Skips the rest of the file, because the sessions' tables may differ, for this reason.
    File(&'static str),
}

const HANGS: &str = "hangs";

/// Runs a statement on both sides.
fn run_record(record: &Record, sides: &Sides, place: SuiteFolders, report: &Report) -> Next {
    report.count("statements run");
    let Sides { runner, reference, tested, .. } = sides;
    let sql = reference.fill_in(&record.sql, place);
    let expected = runner.sql(&reference.session, &sql);
    let actual = runner.sql(&tested.session, &tested.fill_in(&record.sql, place));
    if let Outcome::Rows(actual) = &actual {
        count_nodes(report, &actual.physical);
    }
    let verdict = match (skips::rows(&record.sql), &expected, &actual) {
        (Some(reason), Outcome::Rows(_), Outcome::Rows(_)) => {
            report.count(&format!("both answer, not compared: {reason}"));
            return Next::Statement;
        }
        _ => runner.verdict(&reference.session, &sql, &expected, &actual),
    };
    let next = match (&expected, &actual, &verdict) {
        (Outcome::Hung, ..) | (_, Outcome::Hung, _) => Next::File(HANGS),
        (.., Verdict::OutOfMemory(_)) if changes_tables(&record.sql) => {
            Next::File("had too little memory on one side")
        }
        _ => Next::Statement,
    };
    report_verdict(record, verdict, sides, report);
    next
}

fn changes_tables(sql: &str) -> bool {
    let first = sql.split_whitespace().next().unwrap_or_default().to_lowercase();
    matches!(first.as_str(), "copy" | "create" | "insert" | "update" | "delete" | "truncate")
}

fn report_verdict(record: &Record, verdict: Verdict, sides: &Sides, report: &Report) {
    let (severity, text) = match verdict {
        Verdict::Equal => return report.count("equal rows"),
        Verdict::BothRefuse if record.expected == Expected::Error => {
            return report.count("both refuse, as the file expects");
        }
        Verdict::BothRefuse => {
            return report.count("both refuse, for want of files, features or registered tables");
        }
        Verdict::Undetermined => return report.count("undetermined: DataFusion varies as well"),
        Verdict::OutOfMemory(side) => {
            return report.count(&format!("{side} has too little memory"));
        }
        Verdict::Different(Severity::OnlyOneRefuses, text)
            if text.starts_with("only gatework refuses") && text.contains("not found") =>
        {
            return report.count("a table is missing because an earlier statement failed");
        }
        Verdict::Different(severity, text) => (severity, text),
    };
    let follows = severity == Severity::WrongRows && skips::follows_row_order(&record.sql);
    let place = format!("{}, {:?}", record.place, sides.mode);
    let (severity, why) = match skips::own_fault(&record.place, &record.sql) {
        Some(reason) => (Severity::NotOurs, reason),
        None if follows => (Severity::Open, "(the result follows the order of rows)"),
        None => (severity, ""),
    };
    report.find(severity, place, format!("{}\n    {text} {why}", record.sql));
}

/// How long the writers of a COPY that ran out of memory may take to release theirs: DataFusion
/// runs them on tasks of their own, which the error does not wait for.
const WRITERS_LIMIT: Duration = Duration::from_secs(10);

/// Asserts that nothing of a file's queries is left.
fn check_leftovers(file: &str, sides: &Sides, write_failed: bool, report: &Report) {
    let place = format!("{file}, {:?}", sides.mode);
    let pool = sides.tested.session.runtime_env().memory_pool.clone();
    let end = Instant::now() + if write_failed { WRITERS_LIMIT } else { Duration::ZERO };
    while pool.reserved() != 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    let reserved = pool.reserved();
    if reserved != 0 {
        report.find(
            Severity::OnlyOneRefuses,
            place,
            format!("{reserved} bytes are still reserved"),
        );
    }
    sides.executor.shutdown();
}
