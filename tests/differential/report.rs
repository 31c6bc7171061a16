//! The report of a run: counts by name, and findings with their smallest known case.
//!
//! One lock around each collection, held only to add to it; the threads of a run share a report.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::OpenOptions,
    io::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Severity of a finding; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// The process died, or a statement did not end.
    Fatal,
    /// Other rows than DataFusion's.
    WrongRows,
    /// A panic, or an error that says "panicked".
    Panic,
    /// One side answers, the other one refuses.
    OnlyOneRefuses,
    /// DataFusion itself is at fault; the run passes.
    NotOurs,
    /// Rows that differ where the result follows the order of rows; the run passes.
    Open,
}

/// One difference.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A file and line, or a seed.
    pub(crate) place: String,
    /// The case with both results.
    pub(crate) text: String,
}

/// Counts and findings of one run.
#[derive(Debug)]
pub(crate) struct Report {
    title: String,
    start: Instant,
    /// File to which findings are appended at once; empty for none.
    path: String,
    counts: Mutex<BTreeMap<String, usize>>,
    nodes: Mutex<BTreeMap<String, usize>>,
    findings: Mutex<Vec<Finding>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Report {
    /// Starts a report; findings are also appended to the file at `path`, unless it is empty.
    pub(crate) fn new(title: impl Into<String>, path: &str) -> Self {
        Self {
            title: title.into(),
            start: Instant::now(),
            path: path.to_owned(),
            counts: Mutex::default(),
            nodes: Mutex::default(),
            findings: Mutex::default(),
        }
    }

    /// Adds one to a count.
    pub(crate) fn count(&self, name: &str) {
        *lock(&self.counts).entry(name.to_owned()).or_default() += 1;
    }

    /// Adds to the number of fallback nodes of a name, or of native nodes.
    pub(crate) fn count_nodes(&self, name: &str, nodes: usize) {
        if nodes > 0 {
            *lock(&self.nodes).entry(name.to_owned()).or_default() += nodes;
        }
    }

    /// Adds a finding.
    pub(crate) fn find(&self, severity: Severity, place: impl Into<String>, text: String) {
        self.count(&format!("finding: {severity:?}"));
        let finding = Finding { severity, place: place.into(), text };
        self.append(&finding);
        lock(&self.findings).push(finding);
    }

    /// Writes a finding at once, so that it survives the process.
    fn append(&self, finding: &Finding) {
        if self.path.is_empty() {
            return;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let text = format!(
            "### {:?} in {} ({})\n{}\n\n",
            finding.severity, finding.place, self.title, finding.text
        );
        file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
    }

    /// Whether gatework is at fault anywhere, or nothing was run.
    pub(crate) fn has_failed(&self) -> bool {
        lock(&self.counts).is_empty()
            || lock(&self.findings).iter().any(|finding| finding.severity < Severity::NotOurs)
    }

    /// Prints everything: findings last, the worst of them first.
    pub(crate) fn print(&self) {
        println!("== {}, {} s", self.title, self.start.elapsed().as_secs());
        let mut text = String::new();
        for (name, count) in lock(&self.counts).iter() {
            let _infallible = writeln!(text, "{count:>8}  {name}");
        }
        for (name, nodes) in lock(&self.nodes).iter() {
            let _infallible = writeln!(text, "{nodes:>8}  plan nodes: {name}");
        }
        let mut findings = lock(&self.findings).clone();
        findings.sort_by_key(|finding| finding.severity);
        for Finding { severity, place, text: case } in &findings {
            let _infallible = writeln!(text, "\n{severity:?} in {place}\n{case}");
        }
        println!("{text}");
    }
}
