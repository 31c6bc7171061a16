//! The operator that writes files: consumes rows and emits one row at the end.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array},
    compute::concat_batches,
    datatypes::SchemaRef,
};
use datafusion::{
    error::Result as PlanResult,
    execution::TaskContext as PlanContext,
    object_store::{ObjectStore, path::Path},
};
use gatework_operators::{ResultExt, apply_selection, stream_scan::PollGate};
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalOperator, Operator, OperatorContext, OperatorResult, Reservation,
    },
};
use gatework_shared_state::Gate;
use tokio::runtime::Handle;

use super::{WriteProgress, WriteTarget, encoder::Encoder, upload::Upload};
use crate::buckets::Bucket;

/// Minimum number of encoded bytes per send; a Parquet writer's sends are row groups.
const CHUNK_BYTES: usize = 1 << 20;

/// Number of rows of a bucket that are encoded together: each column of each call has an overhead.
const BUCKET_ROWS: usize = 8192;

/// Maximum memory in bytes of a task's incomplete files. When it is exceeded, the largest file ends
/// its row group.
const MAX_OPEN_BYTES: usize = 256 << 20;

/// Writes the rows of each of its tasks into a file of its own, or into one file for each bucket.
pub(crate) struct FileWriter {
    target: WriteTarget,
    store: Arc<dyn ObjectStore>,
    /// Size of an upload's part in bytes.
    part_bytes: usize,
    /// A file ends with the batch that brings it to at least this number of rows.
    max_rows_per_file: u64,
    io: Handle,
    progress: Option<Arc<WriteProgress>>,
    /// Name of this writer within the query.
    name: String,
    counts: SchemaRef,
}

impl FileWriter {
    pub(crate) fn new(
        target: WriteTarget,
        name: String,
        counts: SchemaRef,
        context: &PlanContext,
        io: Handle,
    ) -> PlanResult<Self> {
        let store = context.runtime_env().object_store(&target.store)?;
        let progress = context.session_config().get_extension::<WriteProgress>();
        let options = &context.session_config().options().execution;
        let part_bytes = options.objectstore_writer_buffer_size;
        let max_rows_per_file = options.soft_max_rows_per_output_file.get() as u64;
        Ok(Self { target, store, part_bytes, max_rows_per_file, io, progress, name, counts })
    }
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {:?}", self.target)
    }
}

impl Operator for FileWriter {
    fn name(&self) -> &str {
        "write"
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalOperator>> {
        let name = format!("{}-{}", self.name, context.task_index());
        let buckets = self.target.file_buckets().into_iter();
        let files = buckets.map(|bucket| self.file(bucket, &name, &context)).collect();
        Ok(Box::new(LocalWriter {
            target: self.target.clone(),
            files,
            reservation: context.reservation(),
            progress: self.progress.clone(),
            counts: self.counts.clone(),
            rows: 0,
            state: State::Taking,
        }))
    }
}

impl FileWriter {
    /// Creates the sequence of files that the writer `name` writes for one bucket, or for all rows.
    fn file(&self, bucket: Option<Bucket>, name: &str, context: &OperatorContext) -> Files {
        Files {
            encoder: None,
            unencoded: Default::default(),
            upload: Upload {
                writer: None,
                store: self.store.clone(),
                part_bytes: self.part_bytes,
                path: self.target.path(bucket.as_ref(), name, 0),
                sent_path: Path::default(),
                context: context.clone(),
                io: self.io.clone(),
                sending: None,
                gate: PollGate::new("file write"),
            },
            name: name.to_owned(),
            bucket,
            complete: 0,
            rows: 0,
            max_rows: self.max_rows_per_file,
        }
    }
}

enum State {
    Taking,
    /// All rows are encoded.
    Ending,
    Closing,
    Counted,
}

/// The files of one bucket, written one at a time.
struct Files {
    encoder: Option<Encoder>,
    /// Rows that are not encoded, their number and their size in bytes.
    unencoded: (Vec<RecordBatch>, usize, usize),
    upload: Upload,
    /// Name of the writer.
    name: String,
    bucket: Option<Bucket>,
    /// Number of completed files.
    complete: usize,
    /// Number of rows in the current file, and the number at which it ends.
    rows: u64,
    max_rows: u64,
}

impl Files {
    /// Adds `rows`, and encodes the collected rows once there are `BUCKET_ROWS`.
    fn push(&mut self, rows: RecordBatch, target: &WriteTarget) -> PlanResult<()> {
        if self.bucket.is_none() {
            return self.write(&rows, target);
        }
        let (batches, count, bytes) = &mut self.unencoded;
        *count += rows.num_rows();
        *bytes += rows.get_array_memory_size();
        batches.push(rows);
        if *count >= BUCKET_ROWS { self.write_unencoded(target) } else { Ok(()) }
    }

    fn write_unencoded(&mut self, target: &WriteTarget) -> PlanResult<()> {
        let (batches, ..) = std::mem::take(&mut self.unencoded);
        match batches.as_slice() {
            [] => Ok(()),
            [rows] => self.write(rows, target),
            _ => self.write(&concat_batches(&target.schema, &batches)?, target),
        }
    }

    /// Encodes `rows`, and starts a send if there are enough bytes. Requires that no send is
    /// pending.
    fn write(&mut self, rows: &RecordBatch, target: &WriteTarget) -> PlanResult<()> {
        let mut encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => Encoder::new(target, self.bucket.as_ref())?,
        };
        encoder.write(rows)?;
        self.rows += rows.num_rows() as u64;
        if self.rows >= self.max_rows {
            return self.end_file(encoder, target);
        }
        if let Some(bytes) = encoder.take(CHUNK_BYTES) {
            self.upload.send(bytes, false);
        }
        self.encoder = Some(encoder);
        Ok(())
    }

    /// Completes the last file after all rows are encoded. Without rows there is no file.
    fn close(&mut self, target: &WriteTarget) -> PlanResult<()> {
        match self.encoder.take() {
            Some(encoder) => self.end_file(encoder, target),
            None => Ok(()),
        }
    }

    /// Sends the end of the current file. The next file gets another name.
    fn end_file(&mut self, encoder: Encoder, target: &WriteTarget) -> PlanResult<()> {
        self.upload.send(encoder.close()?, true);
        self.complete += 1;
        self.upload.path = target.path(self.bucket.as_ref(), &self.name, self.complete);
        self.rows = 0;
        Ok(())
    }

    /// Ends the current row group and sends it.
    fn flush(&mut self, target: &WriteTarget) -> PlanResult<()> {
        self.write_unencoded(target)?;
        if self.upload.sending.is_some() {
            return Ok(());
        }
        if let Some(encoder) = &mut self.encoder {
            encoder.flush()?;
            if let Some(bytes) = encoder.take(1) {
                self.upload.send(bytes, false);
            }
        }
        Ok(())
    }

    /// Returns the number of bytes in memory.
    fn memory_size(&self) -> usize {
        self.encoder.as_ref().map_or(0, Encoder::memory_size) + self.unencoded.2
    }
}

struct LocalWriter {
    target: WriteTarget,
    /// One element per bucket.
    files: Vec<Files>,
    reservation: Reservation,
    progress: Option<Arc<WriteProgress>>,
    counts: SchemaRef,
    /// Number of rows in all files.
    rows: u64,
    state: State,
}

impl LocalWriter {
    fn write_batch(&mut self, batch: Batch) -> Result<()> {
        let bytes = batch.bytes() as u64;
        let data = apply_selection(batch)?;
        self.rows += data.num_rows() as u64;
        let options = RecordBatchOptions::new().with_row_count(Some(data.num_rows()));
        let columns = data.columns().to_vec();
        let schema = self.target.schema.clone();
        let data = RecordBatch::try_new_with_options(schema, columns, &options).query_err()?;
        let partitions = match &self.target.buckets {
            Some((buckets, _)) => buckets.partition(&data).query_err()?,
            None => vec![(0, data)],
        };
        for (bucket, rows) in partitions {
            self.files[bucket].push(rows, &self.target).query_err()?;
        }
        self.reserve()?;
        if let Some(progress) = &self.progress {
            progress.add(bytes);
        }
        Ok(())
    }

    /// Reserves the memory of the files. If it exceeds the limit or is denied, the largest files
    /// are flushed.
    fn reserve(&mut self) -> Result<()> {
        loop {
            let total_bytes = self.files.iter().map(Files::memory_size).sum();
            if total_bytes <= MAX_OPEN_BYTES && self.reservation.resize(total_bytes).is_ok() {
                return Ok(());
            }
            let idle = self.files.iter_mut().filter(|files| files.upload.sending.is_none());
            match idle
                .max_by_key(|files| files.memory_size())
                .filter(|files| files.memory_size() > 0)
            {
                Some(largest) => {
                    let before = largest.memory_size();
                    largest.flush(&self.target).query_err()?;
                    if largest.memory_size() >= before && largest.upload.sending.is_none() {
                        return Ok(self.reservation.resize(total_bytes)?);
                    }
                }
                None => return Ok(self.reservation.resize(total_bytes)?),
            }
        }
    }

    /// Polls all uploads; returns a gate to wait for if one is pending.
    fn poll_uploads(&mut self) -> Result<Option<Gate>> {
        let mut pending = None;
        // Polls every upload, so that all of them progress.
        for files in &mut self.files {
            if !files.upload.poll().query_err()? {
                pending = Some(files.upload.gate.gate());
            }
        }
        Ok(pending)
    }
}

impl LocalOperator for LocalWriter {
    fn execute(&mut self, input: Option<Batch>, _: &DriverContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.write_batch(batch)?;
        }
        Ok(match self.poll_uploads()? {
            None => OperatorResult::NeedInput,
            Some(gate) => OperatorResult::Blocked(gate.into()),
        })
    }

    fn finish(&mut self, _: &DriverContext) -> Result<OperatorResult> {
        loop {
            if let Some(gate) = self.poll_uploads()? {
                return Ok(OperatorResult::Blocked(gate.into()));
            }
            match self.state {
                State::Taking => {
                    self.state = State::Ending;
                    let target = &self.target;
                    let mut files = self.files.iter_mut();
                    files.try_for_each(|files| files.write_unencoded(target)).query_err()?;
                }
                State::Ending => {
                    self.state = State::Closing;
                    let target = &self.target;
                    let mut files = self.files.iter_mut();
                    files.try_for_each(|files| files.close(target)).query_err()?;
                    self.reservation.resize(0)?;
                }
                State::Closing => {
                    self.state = State::Counted;
                    let count: ArrayRef = Arc::new(UInt64Array::from(vec![self.rows]));
                    let counts = RecordBatch::try_new(self.counts.clone(), vec![count]);
                    return Ok(OperatorResult::Batch(Batch::new(counts.query_err()?)));
                }
                State::Counted => return Ok(OperatorResult::Finished),
            }
        }
    }
}
