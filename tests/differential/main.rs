//! Differential tests: gatework against plain DataFusion, on statements that were written for
//! neither.
//!
//! * `suite`: DataFusion's own sqllogictest files, statement by statement;
//! * `queries`: random tables and random queries;
//! * `files`: damaged Parquet, CSV, JSON and Arrow files.
//!
//! ```text
//! cargo test --release --test differential -- suite --mode tiny --files window
//! cargo test --release --test differential -- queries --count 20000 --seed 7 --mode all
//! cargo test --release --test differential -- files --count 50000 --seed 7
//! ```
//!
//! Without a command, as in a plain `cargo test`, each runs for a few seconds. Other arguments are
//! those of the standard test harness, whose filters have no effect.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests count as no tests for clippy"
)]

mod args;
mod files;
mod outcome;
mod queries;
mod report;
mod sessions;
mod suite;

use std::process::ExitCode;

use args::Args;
use report::Report;

fn main() -> ExitCode {
    let args = Args::of_process();
    let reports = match args.command() {
        "suite" => vec![suite::run(&args)],
        "queries" => vec![queries::run(&args)],
        "files" => vec![files::run(&args)],
        files::CHILD => return files::child(&args),
        "" => vec![
            suite::run(&args.or("every", "25")),
            queries::run(&args.or("count", "60")),
            files::run(&args.or("count", "100")),
        ],
        // A filter or a flag of the standard harness.
        _ => vec![],
    };
    reports.iter().for_each(Report::print);
    let failed = reports.iter().filter(|report| report.has_failed()).count();
    println!("{} passed, {failed} failed", reports.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
