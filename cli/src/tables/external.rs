//! Options of object stores in `CREATE EXTERNAL TABLE`, as `datafusion-cli` has them.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::Result;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::CreateExternalTable;

use super::remote;
use crate::store::objects;

/// Lets `CREATE EXTERNAL TABLE … OPTIONS ('aws.region' '…')` open the store of its location.
pub(crate) fn with_store_options(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    if let Some(factories) = builder.table_factories() {
        for factory in factories.values_mut() {
            *factory = Arc::new(ExternalTables { inner: Arc::clone(factory) });
        }
    }
    builder
}

/// Registers the stores that a command's options describe, and creates its table by `inner`.
#[derive(Debug)]
struct ExternalTables {
    inner: Arc<dyn TableProviderFactory>,
}

#[async_trait]
impl TableProviderFactory for ExternalTables {
    async fn create(
        &self,
        session: &dyn Session,
        command: &CreateExternalTable,
    ) -> Result<Arc<dyn TableProvider>> {
        let mut command = command.clone();
        let of_store = |option: &(String, String)| objects::is_option(&option.0);
        let options = command.options.into_iter();
        let (of_store, options): (Vec<_>, Vec<_>) = options.partition(of_store);
        command.options = options.into_iter().collect();
        for url in command.locations.iter().filter_map(|location| remote::url(location)) {
            if !of_store.is_empty() {
                let store = objects::open_with(&url, &of_store)?;
                session.runtime_env().register_object_store(&url, store);
            }
        }
        self.inner.create(session, &command).await
    }
}
