//! `CREATE EXTERNAL TABLE`: what gatework adds to the session's factories of tables.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider, TableProviderFactory},
    datasource::listing::ListingTableUrl,
    error::Result,
    logical_expr::CreateExternalTable,
};
use futures::TryStreamExt;

use crate::{
    buckets::{BucketedTable, take_bucketing},
    scan::{check_arrow_schema, contain_panic},
};

/// A factory that declares tables as bucketed, checks Arrow files before `inner` infers their
/// schema, and turns a panic of that inference into an error.
#[derive(Debug)]
pub(crate) struct GateworkTableFactory {
    inner: Arc<dyn TableProviderFactory>,
}

impl GateworkTableFactory {
    pub(crate) fn new(inner: Arc<dyn TableProviderFactory>) -> Self {
        Self { inner }
    }
}

#[async_trait]
impl TableProviderFactory for GateworkTableFactory {
    async fn create(
        &self,
        session: &dyn Session,
        command: &CreateExternalTable,
    ) -> Result<Arc<dyn TableProvider>> {
        let mut command = command.clone();
        let bucketing = take_bucketing(&mut command.options)?;
        let infers_schema = command.schema.fields().is_empty();
        if infers_schema && command.file_type.eq_ignore_ascii_case("arrow") {
            check_arrow_files(session, &command.locations).await?;
        }
        let locations = command.locations.join(", ");
        let table = contain_panic(&locations, self.inner.create(session, &command)).await?;
        Ok(match bucketing {
            Some(bucketing) => Arc::new(BucketedTable::try_new(table, bucketing)?),
            None => table,
        })
    }
}

/// Checks the Arrow files at `locations` whose schemas DataFusion infers: the arrow crate allocates
/// up to 2 GiB if a damaged length states so.
async fn check_arrow_files(session: &dyn Session, locations: &[String]) -> Result<()> {
    for location in locations {
        let mut url = ListingTableUrl::parse(location)?;
        if url.is_folder() && url.get_glob().is_none() {
            url = url.with_glob("*.arrow")?;
        }
        let Ok(store) = session.runtime_env().object_store(&url) else {
            // The factory tells the user which store is missing.
            continue;
        };
        let mut files = url.list_all_files(session, &*store, "").await?;
        while let Some(file) = files.try_next().await? {
            check_arrow_schema(&url.object_store(), &*store, &file.location).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::{fs, sync::Arc};

    use arrow::{
        array::{Int64Array, RecordBatch},
        ipc::writer::FileWriter,
    };
    use async_trait::async_trait;
    use datafusion::{
        catalog::{Session, TableProvider, TableProviderFactory},
        error::Result,
        logical_expr::CreateExternalTable,
    };
    use gatework_runtime::Executor;
    use tempfile::TempDir;

    use super::GateworkTableFactory;

    fn arrow_file() -> Vec<u8> {
        let ids = Arc::new(Int64Array::from_iter_values(0..10)) as _;
        let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    /// A reader that panics on a damaged file.
    #[derive(Debug)]
    struct Panics;

    #[async_trait]
    impl TableProviderFactory for Panics {
        async fn create(
            &self,
            _: &dyn Session,
            _: &CreateExternalTable,
        ) -> Result<Arc<dyn TableProvider>> {
            panic!("the offset exceeds the length");
        }
    }

    #[tokio::test]
    async fn a_panic_while_a_table_is_opened_is_an_error_of_its_file() {
        let executor = Executor::builder().threads(1).build().unwrap();
        let session = crate::plan::session(&executor);
        let factory = Arc::new(GateworkTableFactory::new(Arc::new(Panics)));
        session.state_ref().write().table_factories_mut().insert("PANICS".into(), factory);
        let sql = "CREATE EXTERNAL TABLE t STORED AS PANICS LOCATION '/some/file'";
        let error = session.sql(sql).await.unwrap_err().to_string();
        assert!(error.contains("/some/file is damaged: its reader failed"), "{error}");
        executor.shutdown();
    }

    /// A damaged Arrow file is named before its lengths are allocated, alone and in a folder, also
    /// where DataFusion would take the magic bytes for the length of a stream's first message.
    #[tokio::test]
    async fn damaged_arrow_files_have_no_schema() {
        let folder = TempDir::new().unwrap();
        let executor = Executor::builder().threads(1).build().unwrap();
        let session = crate::plan::session(&executor);
        let path = |name: &str| folder.path().join(name).display().to_string();
        let cut_off = arrow_file()[..100].to_vec();
        let mut stream = vec![0xff; 4];
        stream.extend(i32::MAX.to_le_bytes());
        stream.extend([7; 40]);
        for damaged in [cut_off, stream, b"ARROW1 and nothing else that fits in here".to_vec()] {
            fs::write(path("1.arrow"), arrow_file()).unwrap();
            fs::write(path("2.arrow"), damaged).unwrap();
            for location in [path("2.arrow"), path("")] {
                let sql = format!("CREATE EXTERNAL TABLE t STORED AS ARROW LOCATION '{location}'");
                let error = session.sql(&sql).await.unwrap_err().to_string();
                assert!(error.contains(&path("2.arrow")), "{error}");
                assert!(error.contains("damaged"), "{error}");
            }
            let sql =
                format!("CREATE EXTERNAL TABLE t STORED AS ARROW LOCATION '{}'", path("1.arrow"));
            session.sql(&sql).await.unwrap();
            session.sql("DROP TABLE t").await.unwrap();
        }
        executor.shutdown();
    }
}
