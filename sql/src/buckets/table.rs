//! Tables that are declared as bucketed.

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

/// A table of files, each of which contains one bucket.
///
/// In queries that do not run as stages it behaves as the table that it wraps.
#[derive(Debug)]
pub struct BucketedTable {
    table: Arc<dyn TableProvider>,
    bucketing: Arc<Bucketing>,
    /// Type codes of the bucket columns.
    type_codes: String,
}

impl BucketedTable {
    /// Declares that the files of `table` are bucketed by `bucketing`.
    ///
    /// # Errors
    /// If the table lacks one of the bucket columns.
    pub fn try_new(table: Arc<dyn TableProvider>, bucketing: Bucketing) -> Result<Self> {
        let type_codes = bucketing.type_codes(&table.schema())?;
        Ok(Self { table, bucketing: Arc::new(bucketing), type_codes })
    }

    /// Returns the table's bucketing.
    pub fn bucketing(&self) -> &Bucketing {
        &self.bucketing
    }

    /// Adds to each file of `plan`, a scan of the table, the bucket that the file contains.
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
                "the name of {location} states no bucket, but its table is declared to have {of}: \
                 write it by COPY with the bucket options"
            );
        };
        if count != of.count() || number >= count {
            return plan_err!(
                "{location} is bucket {number} of {count}, but its table is declared to have {of}"
            );
        }
        if type_codes != self.type_codes {
            return plan_err!(
                "{location} is in buckets by '{type_codes}', but the columns of its table are '{}' \
                 (i: integers, d: days, b: strings or binary): \
                 declare the columns as they were written",
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

/// Parses the prefix `bucket-<number>-of-<count>-by-<type codes>-` of a file name.
fn named_bucket(name: &str) -> Option<(usize, usize, &str)> {
    let (number, rest) = name.strip_prefix("bucket-")?.split_once("-of-")?;
    let (count, rest) = rest.split_once("-by-")?;
    let (type_codes, _) = rest.split_once('-')?;
    Some((number.parse().ok()?, count.parse().ok()?, type_codes))
}

/// Checks that a Parquet file contains the bucket that its table expects, if its footer states one.
///
/// # Errors
/// If the footer states another bucket.
pub(crate) fn check_footer(file: &PartitionedFile, footer: &ParquetMetaData) -> Result<()> {
    let Some(bucket) = file.extension::<Bucket>() else { return Ok(()) };
    let entries = footer.file_metadata().key_value_metadata();
    let said = entries.and_then(|entries| entries.iter().find(|entry| entry.key == FOOTER_KEY));
    match said.and_then(|entry| entry.value.as_ref()) {
        Some(said) if *said != bucket.in_footer() => exec_err!(
            "{} is bucket {said}, but its table expects {}: declare the table as it was written",
            file.object_meta.location,
            bucket.in_footer()
        ),
        _ => Ok(()),
    }
}

/// The bucketing of a scan of a [`BucketedTable`].
#[derive(Debug, Clone)]
pub struct BucketedScan {
    /// The bucket key, as columns of the scan.
    pub keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The table's bucketing.
    pub bucketing: Arc<Bucketing>,
}

impl BucketedScan {
    /// Returns the bucketing of `scan`, if it reads a bucketed table and outputs the key columns.
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

    /// Restricts `scan`, which reads a bucketed table, to the files of bucket `number`.
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
            "INSERT INTO a bucketed table is not supported: \
             write its files by COPY (…) TO its folder, with the bucket options"
        )
    }
}
