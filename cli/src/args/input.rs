//! Where the statements of `gatework sql` come from.

use std::path::PathBuf;

use clap::ArgMatches;

/// A source of statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// An argument.
    Text(String),
    /// A file, named by `-f`.
    File(PathBuf),
    /// Standard input, named by `-`.
    Stdin,
}

/// Returns the inputs of `statements`, `commands` and `files` as the command line orders them.
pub(super) fn in_order(matches: &ArgMatches) -> Vec<Input> {
    let mut inputs = Vec::new();
    for id in ["statements", "commands"] {
        inputs.extend(with_positions::<String>(matches, id).map(|(position, text)| {
            let stdin = id == "statements" && text == "-";
            (position, if stdin { Input::Stdin } else { Input::Text(text) })
        }));
    }
    inputs.extend(with_positions::<PathBuf>(matches, "files").map(|(position, path)| {
        let stdin = path.as_os_str() == "-";
        (position, if stdin { Input::Stdin } else { Input::File(path) })
    }));
    inputs.sort_by_key(|(position, _)| *position);
    inputs.into_iter().map(|(_, input)| input).collect()
}

/// The values of an argument with their positions on the command line.
fn with_positions<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
) -> impl Iterator<Item = (usize, T)> {
    let positions = matches.indices_of(id).into_iter().flatten();
    let values = matches.get_many::<T>(id).into_iter().flatten().cloned();
    positions.zip(values).collect::<Vec<_>>().into_iter()
}
