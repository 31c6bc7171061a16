//! The arguments of the test binary: one command, and options of the form `--name value`.

use std::{collections::HashMap, env, fmt::Display, str::FromStr};

/// A command and its options.
#[derive(Debug, Clone, Default)]
pub(crate) struct Args {
    command: String,
    options: HashMap<String, String>,
}

impl Args {
    /// Reads the arguments of this process.
    pub(crate) fn of_process() -> Self {
        let mut args = Self::default();
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                // A flag of the standard harness, such as `--ignored`, counts as an unknown
                // command.
                _ if args.command.is_empty() => args.command = word,
                Some(name) => {
                    args.options.insert(name.to_owned(), words.next().unwrap_or_default());
                }
                None => args.command = "a filter".to_owned(),
            }
        }
        args
    }

    /// Returns the command; empty if there is none.
    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// Adds an option, unless it is given.
    pub(crate) fn or(&self, name: &str, value: &str) -> Self {
        let mut args = self.clone();
        args.options.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        args
    }

    /// Returns the text of an option; empty if it is not given.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.options.get(name).map_or("", String::as_str)
    }

    /// Returns the number of an option, or `default`. Panics if the value is not a number.
    pub(crate) fn number<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> T {
        match self.options.get(name).map(|value| value.parse()) {
            None => default,
            Some(Ok(number)) => number,
            Some(Err(error)) => panic!("--{name}: {error}"),
        }
    }
}
