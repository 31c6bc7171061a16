//! Damaged files: reading each through gatework gives a clear error or the right rows. There is no
//! abort, panic or hang, and memory stays in proportion to the file.
//!
//! An abort kills the process, so child processes read the files: this binary runs itself. Seed and
//! number determine a damaged file; `--first N --count 1` reads a single one.
//!
//! Options: `--count N`, `--seed S`, `--first N`, `--threads N`, `--findings FILE`.

mod child;
mod mutate;
mod seeds;
mod thrift;

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    args::Args,
    outcome::Runner,
    report::{Report, Severity},
};
pub(crate) use child::child;

/// The command of child processes.
pub(crate) const CHILD: &str = "files-child";
/// Time without output after which a child counts as hanging.
const LIMIT: Duration = Duration::from_secs(75);
/// Number of files per child.
const FILES_OF_CHILD: u64 = 100;
/// Address space of a child, in KiB, including its threads' stacks and arenas. An allocation beyond
/// it kills the child.
const CHILD_KIB: u64 = 5 << 20;
/// Number of findings of one kind that are kept.
const ALIKE: usize = 2;

/// Reads damaged files.
pub(crate) fn run(args: &Args) -> Report {
    let (count, seed): (u64, u64) = (args.number("count", 3000), args.number("seed", 1));
    let report = Report::new(format!("{count} damaged files, seed {seed}"), args.text("findings"));
    let folder = TempDir::new().unwrap();
    Runner::new().block_on(seeds::write(folder.path(), seed));
    let first: u64 = args.number("first", 0);
    let next = AtomicU64::new(first);
    let seen = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..args.number("threads", 2) {
            scope.spawn(|| {
                loop {
                    // Relaxed: only the number itself is shared.
                    let start = next.fetch_add(FILES_OF_CHILD, Ordering::Relaxed);
                    if start >= first + count {
                        return;
                    }
                    let end = (start + FILES_OF_CHILD).min(first + count);
                    Parent { folder: folder.path(), seed, report: &report, seen: &seen }
                        .run(start, end);
                }
            });
        }
    });
    report
}

struct Parent<'a> {
    folder: &'a Path,
    seed: u64,
    report: &'a Report,
    seen: &'a Mutex<HashMap<String, usize>>,
}

/// The last output of a child.
#[derive(Default)]
struct Progress {
    number: u64,
    what: String,
    side: String,
    done: bool,
}

impl Parent<'_> {
    /// Runs children over the files `first..end`; starts another one after a file that killed one.
    fn run(&self, mut first: u64, end: u64) {
        // Number of a file that killed a child in DataFusion, which is skipped afterwards.
        let mut skip = u64::MAX;
        while first < end {
            let errors = self.folder.join(format!("errors-{first}"));
            fs::create_dir_all(&errors).unwrap();
            let errors = errors.join("text");
            let mut child = self.start(first, end - first, &errors, skip);
            let lines = lines_of(&mut child);
            let mut progress = Progress { number: first, ..Progress::default() };
            let hangs = self.follow(&lines, &mut progress);
            // The child has exited, or hangs.
            let _already_gone = child.kill();
            let status = child.wait().unwrap();
            if progress.done {
                return;
            }
            let what = match hangs {
                true => "hangs".to_owned(),
                false => format!("dies, {status}: {}", tail(&errors)),
            };
            let ours = progress.side != "DataFusion";
            let severity = if ours { Severity::Fatal } else { Severity::NotOurs };
            let text = format!("{} {what}", progress.side);
            self.find(severity, &progress, &text);
            (first, skip) = match ours {
                true => (progress.number + 1, u64::MAX),
                // Schema inference already kills the child.
                false if skip == progress.number => (progress.number + 1, u64::MAX),
                false => (progress.number, progress.number),
            };
        }
    }

    fn start(&self, first: u64, count: u64, errors: &Path, skip: u64) -> Child {
        let limit = format!("ulimit -v {CHILD_KIB}; exec \"$0\" \"$@\"");
        Command::new("sh")
            .args(["-c", &limit])
            .arg(env::current_exe().unwrap())
            .args([CHILD, "--folder"])
            .arg(self.folder)
            .args(["--seed", &self.seed.to_string(), "--first", &first.to_string()])
            .args(["--count", &count.to_string(), "--skip", &skip.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(errors).unwrap())
            .spawn()
            .unwrap()
    }

    /// Processes a child's output until its end. Returns whether the child hangs.
    fn follow(&self, lines: &Receiver<String>, progress: &mut Progress) -> bool {
        loop {
            let line = match lines.recv_timeout(LIMIT) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            };
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "begin" => {
                    let (number, what) = rest.split_once(' ').unwrap_or((rest, ""));
                    progress.number = number.parse().unwrap();
                    progress.what = what.to_owned();
                    self.report.count("files read");
                }
                "side" => rest.clone_into(&mut progress.side),
                "count" => self.report.count(rest),
                "finding" => {
                    let (severity, text) = rest.split_once(' ').unwrap_or((rest, ""));
                    self.find(severity_of(severity), progress, &text.replace('\u{1f}', "\n"));
                }
                "done" => progress.done = true,
                _ => (),
            }
        }
    }

    fn find(&self, severity: Severity, progress: &Progress, text: &str) {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.len() > 2);
        let kind = words.take(20).collect::<Vec<_>>().join(" ");
        let mut seen = self.seen.lock().unwrap();
        let count = seen.entry(format!("{severity:?} {kind}")).or_default();
        *count += 1;
        if *count > ALIKE {
            return self.report.count(&format!("like another finding: {severity:?}"));
        }
        let place = format!("files --seed {} --first {} --count 1", self.seed, progress.number);
        self.report.find(severity, place, format!("{}\n    {text}", progress.what));
    }
}

fn severity_of(name: &str) -> Severity {
    let all = [
        Severity::Fatal,
        Severity::WrongRows,
        Severity::Panic,
        Severity::OnlyOneRefuses,
        Severity::NotOurs,
        Severity::Open,
    ];
    let severity = all.into_iter().find(|severity| format!("{severity:?}") == name);
    severity.unwrap_or_else(|| panic!("there is no severity {name}"))
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The end of a process's standard error.
fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}
