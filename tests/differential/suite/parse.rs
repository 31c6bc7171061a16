//! The dialect of sqllogictest files: the statements of a file, with its includes expanded.
//!
//! Expected results are skipped: the reference session defines them.

use std::{fs, path::Path};

/// What a file expects of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Success,
    Error,
}

/// A statement of a file.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// File and line, as in `window.slt:12`.
    pub(crate) place: String,
    pub(crate) sql: String,
    pub(crate) expected: Expected,
}

/// Reads the statements of the file at `path` that are meant for DataFusion.
pub(crate) fn records(path: &Path) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let mut reader = Reader { path, lines: text.lines().collect(), next: 0, records: Vec::new() };
    reader.read();
    reader.records
}

struct Reader<'a> {
    path: &'a Path,
    lines: Vec<&'a str>,
    next: usize,
    records: Vec<Record>,
}

impl<'a> Reader<'a> {
    fn read(&mut self) {
        let mut skips = false;
        while let Some(line) = self.line() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                ["halt", ..] => return,
                ["include", file] => self.include(file),
                ["skipif", system] => skips |= system.eq_ignore_ascii_case("datafusion"),
                ["onlyif", system] => skips |= !system.eq_ignore_ascii_case("datafusion"),
                [kind @ ("statement" | "query"), rest @ ..] => {
                    let record = self.record(kind, rest);
                    if !std::mem::take(&mut skips) {
                        self.records.push(record);
                    }
                }
                // Comments, and directives without statements: `hash-threshold`, `subtest`.
                _ => (),
            }
        }
    }

    fn line(&mut self) -> Option<&'a str> {
        let line = self.lines.get(self.next).copied();
        self.next += 1;
        line
    }

    /// Inserts the statements of the files that match `pattern`, which may end in `*`.
    fn include(&mut self, pattern: &str) {
        let path = self.path.parent().unwrap().join(pattern);
        let Some((_, end)) = pattern.split_once('*') else {
            return self.records.extend(records(&path));
        };
        let folder = fs::read_dir(path.parent().unwrap()).unwrap();
        let mut paths: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(end));
        paths.sort();
        self.records.extend(paths.iter().flat_map(|path| records(path)));
    }

    fn record(&mut self, kind: &str, rest: &[&str]) -> Record {
        let name = self.path.file_name().unwrap().to_string_lossy();
        let place = format!("{name}:{}", self.next);
        let mut sql = Vec::new();
        let mut has_result = false;
        while let Some(line) = self.line() {
            if line.trim() == "----" {
                has_result = true;
                break;
            }
            if line.trim().is_empty() {
                break;
            }
            sql.push(line);
        }
        let expected = match rest.first() {
            Some(&"error") => Expected::Error,
            _ => Expected::Success,
        };
        if has_result {
            self.skip_result(expected == Expected::Error && kind == "query" || kind == "statement");
        }
        Record { place, sql: sql.join("\n"), expected }
    }

    /// Skips a result, which ends at an empty line, or the text of an error, which ends at two.
    fn skip_result(&mut self, is_error: bool) {
        let empty_lines = if is_error { 2 } else { 1 };
        let mut seen = 0;
        while let Some(line) = self.line() {
            seen = if line.trim().is_empty() { seen + 1 } else { 0 };
            if seen == empty_lines {
                return;
            }
        }
    }
}
