//! The operator that writes: takes rows, gives one row in the end.

use std::{fmt, io, sync::Arc, task::Poll};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array},
    csv,
    datatypes::SchemaRef,
};
use bytes::Bytes;
use datafusion::{
    error::{DataFusionError, Result as PlanResult},
    execution::TaskContext as PlanContext,
    object_store::{ObjectStore, ObjectStoreExt, buffered::BufWriter, path::Path},
    parquet::arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
};
use futures::{FutureExt, future::BoxFuture};
use gatework_operators::{OrFail, compact, stream_scan::PollGate};
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalOperator, Operator, OperatorResult, Reservation, Setup, TaskContext},
};
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, runtime::Handle};

use super::{Format, WriteProgress, WriteTarget};

/// Encoded bytes that are handed on at a time; a Parquet writer hands on a row group.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes the rows of each of its tasks into a file of its own.
pub(crate) struct FileWriter {
    target: WriteTarget,
    store: Arc<dyn ObjectStore>,
    /// What is sent at a time.
    part_bytes: usize,
    /// A file ends with the batch in which it comes to so many.
    file_rows: u64,
    io: Handle,
    progress: Option<Arc<WriteProgress>>,
    /// Says which writer of the query this is.
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
        let file_rows = options.soft_max_rows_per_output_file.get() as u64;
        Ok(Self { target, store, part_bytes, file_rows, io, progress, name, counts })
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

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalOperator>> {
        let name = format!("{}-{}", self.name, setup.instance());
        Ok(Box::new(LocalWriter {
            encoder: None,
            target: self.target.clone(),
            memory: setup.reservation(),
            upload: Upload {
                writer: None,
                store: self.store.clone(),
                part_bytes: self.part_bytes,
                path: self.target.path(&name, 0),
                sent: Path::default(),
                setup,
                io: self.io.clone(),
                sending: None,
                gate: PollGate::new("file write"),
            },
            progress: self.progress.clone(),
            counts: self.counts.clone(),
            name,
            files: 0,
            file_rows: (0, self.file_rows),
            rows: 0,
            state: State::Taking,
        }))
    }
}

/// Bytes that an encoder has made.
#[derive(Clone, Default)]
struct Encoded(Arc<Mutex<Vec<u8>>>);

impl io::Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Encoder {
    Parquet(Box<ArrowWriter<Encoded>>, Encoded),
    Csv(Box<csv::Writer<Encoded>>, Encoded),
}

impl Encoder {
    fn new(target: &WriteTarget) -> PlanResult<Self> {
        let bytes = Encoded::default();
        Ok(match &target.format {
            Format::Parquet(properties, arrow_schema) => {
                let options = ArrowWriterOptions::new()
                    .with_properties(properties.as_ref().clone())
                    .with_skip_arrow_metadata(!arrow_schema);
                let (schema, bytes) = (target.schema.clone(), bytes.clone());
                let writer = ArrowWriter::try_new_with_options(bytes.clone(), schema, options)?;
                Self::Parquet(Box::new(writer), bytes)
            }
            Format::Csv(builder) => {
                Self::Csv(Box::new(builder.clone().build(bytes.clone())), bytes)
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> PlanResult<()> {
        match self {
            Self::Parquet(writer, _) => writer.write(batch)?,
            Self::Csv(writer, _) => writer.write(batch)?,
        }
        Ok(())
    }

    /// Bytes that it holds.
    fn memory(&self) -> usize {
        match self {
            Self::Parquet(writer, bytes) => writer.memory_size() + bytes.0.lock().len(),
            Self::Csv(_, bytes) => bytes.0.lock().len(),
        }
    }

    /// Ends what it has begun, so that it can be sent.
    fn flush(&mut self) -> PlanResult<()> {
        match self {
            Self::Parquet(writer, _) => Ok(writer.flush()?),
            Self::Csv(..) => Ok(()),
        }
    }

    /// What is encoded, if that is `least` bytes.
    fn take(&self, least: usize) -> Option<Bytes> {
        let (Self::Parquet(_, bytes) | Self::Csv(_, bytes)) = self;
        let mut bytes = bytes.0.lock();
        (bytes.len() >= least.max(1)).then(|| std::mem::take(&mut *bytes).into())
    }

    /// The last bytes.
    fn close(self) -> PlanResult<Bytes> {
        let bytes = match self {
            Self::Parquet(writer, bytes) => {
                writer.close()?;
                bytes
            }
            Self::Csv(writer, bytes) => {
                drop(writer);
                bytes
            }
        };
        Ok(std::mem::take(&mut *bytes.0.lock()).into())
    }
}

/// A file on its way into the store. Dropped before it is known to be whole, it is given up there, and its query ends
/// when it has been.
struct Upload {
    setup: Setup,
    writer: Option<BufWriter>,
    store: Arc<dyn ObjectStore>,
    part_bytes: usize,
    /// Of the next file that is begun, and of the last one that was.
    path: Path,
    sent: Path,
    io: Handle,
    sending: Option<BoxFuture<'static, (BufWriter, PlanResult<Sent>)>>,
    gate: PollGate,
}

/// What has been sent.
enum Sent {
    Part,
    /// The file is there.
    Whole,
}

impl Upload {
    /// Begins to send `bytes`, the last ones or not.
    fn send(&mut self, bytes: Bytes, last: bool) {
        self.sent = self.path.clone();
        let (store, path) = (&self.store, &self.path);
        let fresh = || BufWriter::with_capacity(store.clone(), path.clone(), self.part_bytes);
        let mut writer = self.writer.take().unwrap_or_else(fresh);
        let sending = async move {
            let sent = send(&mut writer, bytes, last).await;
            (writer, sent)
        };
        self.sending = Some(sending.boxed());
    }

    /// Whether all is sent that was begun.
    fn poll(&mut self) -> PlanResult<bool> {
        let Some(sending) = &mut self.sending else { return Ok(true) };
        let _entered = self.io.enter();
        match self.gate.poll(|context| sending.poll_unpin(context)) {
            Poll::Pending => Ok(false),
            Poll::Ready((writer, sent)) => {
                self.sending = None;
                if !matches!(sent, Ok(Sent::Whole)) {
                    self.writer = Some(writer);
                }
                sent.map(|_| true)
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (writer, sending) = (self.writer.take(), self.sending.take());
        if writer.is_none() && sending.is_none() {
            return;
        }
        let (store, path, presence) = (self.store.clone(), self.sent.clone(), self.setup.outside());
        self.io.spawn(async move {
            let writer = match sending {
                Some(sending) => match sending.await {
                    (_, Ok(Sent::Whole)) => {
                        let _removed = store.delete(&path).await;
                        None
                    }
                    (writer, _) => Some(writer),
                },
                None => writer,
            };
            if let Some(mut writer) = writer {
                // Nobody is left to be told.
                let _given_up = writer.abort().await;
            }
            drop(presence);
        });
    }
}

async fn send(writer: &mut BufWriter, bytes: Bytes, last: bool) -> PlanResult<Sent> {
    writer.put(bytes).await?;
    if !last {
        return Ok(Sent::Part);
    }
    writer.shutdown().await.map_err(DataFusionError::IoError)?;
    Ok(Sent::Whole)
}

enum State {
    Taking,
    Closing,
    Counted,
}

struct LocalWriter {
    encoder: Option<Encoder>,
    target: WriteTarget,
    memory: Reservation,
    upload: Upload,
    progress: Option<Arc<WriteProgress>>,
    counts: SchemaRef,
    /// What its files are called.
    name: String,
    /// Those that are behind it.
    files: usize,
    /// Of the file at hand, and at most.
    file_rows: (u64, u64),
    /// Of all files.
    rows: u64,
    state: State,
}

impl LocalWriter {
    fn take(&mut self, batch: Batch) -> Result<()> {
        let bytes = batch.bytes() as u64;
        let data = compact(batch)?;
        self.rows += data.num_rows() as u64;
        self.file_rows.0 += data.num_rows() as u64;
        let options = RecordBatchOptions::new().with_row_count(Some(data.num_rows()));
        let columns = data.columns().to_vec();
        let schema = self.target.schema.clone();
        let data = RecordBatch::try_new_with_options(schema, columns, &options).or_fail()?;
        let mut encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => Encoder::new(&self.target).or_fail()?,
        };
        encoder.write(&data).or_fail()?;
        if self.file_rows.0 >= self.file_rows.1 {
            self.close(encoder)?;
        } else {
            let mut least = CHUNK_BYTES;
            if self.memory.resize(encoder.memory()).is_err() {
                // What has come so far is a row group of its own, and out of the way.
                encoder.flush().or_fail()?;
                least = 1;
            }
            if let Some(bytes) = encoder.take(least) {
                self.upload.send(bytes, false);
            }
            self.memory.resize(encoder.memory())?;
            self.encoder = Some(encoder);
        }
        if let Some(progress) = &self.progress {
            progress.add(bytes);
        }
        Ok(())
    }
}

impl LocalWriter {
    /// Sends the end of the file at hand. The next one has another name.
    fn close(&mut self, encoder: Encoder) -> Result<()> {
        self.upload.send(encoder.close().or_fail()?, true);
        self.memory.resize(0)?;
        self.files += 1;
        self.upload.path = self.target.path(&self.name, self.files);
        self.file_rows.0 = 0;
        Ok(())
    }
}

impl LocalOperator for LocalWriter {
    fn execute(&mut self, input: Option<Batch>, _: &TaskContext) -> Result<OperatorResult> {
        if let Some(batch) = input {
            self.take(batch)?;
        }
        Ok(match self.upload.poll().or_fail()? {
            true => OperatorResult::NeedInput,
            false => OperatorResult::Blocked(self.upload.gate.gate().into()),
        })
    }

    fn finish(&mut self, _: &TaskContext) -> Result<OperatorResult> {
        loop {
            if !self.upload.poll().or_fail()? {
                return Ok(OperatorResult::Blocked(self.upload.gate.gate().into()));
            }
            match self.state {
                State::Taking => {
                    self.state = State::Closing;
                    // Who got no row writes no file.
                    if let Some(encoder) = self.encoder.take() {
                        self.close(encoder)?;
                    }
                }
                State::Closing => {
                    self.state = State::Counted;
                    let count: ArrayRef = Arc::new(UInt64Array::from(vec![self.rows]));
                    let counts = RecordBatch::try_new(self.counts.clone(), vec![count]);
                    return Ok(OperatorResult::Batch(Batch::new(counts.or_fail()?)));
                }
                State::Counted => return Ok(OperatorResult::Finished),
            }
        }
    }
}
