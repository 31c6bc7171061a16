//! The names that the shell completes.

use datafusion::prelude::SessionContext;

use crate::error::suggestion::functions;

/// Names of a session.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) tables: Vec<Table>,
    pub(super) functions: Vec<String>,
    pub(super) settings: Vec<String>,
}

/// A table with its columns.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
}

impl Catalog {
    /// The names of a session: tables of the default schema, functions and settings.
    pub(super) async fn of(session: &SessionContext) -> Self {
        let state = session.state();
        let defaults = &state.config_options().catalog;
        let catalog = session.catalog(&defaults.default_catalog);
        let schema = catalog.and_then(|catalog| catalog.schema(&defaults.default_schema));
        let mut tables = Vec::new();
        if let Some(schema) = schema {
            for name in schema.table_names() {
                // A table that cannot be opened has no columns to complete.
                let table = schema.table(&name).await.ok().flatten();
                let columns = table.map(|table| columns(&table.schema())).unwrap_or_default();
                tables.push(Table { name, columns });
            }
        }
        let functions = functions(&state).map(str::to_owned).collect();
        let settings = state.config_options().entries().into_iter().map(|entry| entry.key);
        Self { tables, functions, settings: settings.collect() }
    }
}

fn columns(schema: &datafusion::arrow::datatypes::Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}
