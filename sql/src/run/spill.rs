//! Spill files from DataFusion's disk manager, whose quota and folders apply.
//!
//! A file is a sequence of segments, one per batch. Each segment is a complete Arrow IPC stream
//! with LZ4 compression, so batches can be restored one by one in any order. The I/O runtime's
//! blocking pool writes, reads and deletes the files. A file is deleted when its last reference is
//! dropped. A query ends only after its files are deleted.

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

use crate::run::engine::{Engine, IoRuntime};

/// The temporary files of a query.
pub(crate) struct TempFiles {
    disk: Arc<DiskManager>,
    io: Arc<IoRuntime>,
    deletions: Arc<DeletionQueue>,
}

impl TempFiles {
    /// Returns spill space on `disk`; `None` if temporary files are disabled.
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
            // Dropped before the query can end: the session's folder is deleted with its last
            // reference.
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

/// Files of a query to be deleted by at most [`DELETE_THREADS`] threads. Deleting a gigabyte takes
/// the system tens of milliseconds, and reads must not wait for all deletions.
#[derive(Default)]
struct DeletionQueue(Mutex<DeletionState>);

#[derive(Default)]
struct DeletionState {
    files: VecDeque<PendingDeletion>,
    active_threads: usize,
}

/// A file without readers. The query has external work, and so has not ended, until the file is
/// deleted.
struct PendingDeletion {
    file: Arc<dyn SpillFile>,
    _external_work: ExternalWork,
}

/// Maximum number of threads of a query that delete files at a time.
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

    /// Deletes all queued files, since their bytes count against the quota. Called before each
    /// write.
    fn delete_all(&self) {
        loop {
            // `pop_front` only: the lock must not be held during a deletion.
            let Some(deletion) = self.0.lock().files.pop_front() else { return };
            deletion.delete();
        }
    }

    /// Returns the next file for a deletion worker, or `None` and ends the worker. Both happen
    /// under the lock, so a later `push` starts another worker.
    fn pop(&self) -> Option<PendingDeletion> {
        let mut state = self.0.lock();
        let next = state.files.pop_front();
        state.active_threads -= usize::from(next.is_none());
        next
    }
}

impl PendingDeletion {
    fn delete(self) {
        // Deleted before the external work ends: the query may end with it.
        drop(self.file);
        drop(self._external_work);
    }
}

/// A worker that deletes files. It schedules itself anew for each file, so that reads run in
/// between.
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

/// A shutdown of the I/O runtime drops the worker instead of running it; the drop deletes the
/// queued files.
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
    /// `None` only during drop.
    file: Option<Arc<dyn SpillFile>>,
    /// End offset of each segment in bytes; the first segment starts at 0.
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

/// Counts the bytes written to `inner`.
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

/// Writes `batches` to a new file. Returns it with the end offset of each segment.
fn write(
    disk: &Arc<DiskManager>,
    mut batches: SpillInput,
    has_receiver: impl Fn() -> bool,
) -> RuntimeResult<(Arc<dyn SpillFile>, Vec<u64>)> {
    let file = disk.create_tmp_file("gatework spill").query_err()?;
    if file.path().is_none() {
        return exec_err!("spilling requires temporary files on a local path").query_err();
    }
    let mut file_writer = file.open_writer().query_err()?;
    let mut counted = CountingWriter { inner: &mut file_writer, bytes: 0 };
    let mut ends = Vec::new();
    loop {
        // Checked before the next batch is computed.
        if !has_receiver() {
            return exec_err!("spill cancelled: its receiver was dropped").query_err();
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
            let what = format!("restoring from {}, which was truncated or removed", path.display());
            DataFusionError::IoError(error).context(what)
        })?;
        match StreamReader::try_new(bytes.as_slice(), None)?.next() {
            Some(batch) => Ok(batch?),
            None => exec_err!("the spill file {} has a segment without rows", path.display()),
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
                exec_err!("restore cancelled: its receiver was dropped")
            };
            // Dropped before the read completes: the query may end with it.
            drop(self);
            done.complete(read.query_err());
        });
    }
}
