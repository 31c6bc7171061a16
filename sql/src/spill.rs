//! Spilled batches in the temporary files of DataFusion's disk manager, whose quota and folders hold.
//!
//! A file is a row of segments, one a batch, each an Arrow IPC stream of its own with LZ4 compression, so
//! that batches are read back one by one in any order. Files are written and read by the I/O runtime's pool, which also
//! removes them when nobody refers to them any more; a query has not ended before they are gone.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    ipc::{
        CompressionType,
        reader::StreamReader,
        writer::{IpcWriteOptions, StreamWriter},
    },
};
use datafusion::{
    common::{DataFusionError, exec_err, internal_err},
    error::Result,
    execution::{SpillFile, disk_manager::DiskManager},
};
use gatework_operators::ResultExt;
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{
        Completion, ExternalWork, ExternalWorkHandle, SpillInput, SpillSpace, SpilledBatches,
    },
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::engine::{Engine, IoRuntime};

/// The temporary files of a query.
pub(crate) struct TempFiles {
    disk: Arc<DiskManager>,
    io: Arc<IoRuntime>,
    deletions: Arc<DeletionQueue>,
}

impl TempFiles {
    /// Files of `disk`; `None` if it makes none.
    pub(crate) fn of(disk: &Arc<DiskManager>, engine: &Engine) -> Option<Arc<dyn SpillSpace>> {
        let files =
            || Self { disk: disk.clone(), io: engine.io.clone(), deletions: Arc::default() };
        disk.tmp_files_enabled().then(|| Arc::new(files()) as _)
    }
}

impl fmt::Debug for TempFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "temporary files in {:?}", self.disk.temp_dir_paths())
    }
}

impl SpillSpace for TempFiles {
    fn write(&self, batches: SpillInput, done: Completion<Arc<dyn SpilledBatches>>) {
        let disk = self.disk.clone();
        let io = match self.io.handle() {
            Ok(io) => io,
            Err(error) => {
                drop(batches);
                return done.complete(Err(error).query_err());
            }
        };
        let deletions = self.deletions.clone();
        io.clone().spawn_blocking(move || {
            deletions.delete_all();
            let written = write(&disk, batches, || done.has_receiver());
            // Before the query learns that it is over: the session's folder goes with its last user.
            drop(disk);
            let segments = written.map(|(file, ends)| {
                let file = Some(file);
                Arc::new(SegmentedSpill {
                    file,
                    ends,
                    io,
                    deletions,
                    work_handle: done.work_handle(),
                }) as _
            });
            done.complete(segments);
        });
    }
}

/// Files of a query to be removed, a few at a time: the system takes tens of milliseconds for a gigabyte, and whoever
/// wants to read should not have to wait for all of them.
#[derive(Default)]
struct DeletionQueue(Mutex<DeletionState>);

#[derive(Default)]
struct DeletionState {
    files: VecDeque<PendingDeletion>,
    active_threads: usize,
}

/// A file that nobody reads any more; until it is gone, its query has not ended.
struct PendingDeletion {
    file: Arc<dyn SpillFile>,
    _external_work: ExternalWork,
}

/// How many threads remove files at a time.
const DELETE_THREADS: usize = 2;

impl DeletionQueue {
    fn push(self: &Arc<Self>, deletion: PendingDeletion, io: &Handle) {
        let mut state = self.0.lock();
        state.files.push_back(deletion);
        if state.active_threads < DELETE_THREADS {
            state.active_threads += 1;
            drop(state);
            DeletionWorker { deletions: self.clone(), io: io.clone(), finished: false }.schedule();
        }
    }

    /// Removes all that is there, since their bytes count against the quota.
    fn delete_all(&self) {
        loop {
            // Not while it is locked.
            let Some(deletion) = self.0.lock().files.pop_front() else { return };
            deletion.delete();
        }
    }

    /// The next file of one that removes them, which is over if there is none: under the lock, so that whoever puts a file
    /// there later begins another.
    fn pop(&self) -> Option<PendingDeletion> {
        let mut state = self.0.lock();
        let next = state.files.pop_front();
        state.active_threads -= usize::from(next.is_none());
        next
    }
}

impl PendingDeletion {
    fn delete(self) {
        // Before the query learns that it is over.
        drop(self.file);
        drop(self._external_work);
    }
}

/// One that removes files, each in a turn of its own, so that others can read in between.
struct DeletionWorker {
    deletions: Arc<DeletionQueue>,
    io: Handle,
    finished: bool,
}

impl DeletionWorker {
    fn schedule(self) {
        let io = self.io.clone();
        io.spawn_blocking(move || self.delete_next());
    }

    fn delete_next(mut self) {
        match self.deletions.pop() {
            Some(deletion) => {
                deletion.delete();
                self.schedule();
            }
            None => self.finished = true,
        }
    }
}

/// It gets no turn any more where the I/O runtime has been shut down.
impl Drop for DeletionWorker {
    fn drop(&mut self) {
        while !self.finished {
            match self.deletions.pop() {
                Some(deletion) => deletion.delete(),
                None => self.finished = true,
            }
        }
    }
}

/// A file of segments.
struct SegmentedSpill {
    /// Until it is dropped.
    file: Option<Arc<dyn SpillFile>>,
    /// Where each segment ends; the first begins at 0.
    ends: Vec<u64>,
    io: Handle,
    deletions: Arc<DeletionQueue>,
    work_handle: ExternalWorkHandle,
}

impl Drop for SegmentedSpill {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let deletion = PendingDeletion { file, _external_work: self.work_handle.enter() };
            self.deletions.push(deletion, &self.io);
        }
    }
}

impl fmt::Debug for SegmentedSpill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.file.as_ref().and_then(|file| file.path());
        write!(f, "{} batches in {path:?}", self.ends.len())
    }
}

/// Counts what goes through.
struct CountingWriter<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// A file of `batches`, and where each of them ends.
fn write(
    disk: &Arc<DiskManager>,
    mut batches: SpillInput,
    has_receiver: impl Fn() -> bool,
) -> RuntimeResult<(Arc<dyn SpillFile>, Vec<u64>)> {
    let file = disk.create_tmp_file("gatework spill").query_err()?;
    if file.path().is_none() {
        return exec_err!("spilling needs temporary files that have a path").query_err();
    }
    let mut file_writer = file.open_writer().query_err()?;
    let mut counted = CountingWriter { inner: &mut file_writer, bytes: 0 };
    let mut ends = Vec::new();
    loop {
        // Before a batch is made.
        if !has_receiver() {
            return exec_err!("a spill that nobody waits for").query_err();
        }
        let Some(batch) = batches.next() else { break };
        write_segment(&mut counted, &batch?).query_err()?;
        ends.push(counted.bytes);
    }
    file_writer.finish().query_err()?;
    Ok((file, ends))
}

fn write_segment(to: impl Write, batch: &RecordBatch) -> Result<()> {
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut segment = StreamWriter::try_new_with_options(to, batch.schema_ref(), options)?;
    segment.write(batch)?;
    Ok(segment.finish()?)
}

impl SegmentedSpill {
    fn segment(&self, index: usize) -> Result<RecordBatch> {
        let path = self.file.as_ref().and_then(|file| file.path());
        let (Some(end), Some(path)) = (self.ends.get(index), path) else {
            return internal_err!("{self:?} has no batch {index}");
        };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
        file.read_exact(&mut bytes).map_err(|error| {
            let what = format!("reading {} back, which was cut or removed", path.display());
            DataFusionError::IoError(error).context(what)
        })?;
        match StreamReader::try_new(bytes.as_slice(), None)?.next() {
            Some(batch) => Ok(batch?),
            None => exec_err!("the temporary file {} was damaged", path.display()),
        }
    }
}

impl SpilledBatches for SegmentedSpill {
    fn size_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>) {
        self.io.clone().spawn_blocking(move || {
            let read = if done.has_receiver() {
                self.segment(batch)
            } else {
                exec_err!("a batch that nobody waits for")
            };
            // Before the query learns that it is over.
            drop(self);
            done.complete(read.query_err());
        });
    }
}
