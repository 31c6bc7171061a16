//! Options of object stores in `CREATE EXTERNAL TABLE`, as `datafusion-cli` has them.

use std::iter::zip;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::Result;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::CreateExternalTable;
use url::Url;

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
        let urls = command.locations.iter().filter_map(|location| remote::url(location));
        let urls: Vec<Url> = urls.collect();
        let of_store =
            |option: &(String, String)| !urls.is_empty() && objects::is_option(&option.0);
        let options = command.options.into_iter();
        let (of_store, options): (Vec<_>, Vec<_>) = options.partition(of_store);
        command.options = options.into_iter().collect();
        if of_store.is_empty() {
            return self.inner.create(session, &command).await;
        }
        let open = |url: &Url| objects::open_with(url, &of_store);
        let stores = urls.iter().map(open).collect::<Result<Vec<_>>>()?;
        let runtime = session.runtime_env();
        let before: Vec<_> = zip(&urls, stores)
            .map(|(url, store)| runtime.register_object_store(url, store))
            .collect();
        let created = self.inner.create(session, &command).await;
        if created.is_err() {
            // The URLs open the stores that they opened before.
            for (url, store) in zip(&urls, before).rev() {
                match store {
                    Some(store) => _ = runtime.register_object_store(url, store),
                    None => _ = runtime.deregister_object_store(url)?,
                }
            }
        }
        created
    }
}

#[cfg(all(test, feature = "object-stores"))]
mod tests {
    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::prelude::SessionContext;
    use url::Url;

    use super::with_store_options;

    #[tokio::test]
    async fn a_table_that_fails_leaves_no_store() {
        let builder = SessionStateBuilder::new().with_default_features();
        let session = SessionContext::new_with_state(with_store_options(builder).build());
        let url = Url::parse("s3://bucket").unwrap();
        for (option, is_created) in [("'format.colour' 'red'", false), ("'aws.token' 't'", true)] {
            let sql = format!(
                "CREATE EXTERNAL TABLE t (n INT) STORED AS CSV LOCATION 's3://bucket/a.csv' \
                 OPTIONS ('aws.region' 'here', {option})"
            );
            assert_eq!(session.sql(&sql).await.is_ok(), is_created, "{option}");
            let store = session.runtime_env().object_store_registry.get_store(&url);
            assert_eq!(store.is_ok(), is_created, "{option}");
        }
    }
}
