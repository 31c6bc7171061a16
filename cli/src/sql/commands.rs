//! Commands of the shell, under the names of psql and of DuckDB's shell.

use std::path::PathBuf;

use clap::ValueEnum;

use super::client::{Client, Flow};
use crate::args::Format;
use crate::error::Error;

/// A command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Quit,
    Tables,
    Describe(String),
    Functions(Option<String>),
    Timing(Option<bool>),
    Profile(Option<bool>),
    Pager(Option<bool>),
    Vertical(Option<bool>),
    Format(Format),
    Output(Option<PathBuf>),
    Include(PathBuf),
}

/// Names of a command, its arguments, and what it does.
struct Entry {
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    parse: fn(&str) -> Result<Command, Error>,
}

/// All commands, in the order of the help.
const ENTRIES: &[Entry] = &[
    Entry {
        names: &["\\d", "\\dt", ".tables", ".schema"],
        arguments: "[TABLE]",
        help: "list the tables, or the columns of a table",
        parse: |table| {
            Ok(match table {
                "" => Command::Tables,
                table => Command::Describe(table.to_owned()),
            })
        },
    },
    Entry {
        names: &["\\df", "\\h", ".functions"],
        arguments: "[NAME]",
        help: "list the functions whose name contains NAME",
        parse: |name| Ok(Command::Functions((!name.is_empty()).then(|| name.to_owned()))),
    },
    Entry {
        names: &["\\timing", ".timer"],
        arguments: "[on|off]",
        help: "print the time of each statement",
        parse: |value| switch(value).map(Command::Timing),
    },
    Entry {
        names: &["\\profile"],
        arguments: "[on|off]",
        help: "print the profile of each query",
        parse: |value| switch(value).map(Command::Profile),
    },
    Entry {
        names: &["\\f", "\\format", ".mode"],
        arguments: "FORMAT",
        help: "print results as table, csv, tsv, json, markdown, vertical or arrow",
        parse: format,
    },
    Entry {
        names: &["\\x"],
        arguments: "[on|off]",
        help: "print one line per value",
        parse: |value| switch(value).map(Command::Vertical),
    },
    Entry {
        names: &["\\pager", ".pager"],
        arguments: "[on|off]",
        help: "show results that exceed the screen in less",
        parse: |value| switch(value).map(Command::Pager),
    },
    Entry {
        names: &["\\o", ".output"],
        arguments: "[FILE]",
        help: "write further results to FILE, or to the screen again",
        parse: |path| Ok(Command::Output((!path.is_empty()).then(|| path.into()))),
    },
    Entry {
        names: &["\\i", ".read"],
        arguments: "FILE",
        help: "run the statements and commands of FILE",
        parse: |path| match path {
            "" => Err(Error::failed("\\i needs the name of a file")),
            path => Ok(Command::Include(path.into())),
        },
    },
    Entry {
        names: &["\\?", ".help", "\\help"],
        arguments: "",
        help: "list these commands",
        parse: |_| Ok(Command::Help),
    },
    Entry {
        names: &["\\q", ".quit", ".exit", "quit", "exit"],
        arguments: "",
        help: "leave the shell; Ctrl-D does so too",
        parse: |_| Ok(Command::Quit),
    },
];

/// The names of all commands, for completion.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().flat_map(|entry| entry.names).copied()
}

impl Command {
    /// Parses a line.
    pub(super) fn parse(line: &str) -> Result<Self, Error> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let entry = ENTRIES.iter().find(|entry| entry.names.contains(&name));
        let unknown = || Error::failed(format!("there is no command '{name}'; \\? lists them"));
        (entry.ok_or_else(unknown)?.parse)(unquoted(argument))
    }

    /// Runs the command.
    pub(super) async fn run(self, client: &mut Client) -> Result<Flow, Error> {
        let display = &mut client.display;
        match self {
            Self::Help => display.stdout().line(&help())?,
            Self::Quit => return Ok(Flow::Quit),
            Self::Tables => client.run_query(TABLES.to_owned()).await?,
            Self::Describe(table) => {
                client.run_query(format!("DESCRIBE {}", quoted(&table))).await?;
            }
            Self::Functions(name) => client.run_query(functions(name.as_deref())).await?,
            Self::Timing(on) => {
                display.timing = on.unwrap_or(!display.timing);
                display.report("timing", display.timing)?;
            }
            Self::Profile(on) => {
                display.profile = on.unwrap_or(!display.profile);
                display.report("profile", display.profile)?;
            }
            Self::Pager(on) => {
                display.paging = on.unwrap_or(!display.paging);
                display.report("pager", display.paging)?;
            }
            Self::Vertical(on) => {
                let on = on.unwrap_or(display.format != Format::Vertical);
                display.set_vertical(on);
                display.report("one line per value", on)?;
            }
            Self::Format(format) => display.format = format,
            Self::Output(path) => display.redirect(path.as_deref())?,
            Self::Include(path) => return client.run_file(&path).await,
        }
        Ok(Flow::Continue)
    }
}

/// The query of `\d`.
const TABLES: &str = "SELECT table_schema AS schema, table_name AS name, table_type AS type \
                      FROM information_schema.tables \
                      WHERE table_schema <> 'information_schema' ORDER BY 1, 2";

/// The query of `\df`.
fn functions(name: Option<&str>) -> String {
    let name = name.unwrap_or_default().to_lowercase().replace('\'', "''");
    format!(
        "SELECT DISTINCT routine_name AS name, lower(function_type) AS kind, \
         syntax_example AS syntax FROM information_schema.routines \
         WHERE strpos(routine_name, '{name}') > 0 ORDER BY 1"
    )
}

/// A table as SQL names it: a path becomes a string.
fn quoted(table: &str) -> String {
    let is_path = table.contains(['/', '*']) || (table.contains('.') && !table.contains('"'));
    match is_path && std::path::Path::new(table).exists() {
        true => format!("'{}'", table.replace('\'', "''")),
        false => table.to_owned(),
    }
}

/// An argument without the quotes around it.
fn unquoted(argument: &str) -> &str {
    let inner = argument.strip_prefix('\'').and_then(|inner| inner.strip_suffix('\''));
    inner.unwrap_or(argument)
}

fn switch(value: &str) -> Result<Option<bool>, Error> {
    match value {
        "" => Ok(None),
        "on" | "true" | "1" => Ok(Some(true)),
        "off" | "false" | "0" => Ok(Some(false)),
        other => Err(Error::failed(format!("'{other}' is neither on nor off"))),
    }
}

/// Parses a format, also under its name in other shells.
fn format(name: &str) -> Result<Command, Error> {
    let format = match name {
        "line" => Ok(Format::Vertical),
        "duckbox" | "box" | "column" => Ok(Format::Table),
        "jsonlines" | "ndjson" | "nd-json" => Ok(Format::Json),
        "tabs" => Ok(Format::Tsv),
        name => Format::from_str(name, true),
    };
    format.map(Command::Format).map_err(|_| {
        let known: Vec<_> = Format::value_variants()
            .iter()
            .filter_map(|format| Some(format.to_possible_value()?.get_name().to_owned()))
            .collect();
        Error::failed(format!("there is no format '{name}'; known formats: {}", known.join(", ")))
    })
}

/// The text of `\?`.
fn help() -> String {
    let usage = |entry: &Entry| format!("{} {}", entry.names[0], entry.arguments);
    let width = ENTRIES.iter().map(|entry| usage(entry).len()).max().unwrap_or(0);
    let mut lines = vec!["A statement ends with ; and may have several lines.".to_owned()];
    for entry in ENTRIES {
        let also = match entry.names[1..].join(", ") {
            also if also.is_empty() => String::new(),
            also => format!(" (also {also})"),
        };
        lines.push(format!("  {:<width$}  {}{also}", usage(entry), entry.help));
    }
    lines.push("SHOW ALL lists the settings; SET changes one.".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    //! Commands under each of their names.

    use super::{Command, ENTRIES, quoted};
    use crate::args::Format;

    fn error(line: &str) -> String {
        Command::parse(line).unwrap_err().sentence().unwrap()
    }

    #[test]
    fn commands_have_the_names_of_other_shells() {
        for (line, command) in [
            ("\\d", Command::Tables),
            (".tables", Command::Tables),
            ("\\d people;", Command::Describe("people".to_owned())),
            ("\\timing", Command::Timing(None)),
            (".timer on", Command::Timing(Some(true))),
            (".mode line", Command::Format(Format::Vertical)),
            ("\\f CSV", Command::Format(Format::Csv)),
            ("\\o 'a b.csv'", Command::Output(Some("a b.csv".into()))),
            (".output", Command::Output(None)),
            ("\\q", Command::Quit),
            ("exit", Command::Quit),
        ] {
            assert_eq!(Command::parse(line).unwrap(), command, "{line}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = super::names().collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!((names.len(), ENTRIES.len()), (all, 11));
    }

    #[test]
    fn mistakes_are_explained() {
        assert_eq!(error("\\nothing"), "error: there is no command '\\nothing'; \\? lists them");
        assert_eq!(error("\\timing maybe"), "error: 'maybe' is neither on nor off");
        assert_eq!(error("\\i"), "error: \\i needs the name of a file");
        assert!(error(".mode xml").ends_with(
            "known formats: table, csv, tsv, json, markdown, \
                                              vertical, arrow"
        ));
    }

    #[test]
    fn only_files_are_quoted() {
        assert_eq!(quoted("a.b"), "a.b");
        assert_eq!(quoted("Cargo.toml"), "'Cargo.toml'");
    }
}
