//! `gatework sql`: statements over files, from arguments, files, standard input or the shell.

pub(crate) mod client;
mod commands;
mod display;
mod pager;
pub(crate) mod script;

pub(crate) use commands::names as command_names;
pub(crate) use pager::stop as stop_pager;

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use crate::args::{Input, SqlArgs};
use crate::blocking;
use crate::error::Error;
use crate::shell;
use client::{Client, Flow};

/// Runs the command.
pub(crate) async fn run(args: SqlArgs) -> Result<(), Error> {
    let mut client = Client::open(&args).await?;
    if opens_shell(&args) {
        return shell::run(client, &args).await;
    }
    if let Some(path) = &args.init
        && client.run_file(path).await? == Flow::Quit
    {
        return client.flush();
    }
    let stdin = [Input::Stdin];
    let inputs = if args.inputs.is_empty() { &stdin } else { args.inputs.as_slice() };
    for input in inputs {
        let flow = match input {
            Input::Text(text) => client.run_script(text, None).await?,
            Input::File(path) => client.run_file(path).await?,
            Input::Stdin => client.run_script(&standard_input().await?, None).await?,
        };
        if flow == Flow::Quit {
            break;
        }
    }
    client.flush()
}

/// Whether the command opens a shell: without SQL, on a terminal.
pub(crate) fn opens_shell(args: &SqlArgs) -> bool {
    args.inputs.is_empty() && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The statements of standard input.
async fn standard_input() -> Result<String, Error> {
    let read = || {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| without_mark(text))
    };
    let failed = |error| Error::failed(format!("standard input cannot be read: {error}"));
    blocking::call(read).await?.map_err(failed)
}

/// The statements of a file.
fn read_file(path: &Path) -> Result<String, Error> {
    let failed = |error| Error::failed(format!("'{}' cannot be read: {error}", path.display()));
    fs::read_to_string(path).map(without_mark).map_err(failed)
}

/// The text without the byte order mark that some editors write at its beginning.
fn without_mark(text: String) -> String {
    text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text)
}
