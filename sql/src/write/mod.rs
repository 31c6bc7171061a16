//! Writing tables as files: one writer a task, one file a writer, or one a bucket of each writer.
//!
//! DataFusion's plan for `COPY … TO 'folder/'` ends in a sink of its own, whose target and options
//! [`WriteTarget::of`] takes over. A [`WriteExec`] in its place writes Parquet or CSV by as many tasks as run it,
//! and gives the number of rows that each has written. Rows are encoded on workers, in memory of the session's pool
//! (a row group ends early where it gets no more); bytes go to the object store on the I/O runtime, one row group of
//! each writer at a time and one part of a file, which are not counted.
//!
//! A file is there when it is whole, and its upload is given up if its query ends before. A query that fails may leave
//! files of writers that had ended before it failed, as DataFusion's do.

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

/// Where files go, and what they are like.
#[derive(Clone)]
pub struct WriteTarget {
    store: ObjectStoreUrl,
    folder: Path,
    extension: String,
    /// What the names of all its files begin with.
    prefix: String,
    format: Format,
    schema: SchemaRef,
    /// If each writer has a file for each of them; with the kinds of their columns.
    buckets: Option<(Arc<Bucketing>, String)>,
}

#[derive(Clone)]
enum Format {
    /// With or without Arrow's schema in the footer.
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
    /// The target of `plan`, if that writes files of a kind that [`WriteExec`] writes: Parquet or CSV without
    /// compression around it, in a folder, without partition columns and in no order. (DataFusion's sink keeps the
    /// order that its input has, and says so in Parquet files.)
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

    /// The same, with files for each bucket.
    ///
    /// # Errors
    /// If the rows have no such columns.
    pub fn in_buckets(self, buckets: Arc<Bucketing>) -> Result<Self> {
        let type_codes = buckets.type_codes(&self.schema)?;
        if matches!(self.format, Format::Csv(_)) && type_codes.contains(KeyType::Bytes.code()) {
            return plan_err!(
                "buckets by strings in CSV, where NULL and the empty string are one: write Parquet"
            );
        }
        Ok(Self { buckets: Some((buckets, type_codes)), ..self })
    }

    /// The buckets that each writer has a file for; one, of all rows, if there are none.
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

    /// File number `number` of one writer.
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

/// How much a query's writers have written, for who decides on more of them. To be put into the configuration of
/// the tasks that write.
#[derive(Debug)]
pub struct WriteProgress {
    bytes: AtomicU64,
    /// From so many bytes on the gate is open.
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
    /// Bytes of rows that writers have taken.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// A gate that is open once `bytes` have been written. One asks at a time.
    pub fn reached(&self, bytes: u64) -> Gate {
        self.gate.block();
        self.threshold_bytes.store(bytes, Ordering::SeqCst);
        // SeqCst: either this sees what was added, or who adds sees what is due.
        if self.bytes() >= bytes {
            self.gate.set_ready();
        }
        self.gate.clone()
    }

    /// `bytes` more are written.
    pub fn add(&self, bytes: u64) {
        let all = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if all >= self.threshold_bytes.load(Ordering::SeqCst) {
            self.gate.set_ready();
        }
    }
}

/// Writes its input as files, and gives for each of them how many rows it has.
#[derive(Debug)]
pub struct WriteExec {
    input: Arc<dyn ExecutionPlan>,
    target: WriteTarget,
    properties: Arc<PlanProperties>,
}

impl WriteExec {
    /// Writes `input`; what comes out has the one column of `counts`.
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
        let Some(input) = children.pop() else { return internal_err!("nothing to write") };
        Ok(Arc::new(Self::new(input, self.target.clone(), self.schema())))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("files are written on gatework only")
    }
}
