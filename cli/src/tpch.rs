//! `gatework tpch`: generates the data, runs the queries, verifies every result against two
//! oracles, reports.
//!
//! A failing query does not stop the others; the exit code tells whether all succeeded.

mod answers;
mod data;
mod generate;
mod measure;
mod queries;
mod reference;
mod report;
mod table;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use crate::args::TpchArgs;
use crate::engine::{self, Engine};
use crate::error::Error;
use crate::output::LineWriter;
use crate::tables;
use data::Data;
use measure::Measure;
use report::Report;
use table::Table;

/// Runs the command.
pub(crate) async fn run(args: TpchArgs) -> Result<(), Error> {
    let queries = queries::load(args.query_dir.as_deref(), &args.queries)?;
    let json = args.json.as_deref().map(|path| create_json(path.to_owned())).transpose()?;
    let data = data::find_or_make(
        args.data,
        args.scale_factor,
        engine::threads(args.engine.resources.threads),
    )
    .await?;
    let engine = Engine::start(&args.engine)?;
    let catalog = Catalog::open(&engine, &data, args.in_memory).await?;
    // The answers are for the queries of the specification at scale factor 1.
    let answers = args.query_dir.is_none() && data.has_answers;
    let measure = Measure {
        engine: &engine,
        catalog: &catalog,
        iterations: args.iterations,
        threads: args.engine.resources.threads,
        verify: !args.no_verify,
        answers,
    };
    let mut report = Report::begin(
        LineWriter::stdout(),
        &data,
        engine::threads(args.engine.resources.threads),
        measure.oracles(),
    )?;
    for query in &queries {
        let spinner = crate::progress::spinner(format!("q{}", query.number));
        let outcome = measure.run(query, &spinner).await;
        spinner.finish_and_clear();
        report.add(outcome)?;
    }
    if let Some((path, file)) = json {
        report.write_json(file).map_err(|error| unwritable(&path, &error))?;
    }
    report.end()
}

/// The tables, opened once and shared by all sessions.
struct Catalog {
    tables: Vec<(Table, Arc<dyn TableProvider>)>,
}

impl Catalog {
    async fn open(engine: &Engine, data: &Data, in_memory: bool) -> Result<Self, Error> {
        let session = engine.session();
        let mut tables = Vec::new();
        for table in Table::ALL {
            let path = data.path(table);
            let mut provider =
                tables::open(&session, &path.to_string_lossy(), Engine::limit(&session))
                    .await?
                    .table;
            if in_memory {
                let loaded = load(&session, provider).await;
                provider = loaded.map_err(|error| Error::query(&error, &session))?;
            }
            tables.push((table, provider));
        }
        Ok(Self { tables })
    }

    /// Registers the tables in a session.
    fn register(&self, session: &SessionContext) -> Result<(), Error> {
        for (table, provider) in &self.tables {
            let registered = session.register_table(table.name(), Arc::clone(provider));
            registered.map_err(|error| Error::query(&error, session))?;
        }
        Ok(())
    }
}

/// Loads a table into memory.
async fn load(
    session: &SessionContext,
    table: Arc<dyn TableProvider>,
) -> datafusion::error::Result<Arc<dyn TableProvider>> {
    let schema = table.schema();
    let batches = session.read_table(table)?.collect().await?;
    Ok(Arc::new(MemTable::try_new(schema, vec![batches])?))
}

/// Creates the file before the queries run, so that a wrong path fails at once.
fn create_json(path: PathBuf) -> Result<(PathBuf, File), Error> {
    match File::create(&path) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(unwritable(&path, &error)),
    }
}

fn unwritable(path: &std::path::Path, error: &std::io::Error) -> Error {
    Error::failed(format!("'{}' cannot be written: {error}", path.display()))
}
