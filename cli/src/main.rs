//! The command line: parses the arguments, runs the command, turns its end into an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; also when whoever reads our output has had enough |
//! | 1 | the command failed; one sentence on standard error says why |
//! | 2 | the arguments make no sense |
//! | 130 | cancelled by Ctrl-C |
//!
//! Ctrl-C drops the future of the command, and with it the stream of the running query, which is how a query is
//! cancelled everywhere in gatework.

#![deny(unsafe_code)]

mod allocator;
mod args;
mod engine;
mod error;
mod output;
mod progress;
mod sql;
mod statements;
mod tables;
mod tpch;
mod worker;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal;

use args::{Args, Command};
use error::Error;

/// How long a cancelled command may take to remove its temporary files before the process ends without it.
const CLEAN_UP: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse_from(args::readable(std::env::args_os()));
    allocator::keep_pages(args.command.resources().memory_limit.is_some());
    let result = runtime(&args.command).and_then(|runtime| {
        let result = runtime.block_on(run(args.command));
        runtime.shutdown_timeout(CLEAN_UP);
        engine::wait_for_files(CLEAN_UP);
        result
    });
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(sentence) = error.sentence() {
        // Nobody can be told if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    ExitCode::from(error.exit_code())
}

async fn run(command: Command) -> Result<(), Error> {
    let work = async {
        match command {
            Command::Tpch(args) => tpch::run(args).await,
            Command::Sql(args) => sql::run(args).await,
            Command::Worker(args) => worker::run(args).await,
        }
    };
    tokio::select! {
        // The listener comes first, so that it is there before the command begins.
        biased;
        interrupt = signal::ctrl_c() => match interrupt {
            Ok(()) => Err(Error::Cancelled),
            Err(error) => Err(Error::failed(format!("cannot listen for Ctrl-C: {error}"))),
        },
        result = work => result,
    }
}

/// The runtime that plans, reads files, talks to other machines, and runs the plain DataFusion session that results are
/// compared with. It has two threads at least: while one divides rows among workers, the other says that we are there.
fn runtime(command: &Command) -> Result<Runtime, Error> {
    let threads = command.resources().threads;
    Builder::new_multi_thread()
        .worker_threads(engine::threads(threads).get().max(2))
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("cannot start threads: {error}")))
}
