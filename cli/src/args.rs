//! The arguments of the command line, as clap reads them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, Subcommand, ValueEnum};

use crate::tables::TableArg;

/// SQL over files through gates, tasks and pipelines.
#[derive(Debug, Parser)]
#[command(name = "gatework", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Tpch(TpchArgs),
    Sql(SqlArgs),
    Worker(WorkerArgs),
}

impl Command {
    /// What its queries may use.
    pub(crate) fn resources(&self) -> &ResourceArgs {
        match self {
            Self::Tpch(args) => &args.engine.resources,
            Self::Sql(args) => &args.engine.resources,
            Self::Worker(args) => &args.resources,
        }
    }
}

/// Run the TPC-H queries and verify their results.
///
/// Makes the data if it is not there, runs each query several times, and compares every result with a plain DataFusion
/// session over the same files; at scale factor 1 also with the answers of the specification. Fails if a query failed,
/// differed, or ran in part on operators that are not gatework's own.
#[derive(Debug, clap::Args)]
pub(crate) struct TpchArgs {
    /// Size of the data; 1 is about a gigabyte of text. Default: that of the data in DIR, or 1
    #[arg(long, value_name = "F", value_parser = scale_factor)]
    pub(crate) scale_factor: Option<f64>,
    /// Folder with `<table>.parquet`; missing tables are made. Default: `tpch-data/sf<F>`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Folder with `q1.sql`, `q2.sql`, … to run instead of the queries of the specification
    #[arg(long, value_name = "DIR")]
    pub(crate) query_dir: Option<PathBuf>,
    /// Numbers of the queries to run. Default: all
    #[arg(long, value_name = "1,6,…", value_delimiter = ',', value_parser = query_number)]
    pub(crate) queries: Vec<u32>,
    /// How often to run each query
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) iterations: NonZeroUsize,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Load the tables into memory before the queries run
    #[arg(long)]
    pub(crate) in_memory: bool,
    /// Do not compare results
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Write the measurements to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Run SQL over Parquet, CSV, JSON and Arrow files.
///
/// Several strings, and several statements in one string, run one after the other in one session.
#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// What to run
    #[arg(value_name = "SQL", required = true)]
    pub(crate) statements: Vec<String>,
    /// A table: a file, a folder, or a quoted glob. The extension names the format: .parquet, .csv, .tsv, .json (one
    /// object a line), .arrow; CSV and JSON also as .gz, .bz2, .xz, .zst
    #[arg(long = "table", value_name = "NAME=PATH")]
    pub(crate) tables: Vec<TableArg>,
    /// How to print results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print how each query would run, instead of running it. To be given behind the SQL
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        default_missing_value = "plan"
    )]
    pub(crate) explain: Option<Explain>,
}

/// Run parts of the queries of others.
///
/// Prints its address when it is ready, and then nothing until it is told to end: by SIGTERM, after which it finishes
/// what it has begun, or by Ctrl-C. It reads what --allow-path names, as the user that it runs as, and writes nothing but
/// temporary files.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Where to listen; port 0 is any that is free. Without certificates, this machine only
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// A file, or a folder with all below it, that queries may read. May be given several times. Default: nothing
    #[arg(long = "allow-path", value_name = "PATH")]
    pub(crate) allowed_paths: Vec<PathBuf>,
    /// Listen to other machines without encryption. Who can reach the address can read what is sent and, unless there is
    /// a token, send queries
    #[arg(long)]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
}

/// What the members of a cluster show each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct AuthArgs {
    /// File with the token that every request to a worker carries; all members have the same
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate of this member, in PEM format, for the name by which others call it. Connections are encrypted then, and
    /// both sides show a certificate
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificate of the authority that the certificates of all members are from
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// How queries run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    /// Run each query as stages on so many nodes of this process, which have a share of the threads each, and at least
    /// one. Default: no stages
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) nodes: Option<NonZeroUsize>,
    /// When stages start, if there are nodes
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, requires = "nodes")]
    pub(crate) execution_policy: ExecutionPolicyArg,
    /// Run queries on these workers, such as http://127.0.0.1:8080, as far as they are worth it. See `gatework worker`
    #[arg(long, value_name = "URL,…", value_delimiter = ',', conflicts_with = "nodes")]
    pub(crate) workers: Vec<String>,
    /// How many bytes of a table's files are worth a part of their own for workers, such as 1MB. Default: 16 MiB
    #[arg(long, value_name = "SIZE", requires = "workers")]
    pub(crate) bytes_per_partition: Option<ByteSize>,
    /// How often a query whose workers are lost runs again, on those that answer; queries that write do not. Default: 0
    #[arg(
        long,
        value_name = "N",
        requires = "workers",
        default_value = "0",
        hide_default_value = true
    )]
    pub(crate) retries: usize,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    /// How long a query may take, such as 90s or 5min. Default: for ever
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// What queries may use.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ResourceArgs {
    /// Threads that run queries. Default: one per core
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory that queries may hold, such as 512MiB or 2GB. Joins, aggregates, sorts and windows spill what does not fit
    /// to temporary files; other queries that need more fail. Default: no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_limit: Option<ByteSize>,
    /// Folder for temporary files, which are gone when the query is. Default: the system's
    #[arg(long, value_name = "DIR")]
    pub(crate) temp_dir: Option<PathBuf>,
    /// What temporary files may take, such as 20GB. Default: 100 GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_temp_size: Option<ByteSize>,
}

/// What is told of a query instead of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Explain {
    /// The plan, and which of its nodes are not gatework's own
    Plan,
    /// The stages in which it runs on so many nodes as `--nodes` says, or on 4
    Stages,
    /// The same as a picture, in Mermaid's language
    Mermaid,
}

/// When the stages of a query start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecutionPolicyArg {
    /// All of them at once
    #[default]
    AllAtOnce,
    /// What joins collect first, then what probes it: less memory at a time
    Phased,
}

/// How results are printed. Each result is printed whole before the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// Comma-separated values with a header line
    Csv,
    /// One JSON object a line
    Json,
    /// An Arrow IPC stream
    Arrow,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let number: usize = text.parse().map_err(|_| "not a whole number".to_owned())?;
    NonZeroUsize::new(number).ok_or_else(|| "at least 1 is needed".to_owned())
}

/// Below a thousandth the generator runs out of suppliers for its parts.
fn scale_factor(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.001..=100_000.0).contains(&scale) {
        true => Ok(scale),
        false => Err("a scale factor lies between 0.001 and 100000".to_owned()),
    }
}

/// `6`, and `q6` for those who think of the file.
fn query_number(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let number: Option<u32> = text.strip_prefix(['q', 'Q']).unwrap_or(text).parse().ok();
    number.filter(|&number| number > 0).ok_or_else(|| "not the number of a query".to_owned())
}

/// The arguments, with SQL that begins with a comment kept from being taken for a flag: `--` and what follows, up to
/// the first blank, names no option of ours if there is a blank in the argument at all and no `=` before it.
pub(crate) fn protect_sql_comments(
    arguments: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    arguments.into_iter().map(|argument| match argument.to_str() {
        Some(text) if begins_with_comment(text) => OsString::from(format!("\n{text}")),
        _ => argument,
    })
}

fn begins_with_comment(text: &str) -> bool {
    text.starts_with("--")
        && text.split_once(char::is_whitespace).is_some_and(|(first, _)| !first.contains('='))
}

#[cfg(test)]
mod tests;
