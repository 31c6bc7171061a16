//! Writes tables as files: one writer per task, and one file per writer or per bucket of each
//! writer.
//!
//! DataFusion's plan for `COPY … TO 'folder/'` ends in DataFusion's own sink, whose target and
//! options [`WriteTarget::of`] reads. A [`WriteExec`] in its place writes Parquet or CSV. Each task
//! that runs it returns the number of rows it has written. Rows are encoded on workers, in memory
//! reserved in the session's pool; a row group ends early if its reservation is denied. Bytes are
//! sent to the object store on the I/O runtime. At a time, a writer sends one row group and one
//! part of a file. Those bytes are not reserved.
//!
//! A file becomes visible when it is complete; its upload is aborted if its query ends before. A
//! query that fails may leave files of writers that completed before the failure, as DataFusion's
//! does.

mod encoder;
mod operator;
mod upload;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use datafusion::{
    arrow::{csv::WriterBuilder, datatypes::SchemaRef},
    common::{
        config::TableParquetOptions, internal_err, parsers::CompressionTypeVariant, plan_err,
        tree_node::TreeNodeRecursion,
    },
    datasource::{
        file_format::csv::CsvSink,
        physical_plan::{FileSink, FileSinkConfig, parquet::ParquetSink},
        sink::DataSinkExec,
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext, object_store::ObjectStoreUrl},
    logical_expr::dml::InsertOp,
    object_store::path::Path,
    parquet::file::properties::{WriterProperties, WriterPropertiesBuilder},
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate};

pub(crate) use operator::FileWriter;

use crate::buckets::{Bucket, Bucketing, KeyType};

/// The location and the format of the files that are written.
#[derive(Clone)]
pub struct WriteTarget {
    store: ObjectStoreUrl,
    folder: Path,
    extension: String,
    /// Common prefix of all file names.
    prefix: String,
    format: Format,
    schema: SchemaRef,
    /// The bucketing and its type codes, if each writer has a file per bucket.
    buckets: Option<(Arc<Bucketing>, String)>,
}

#[derive(Clone)]
enum Format {
    /// Properties, and whether the footer has Arrow's schema.
    Parquet(Box<WriterProperties>, bool),
    Csv(WriterBuilder),
}

impl fmt::Debug for WriteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = match self.format {
            Format::Parquet(..) => "Parquet",
            Format::Csv(_) => "CSV",
        };
        write!(f, "{format} to {}/", self.folder)?;
        match &self.buckets {
            Some((buckets, _)) => write!(f, ", buckets: {buckets}"),
            None => Ok(()),
        }
    }
}

impl WriteTarget {
    /// Returns the target of `plan`, if [`WriteExec`] supports it. It supports Parquet, and CSV
    /// without compression, in a folder, without partition columns and without a sort order.
    /// (DataFusion's sink preserves its input's order, and states it in Parquet files.)
    ///
    /// # Errors
    /// If the options of the files contradict each other.
    pub fn of(plan: &DataSinkExec) -> Result<Option<Self>> {
        if plan.sort_order().is_some() {
            return Ok(None);
        }
        if let Some(sink) = plan.sink().downcast_ref::<ParquetSink>() {
            let config = sink.config();
            let options = sink.parquet_options();
            if options.crypto.file_encryption.is_some() || options.crypto.factory_id.is_some() {
                return Ok(None);
            }
            let properties = Box::new(properties(options, config.output_schema())?);
            let format = Format::Parquet(properties, !options.global.skip_arrow_metadata);
            return Ok(Self::new(config, format));
        }
        if let Some(sink) = plan.sink().downcast_ref::<CsvSink>() {
            let options = sink.writer_options();
            if options.compression != CompressionTypeVariant::UNCOMPRESSED {
                return Ok(None);
            }
            return Ok(Self::new(sink.config(), Format::Csv(options.writer_options.clone())));
        }
        Ok(None)
    }

    fn new(config: &FileSinkConfig, format: Format) -> Option<Self> {
        let [path] = config.table_paths.as_slice() else { return None };
        let adds = config.insert_op == InsertOp::Append;
        if !adds
            || !config.table_partition_cols.is_empty()
            || config.file_output_mode.single_file_output(path)
        {
            return None;
        }
        // Two queries that write into one folder must not write the same file.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_nanos());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            store: config.object_store_url.clone(),
            folder: path.prefix().clone(),
            extension: config.file_extension.clone(),
            prefix: format!("{now:x}-{}-{number}", std::process::id()),
            format,
            schema: config.output_schema().clone(),
            buckets: None,
        })
    }

    /// Returns the same target with files for each bucket.
    ///
    /// # Errors
    /// If the rows lack one of the bucket columns, or the format does not support its type.
    pub fn in_buckets(self, buckets: Arc<Bucketing>) -> Result<Self> {
        let type_codes = buckets.type_codes(&self.schema)?;
        if matches!(self.format, Format::Csv(_)) && type_codes.contains(KeyType::Bytes.code()) {
            return plan_err!(
                "CSV has no string buckets, as NULL and empty strings look alike: write Parquet"
            );
        }
        Ok(Self { buckets: Some((buckets, type_codes)), ..self })
    }

    /// Returns the buckets for which each writer has a file; `[None]` without buckets.
    fn file_buckets(&self) -> Vec<Option<Bucket>> {
        match &self.buckets {
            None => vec![None],
            Some((of, type_codes)) => {
                let bucket = |number| {
                    Some(Bucket { number, bucketing: of.clone(), type_codes: type_codes.clone() })
                };
                (0..of.count()).map(bucket).collect()
            }
        }
    }

    /// Returns the path of the file with index `number` of one writer.
    fn path(&self, bucket: Option<&Bucket>, writer: &str, number: usize) -> Path {
        let bucket = bucket.map_or_else(String::new, Bucket::prefix);
        let name = format!("{bucket}{}-{writer}-{number}.{}", self.prefix, self.extension);
        self.folder.clone().join(name)
    }
}

fn properties(options: &TableParquetOptions, schema: &SchemaRef) -> Result<WriterProperties> {
    let mut options = options.clone();
    if !options.global.skip_arrow_metadata {
        options.arrow_schema(schema);
    }
    Ok(WriterPropertiesBuilder::try_from(&options)?.build())
}

/// Number of bytes that a query's writers have written; the scheduler adds writers according to it.
/// Passed in the session configuration of the tasks that write.
#[derive(Debug)]
pub struct WriteProgress {
    bytes: AtomicU64,
    /// The gate is ready from this number of bytes on.
    threshold_bytes: AtomicU64,
    gate: Gate,
}

impl Default for WriteProgress {
    fn default() -> Self {
        let gate = Dependency::ready("bytes written", DependencyKind::External);
        Self { bytes: AtomicU64::new(0), threshold_bytes: AtomicU64::new(0), gate }
    }
}

impl WriteProgress {
    /// Returns the number of bytes of rows that writers have consumed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Returns a gate that is ready once `bytes` have been written. Only one caller at a time is
    /// supported.
    pub fn reached(&self, bytes: u64) -> Gate {
        self.gate.block();
        self.threshold_bytes.store(bytes, Ordering::SeqCst);
        // SeqCst: either this load sees the bytes that `add` added, or `add` sees the new
        // threshold.
        if self.bytes() >= bytes {
            self.gate.set_ready();
        }
        self.gate.clone()
    }

    /// Adds `bytes` written bytes.
    pub fn add(&self, bytes: u64) {
        let all = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if all >= self.threshold_bytes.load(Ordering::SeqCst) {
            self.gate.set_ready();
        }
    }
}

/// Writes its input as files, and returns the number of rows that each task has written.
#[derive(Debug)]
pub struct WriteExec {
    input: Arc<dyn ExecutionPlan>,
    target: WriteTarget,
    properties: Arc<PlanProperties>,
}

impl WriteExec {
    /// Writes `input`; the output has the one column of `counts`.
    pub fn new(input: Arc<dyn ExecutionPlan>, target: WriteTarget, counts: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(counts),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { input, target, properties: Arc::new(properties) }
    }

    pub(crate) fn target(&self) -> &WriteTarget {
        &self.target
    }
}

impl DisplayAs for WriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteExec: {:?}", self.target)
    }
}

impl ExecutionPlan for WriteExec {
    fn name(&self) -> &str {
        "WriteExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.pop() else { return internal_err!("WriteExec has no input") };
        Ok(Arc::new(Self::new(input, self.target.clone(), self.schema())))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("WriteExec runs on gatework only")
    }
}
