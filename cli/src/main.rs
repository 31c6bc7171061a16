//! The command line: parses arguments, runs the command, and returns its exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, or the reader of standard output has closed it |
//! | 1 | the command failed; one sentence on standard error says why |
//! | 2 | the arguments are invalid |
//! | 129, 130, 143 | ended by SIGHUP, by Ctrl-C, by SIGTERM |
//!
//! The main thread listens for signals, and the command runs on another thread. A signal drops the
//! future of the command and with it the stream of the running query, which cancels the query. A
//! busy command has [`CLEAN_UP`] to notice it.

#![deny(unsafe_code)]

mod allocator;
mod args;
mod blocking;
mod engine;
mod error;
mod formats;
mod large_stack;
mod output;
mod progress;
mod shell;
mod signals;
mod sql;
mod statements;
mod store;
mod tables;
mod tpch;
mod worker;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap_mangen::Man;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::{select, time};

use args::Command;
use error::Error;
use output::LineWriter;
use signals::{Signal, Signals};

/// Maximum time for a cancelled command to remove its temporary files before the process ends.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Stack bytes of the runtime's threads: they drop plans, and read the streams of fallback nodes.
const RUNTIME_STACK_BYTES: usize = 16 << 20;

fn main() -> ExitCode {
    let command = Command::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    allocator::set_purge_delay(command.resources().memory_limit.is_some());
    large_stack::capture_panics();
    let result = runtime(&command).and_then(|runtime| {
        let (result, ended) = runtime.block_on(supervise(command));
        match ended {
            true => runtime.shutdown_timeout(CLEAN_UP),
            false => runtime.shutdown_background(),
        }
        engine::wait_for_temp_files(CLEAN_UP);
        result
    });
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(sentence) = error.sentence() {
        // The message is lost if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
    ExitCode::from(error.exit_code())
}

/// Runs the command until it or a signal ends it. Returns its result, and whether its thread has
/// ended.
async fn supervise(command: Command) -> (Result<(), Error>, bool) {
    let mut signals = match Signals::listen(signals(&command)) {
        Ok(signals) => signals,
        Err(error) => return (Err(error), true),
    };
    let (cancel, cancelled) = oneshot::channel();
    let work = move || async move {
        select! {
            biased;
            _ = cancelled => Ok(()),
            result = run(command) => result,
        }
    };
    let mut done = match large_stack::spawn(work) {
        Ok(done) => done,
        Err(error) => return (Err(error), true),
    };
    select! {
        biased;
        signal = signals.next() => {
            // The command may have ended by itself at the same time.
            let _ended = cancel.send(());
            sql::stop_pager();
            let ended = select! {
                ended = time::timeout(CLEAN_UP, done) => ended.is_ok(),
                _ = signals.next() => false,
            };
            (Err(Error::Ended(signal)), ended)
        }
        result = &mut done => match result {
            Ok(Ok(result)) => (result, true),
            Ok(Err(said)) => (Err(large_stack::panicked("the command", &said)), true),
            Err(_) => (Err(Error::failed("the command ended without a result")), true),
        },
    }
}

/// The signals that end the command. A worker handles SIGTERM itself, and finishes its active
/// tasks. In a shell Ctrl-C ends a query.
fn signals(command: &Command) -> &'static [Signal] {
    match command {
        Command::Worker(_) => &[Signal::Interrupt, Signal::HangUp],
        Command::Sql(args) if sql::opens_shell(args) => &[Signal::Terminate, Signal::HangUp],
        _ => &[Signal::Interrupt, Signal::Terminate, Signal::HangUp],
    }
}

async fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Tpch(args) => tpch::run(args).await,
        Command::Sql(args) => sql::run(args).await,
        Command::Worker(args) => worker::run(args).await,
        Command::Completions(args) => {
            let mut definition = args::definition();
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut definition, "gatework", &mut script);
            write_all(&script)
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = Man::new(args::definition()).render(&mut page);
            rendered.map_err(|error| Error::failed(format!("the man page fails: {error}")))?;
            write_all(&page)
        }
    }
}

/// Writes to standard output.
fn write_all(bytes: &[u8]) -> Result<(), Error> {
    let mut out = LineWriter::stdout();
    out.write_all(bytes).map_err(|error| Error::failed(format!("cannot be written: {error}")))?;
    out.flush()
}

/// The runtime that plans, reads files, talks to other machines, and runs the plain DataFusion
/// reference. It has at least two threads: one may be busy partitioning rows for workers while the
/// other answers keep-alives.
fn runtime(command: &Command) -> Result<Runtime, Error> {
    let threads = command.resources().threads;
    Builder::new_multi_thread()
        .worker_threads(engine::threads(threads).get().max(2))
        .thread_stack_size(RUNTIME_STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("cannot start threads: {error}")))
}
