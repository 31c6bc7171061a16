//! The command line's arguments.

mod input;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::tables::TableArg;
pub(crate) use input::Input;

/// What each exit code means; part of the help and of the man page.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, one sentence on standard error says why; \
                          2 invalid arguments; 129, 130 and 143 ended by SIGHUP, Ctrl-C, SIGTERM.";

/// SQL over files, run by the gatework engine.
///
/// Without SQL, opens a shell on a terminal, or runs the statements of standard input.
#[derive(Debug, Parser)]
#[command(name = "gatework", version, args_conflicts_with_subcommands = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    sql: SqlArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Tpch(TpchArgs),
    Sql(SqlArgs),
    Worker(WorkerArgs),
    Completions(CompletionsArgs),
    /// Print the man page, for `gatework man > gatework.1`
    Man,
}

impl Command {
    /// Parses the arguments of the process, the first of which is its name. The error prints itself
    /// and ends the process; asking for help is one.
    pub(crate) fn parse(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let matches = Args::command().try_get_matches_from(protect_sql(arguments))?;
        let args = Args::from_arg_matches(&matches)?;
        let mut command = args.command.unwrap_or(Self::Sql(args.sql));
        if let Self::Sql(sql) = &mut command {
            let of_sql = matches.subcommand_matches("sql");
            sql.inputs = input::in_order(of_sql.unwrap_or(&matches));
        }
        Ok(command)
    }

    /// Resources of its queries; none if the command runs no queries.
    pub(crate) fn resources(&self) -> ResourceArgs {
        match self {
            Self::Tpch(args) => args.engine.resources.clone(),
            Self::Sql(args) => args.engine.resources.clone(),
            Self::Worker(args) => args.resources.clone(),
            Self::Completions(_) | Self::Man => ResourceArgs::default(),
        }
    }
}

/// The definition of the command line, for its man page and completions.
pub(crate) fn definition() -> clap::Command {
    Args::command()
}

/// Print the completions of a shell, for `source <(gatework completions bash)`
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Run the TPC-H queries and verify their results.
///
/// Generates missing data and runs each query several times. Compares every result with that of
/// plain DataFusion over the same files, and at scale factor 1 also with the answers of the
/// specification. Fails if a query fails, differs, or has fallback operators.
#[derive(Debug, clap::Args)]
pub(crate) struct TpchArgs {
    /// Scale factor of the data; 1 is about 1 GB of text. Default: that of the data in DIR, or 1
    #[arg(long, value_name = "F", value_parser = scale_factor)]
    pub(crate) scale_factor: Option<f64>,
    /// Folder with `<table>.parquet` files; missing tables are generated. Default:
    /// `tpch-data/sf<F>`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Folder with `q1.sql`, `q2.sql`, … to run instead of the queries of the specification
    #[arg(long, value_name = "DIR")]
    pub(crate) query_dir: Option<PathBuf>,
    /// Numbers of the queries to run. Default: all
    #[arg(long, value_name = "1,6,…", value_delimiter = ',', value_parser = query_number)]
    pub(crate) queries: Vec<u32>,
    /// Number of runs of each query
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(crate) iterations: NonZeroUsize,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Load the tables into memory before the queries run
    #[arg(long)]
    pub(crate) in_memory: bool,
    /// Do not verify results
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Write the measurements to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Run SQL over Parquet, CSV, JSON and Arrow files.
///
/// The word `sql` may be left out. Statements run one after the other in one session, in the order
/// of the arguments. A file can be a table as it is: FROM 'people.csv', FROM 'logs/*.parquet'.
#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// SQL statements to run; `-` reads them from standard input. Default: a shell on a terminal,
    /// otherwise standard input
    #[arg(value_name = "SQL")]
    statements: Vec<String>,
    /// SQL statements, or a command of the shell such as '\d', to run; may be repeated
    #[arg(short = 'c', long = "command", value_name = "SQL", allow_hyphen_values = true)]
    commands: Vec<String>,
    /// File with statements and commands of the shell to run; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The former three in the order of the command line.
    #[arg(skip)]
    pub(crate) inputs: Vec<Input>,
    /// File that runs first. Default: .gateworkrc in the home folder, which only the shell runs
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// Run no init file
    #[arg(long, conflicts_with = "init")]
    pub(crate) no_init: bool,
    /// Table over a file, a folder or a quoted glob; may be repeated. The extension is the format:
    /// .parquet, .csv, .tsv, .json, .arrow; CSV and JSON also as .gz, .bz2, .xz, .zst. The
    /// delimiter and the header of CSV files are detected; JSON files have one object per line, or
    /// are one array
    #[arg(long = "table", short = 't', value_name = "NAME=PATH")]
    pub(crate) tables: Vec<TableArg>,
    /// Output format of results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print how each query would run instead of running it
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        default_missing_value = "plan"
    )]
    pub(crate) explain: Option<Explain>,
}

/// Run tasks of queries of other processes.
///
/// Prints its address once it is ready. Ends on SIGTERM, after its active tasks, or at once on
/// Ctrl-C. Reads only paths of --allow-path, with the rights of its user, and writes only temporary
/// files.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Address to listen on; port 0 selects a free port. Other machines need --tls-cert or
    /// --insecure
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// File, or folder with everything below it, that queries may read; may be repeated. Default:
    /// none
    #[arg(long = "allow-path", value_name = "PATH")]
    pub(crate) allowed_paths: Vec<PathBuf>,
    /// Accept connections of other machines without encryption. Anyone on the network can read the
    /// traffic and, without a token, send queries
    #[arg(long)]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) auth: AuthArgs,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
}

/// Credentials of a cluster's members.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct AuthArgs {
    /// File with the token of the cluster, which every request carries; all members need the same
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file with the certificate of this member, for the host name in its address. Encrypts
    /// connections; both sides must present a certificate
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file with the key of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// PEM file with the certificate of the authority that signed all members' certificates
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// How queries run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    /// Run each query as stages on N nodes of this process, which share the threads (at least one
    /// each). Default: no stages
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) nodes: Option<NonZeroUsize>,
    /// When stages start; needs --nodes
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, requires = "nodes")]
    pub(crate) execution_policy: ExecutionPolicyArg,
    /// Run queries on these workers (see `gatework worker`), such as http://127.0.0.1:8080. Queries
    /// that are too small run in this process
    #[arg(long, value_name = "URL,…", value_delimiter = ',', conflicts_with = "nodes")]
    pub(crate) workers: Vec<String>,
    /// Minimum bytes of a table's files per partition of a worker's task, such as 1MB. Default: 16
    /// MiB
    #[arg(long, value_name = "SIZE", requires = "workers", value_parser = size)]
    pub(crate) bytes_per_partition: Option<ByteSize>,
    /// Maximum number of retries of a query whose worker is lost, on the remaining workers. Queries
    /// that write are not retried. Default: 0
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
    /// Maximum run time of a query, such as 90s or 5min; a longer one fails. Default: unlimited
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Resources of queries.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ResourceArgs {
    /// Number of threads that run queries. Default: one per core
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Maximum memory of queries, such as 512MiB or 2GB. Joins, aggregates, sorts and windows spill
    /// to temporary files at the limit; other operators fail. Default: unlimited
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory_limit: Option<ByteSize>,
    /// Folder for temporary files, which are removed when their query ends. Default: the system's
    #[arg(long, value_name = "DIR")]
    pub(crate) temp_dir: Option<PathBuf>,
    /// Maximum total size of spill files, such as 20GB; a query that exceeds it fails. Default: 100
    /// GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_temp_size: Option<ByteSize>,
}

/// What to print of a query instead of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Explain {
    /// The physical plan and its fallback nodes
    Plan,
    /// The stages on --nodes nodes. Default: 4 nodes
    Stages,
    /// The stages as a Mermaid flow chart
    Mermaid,
}

/// When the stages of a query start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecutionPolicyArg {
    /// All stages at once
    #[default]
    AllAtOnce,
    /// Build sides of joins before their probe sides, which needs less memory at a time
    Phased,
}

/// Output format of results. A result is printed completely before the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// Comma-separated values with a header line
    Csv,
    /// Tab-separated values with a header line
    Tsv,
    /// One JSON object per line
    Json,
    /// A table of Markdown
    Markdown,
    /// One line per value
    Vertical,
    /// An Arrow IPC stream
    Arrow,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let number: usize = text.parse().map_err(|_| "not a whole number".to_owned())?;
    NonZeroUsize::new(number).ok_or_else(|| "it must be at least 1".to_owned())
}

/// Parses a scale factor. Below 0.001 the generator has too few suppliers for its parts.
fn scale_factor(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.001..=100_000.0).contains(&scale) {
        true => Ok(scale),
        false => Err("a scale factor must be between 0.001 and 100000".to_owned()),
    }
}

/// Parses `6` or `q6`.
fn query_number(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let number: Option<u32> = text.strip_prefix(['q', 'Q']).unwrap_or(text).parse().ok();
    number.filter(|&number| number > 0).ok_or_else(|| "not the number of a query".to_owned())
}

/// Parses a size. A bare number has no unit, and is more often meant as megabytes than as bytes.
fn size(text: &str) -> Result<ByteSize, String> {
    let number = text.trim();
    if number != "0" && number.parse::<f64>().is_ok() {
        return Err(format!("the unit is missing; write {number}MiB, {number}GiB or {number}B"));
    }
    number.parse().map_err(|_| "not a size such as 512MiB or 2GB".to_owned())
}

/// Returns the arguments, with SQL protected from being parsed as an option or as its value. An
/// argument with a blank but no `=` before the blank, and with `--` at its beginning, is a comment
/// of SQL and never an option. SQL behind `--explain` is no value of that option.
fn protect_sql(arguments: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut arguments = arguments.into_iter().peekable();
    std::iter::from_fn(move || {
        let argument = arguments.next()?;
        Some(match argument.to_str() {
            Some("--explain") if !arguments.peek().is_some_and(|next| is_explain(next)) => {
                OsString::from("--explain=plan")
            }
            Some(text) if begins_with_comment(text) => OsString::from(format!("\n{text}")),
            _ => argument,
        })
    })
}

fn is_explain(argument: &OsStr) -> bool {
    argument.to_str().is_some_and(|text| Explain::from_str(text, false).is_ok())
}

fn begins_with_comment(text: &str) -> bool {
    text.starts_with("--")
        && text.split_once(char::is_whitespace).is_some_and(|(first, _)| !first.contains('='))
}

#[cfg(test)]
mod tests;
