//! Tables that are declared to be in buckets.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{ScanArgs, ScanResult, Session, TableProvider},
    common::{
        Constraints, Statistics, exec_err, not_impl_err, plan_err,
        tree_node::{Transformed, TreeNode},
    },
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfig},
        source::DataSourceExec,
    },
    error::Result,
    logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType, dml::InsertOp},
    parquet::file::metadata::ParquetMetaData,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::ExecutionPlan,
};

use super::{Bucket, Bucketing, FOOTER_KEY};

/// A table of files, each of which holds one bucket.
///
/// To queries that do not run as stages it is the table that it is made of.
#[derive(Debug)]
pub struct BucketedTable {
    table: Arc<dyn TableProvider>,
    bucketing: Arc<Bucketing>,
    /// Of its columns.
    type_codes: String,
}

impl BucketedTable {
    /// Declares that the files of `table` are those of `bucketing`.
    ///
    /// # Errors
    /// If the table does not have its columns.
    pub fn try_new(table: Arc<dyn TableProvider>, bucketing: Bucketing) -> Result<Self> {
        let type_codes = bucketing.type_codes(&table.schema())?;
        Ok(Self { table, bucketing: Arc::new(bucketing), type_codes })
    }

    /// How its rows are divided.
    pub fn bucketing(&self) -> &Bucketing {
        &self.bucketing
    }

    /// `plan`, a scan of the table, whose files know their buckets.
    fn mark(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let marked = plan.transform_up(|node| {
            let scan = node.downcast_ref::<DataSourceExec>();
            let config = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
            let Some(config) = config else { return Ok(Transformed::no(node)) };
            let mut config = config.clone();
            for group in &mut config.file_groups {
                let files = group.files().iter().map(|file| self.with_bucket(file));
                let marked = FileGroup::new(files.collect::<Result<_>>()?);
                *group = match group.file_statistics(None) {
                    Some(known) => marked.with_statistics(Arc::new(known.clone())),
                    None => marked,
                };
            }
            Ok(Transformed::yes(DataSourceExec::from_data_source(config) as _))
        })?;
        Ok(marked.data)
    }

    fn with_bucket(&self, file: &PartitionedFile) -> Result<PartitionedFile> {
        let location = &file.object_meta.location;
        let of = &self.bucketing;
        let Some((number, count, type_codes)) = location.filename().and_then(named_bucket) else {
            return plan_err!(
                "{location} is in a table of {of} buckets and does not say which it is: write such files by COPY with the options of buckets"
            );
        };
        if count != of.count() || number >= count {
            return plan_err!(
                "{location} is bucket {number} of {count}, in a table that is declared to have {of}"
            );
        }
        if type_codes != self.type_codes {
            return plan_err!(
                "{location} is in buckets by '{type_codes}', in a table whose columns are '{}' (i: integers, d: days, b: strings or binary): declare the columns as they were written",
                self.type_codes
            );
        }
        Ok(file.clone().with_extension(Bucket {
            number,
            bucketing: of.clone(),
            type_codes: type_codes.into(),
        }))
    }
}

/// `bucket-<number>-of-<count>-by-<type codes>-…`
fn named_bucket(name: &str) -> Option<(usize, usize, &str)> {
    let (number, rest) = name.strip_prefix("bucket-")?.split_once("-of-")?;
    let (count, rest) = rest.split_once("-by-")?;
    let (type_codes, _) = rest.split_once('-')?;
    Some((number.parse().ok()?, count.parse().ok()?, type_codes))
}

/// Checks that a Parquet file is of the bucket that its table takes it for, by what its footer says, if it does.
///
/// # Errors
/// If it is not.
pub(crate) fn check_footer(file: &PartitionedFile, footer: &ParquetMetaData) -> Result<()> {
    let Some(bucket) = file.extension::<Bucket>() else { return Ok(()) };
    let entries = footer.file_metadata().key_value_metadata();
    let said = entries.and_then(|entries| entries.iter().find(|entry| entry.key == FOOTER_KEY));
    match said.and_then(|entry| entry.value.as_ref()) {
        Some(said) if *said != bucket.in_footer() => exec_err!(
            "{} is bucket {said}, in a table that takes it for {}: declare the table as it was written",
            file.object_meta.location,
            bucket.in_footer()
        ),
        _ => Ok(()),
    }
}

/// What is known of a scan of a [`BucketedTable`].
#[derive(Debug, Clone)]
pub struct BucketedScan {
    /// The key, in the columns of the scan.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// How its rows are divided.
    pub bucketing: Arc<Bucketing>,
}

impl BucketedScan {
    /// If `scan` reads a table in buckets, and gives the columns of their key.
    pub fn of(scan: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let config = file_scan(scan)?;
        let mut files = config.file_groups.iter().flat_map(FileGroup::iter);
        let bucketing = files.next()?.extension::<Bucket>()?.bucketing.clone();
        let is_of = |file: &PartitionedFile| {
            file.extension::<Bucket>().is_some_and(|bucket| bucket.bucketing == bucketing)
        };
        if !files.all(is_of) {
            return None;
        }
        let table = config.file_source.table_schema().table_schema();
        let schema = scan.schema();
        let key = |name: &String| {
            let index = match config.file_source.projection() {
                None => schema.index_of(name).ok()?,
                Some(exprs) => exprs.iter().position(|output| {
                    let column = output.expr.downcast_ref::<Column>();
                    column.is_some_and(|column| {
                        table.fields().get(column.index()).is_some_and(|field| field.name() == name)
                    })
                })?,
            };
            Some(Arc::new(Column::new(schema.field(index).name(), index)) as _)
        };
        let keys = bucketing.columns().iter().map(key).collect::<Option<_>>()?;
        Some(Self { keys, bucketing })
    }

    /// The files of bucket `number` of `scan`, which is one of a table in buckets.
    pub fn restrict_to_bucket(
        scan: &Arc<dyn ExecutionPlan>,
        number: usize,
    ) -> Option<Arc<dyn ExecutionPlan>> {
        let mut config = file_scan(scan)?.clone();
        let is_it = |file: &&PartitionedFile| {
            file.extension::<Bucket>().is_some_and(|bucket| bucket.number == number)
        };
        let files = config.file_groups.iter().flat_map(FileGroup::iter).filter(is_it).cloned();
        config.file_groups = vec![FileGroup::new(files.collect())];
        Some(DataSourceExec::from_data_source(config))
    }
}

fn file_scan(scan: &Arc<dyn ExecutionPlan>) -> Option<&FileScanConfig> {
    scan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<FileScanConfig>()
}

#[async_trait]
impl TableProvider for BucketedTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.table.constraints()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn get_table_definition(&self) -> Option<&str> {
        self.table.get_table_definition()
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.table.get_logical_plan()
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.table.get_column_default(column)
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.mark(self.table.scan(session, projection, filters, limit).await?)
    }

    async fn scan_with_args<'a>(
        &self,
        session: &dyn Session,
        args: ScanArgs<'a>,
    ) -> Result<ScanResult> {
        let scan = self.table.scan_with_args(session, args).await?;
        Ok(self.mark(scan.into_inner())?.into())
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        self.table.supports_filters_pushdown(filters)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.table.statistics()
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        _: Arc<dyn ExecutionPlan>,
        _: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        not_impl_err!(
            "INSERT INTO a table in buckets: write its files by COPY (… ) TO its folder, with the options of buckets"
        )
    }
}
