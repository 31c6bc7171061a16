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
use gatework_operators::OrFail;
use gatework_runtime::{
    Result as RuntimeResult,
    pipeline::{Completion, Outside, Presence, SpillSpace, Spilled, ToSpill},
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::engine::{Engine, IoRuntime};

/// The temporary files of a query.
pub(crate) struct TempFiles {
    disk: Arc<DiskManager>,
    io: Arc<IoRuntime>,
    trash: Arc<Trash>,
}

impl TempFiles {
    /// Files of `disk`; `None` if it makes none.
    pub(crate) fn of(disk: &Arc<DiskManager>, engine: &Engine) -> Option<Arc<dyn SpillSpace>> {
        let files = || Self { disk: disk.clone(), io: engine.io.clone(), trash: Arc::default() };
        disk.tmp_files_enabled().then(|| Arc::new(files()) as _)
    }
}

impl fmt::Debug for TempFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "temporary files in {:?}", self.disk.temp_dir_paths())
    }
}

impl SpillSpace for TempFiles {
    fn write(&self, batches: ToSpill, done: Completion<Arc<dyn Spilled>>) {
        let disk = self.disk.clone();
        let io = match self.io.handle() {
            Ok(io) => io,
            Err(error) => {
                drop(batches);
                return done.complete(Err(error).or_fail());
            }
        };
        let trash = self.trash.clone();
        io.clone().spawn_blocking(move || {
            trash.empty();
            let written = write(&disk, batches, || done.is_wanted());
            // Before the query learns that it is over: the session's folder goes with its last user.
            drop(disk);
            let segments = written.map(|(file, ends)| {
                let file = Some(file);
                Arc::new(Segments { file, ends, io, trash, presence: done.presence() }) as _
            });
            done.complete(segments);
        });
    }
}

/// Files of a query to be removed, a few at a time: the system takes tens of milliseconds for a gigabyte, and whoever
/// wants to read should not have to wait for all of them.
#[derive(Default)]
struct Trash(Mutex<Removals>);

#[derive(Default)]
struct Removals {
    files: VecDeque<Removal>,
    under_way: usize,
}

/// A file that nobody reads any more; until it is gone, its query has not ended.
struct Removal {
    file: Arc<dyn SpillFile>,
    _until: Outside,
}

/// How many threads remove files at a time.
const REMOVERS: usize = 2;

impl Trash {
    fn remove(self: &Arc<Self>, removal: Removal, io: &Handle) {
        let mut removals = self.0.lock();
        removals.files.push_back(removal);
        if removals.under_way < REMOVERS {
            removals.under_way += 1;
            drop(removals);
            Remover { trash: self.clone(), io: io.clone(), is_over: false }.go_on();
        }
    }

    /// Removes all that is there, since their bytes count against the quota.
    fn empty(&self) {
        loop {
            // Not while it is locked.
            let Some(removal) = self.0.lock().files.pop_front() else { return };
            removal.remove();
        }
    }

    /// The next file of one that removes them, which is over if there is none: under the lock, so that whoever puts a file
    /// there later begins another.
    fn next(&self) -> Option<Removal> {
        let mut removals = self.0.lock();
        let next = removals.files.pop_front();
        removals.under_way -= usize::from(next.is_none());
        next
    }
}

impl Removal {
    fn remove(self) {
        // Before the query learns that it is over.
        drop(self.file);
        drop(self._until);
    }
}

/// One that removes files, each in a turn of its own, so that others can read in between.
struct Remover {
    trash: Arc<Trash>,
    io: Handle,
    is_over: bool,
}

impl Remover {
    fn go_on(self) {
        let io = self.io.clone();
        io.spawn_blocking(move || self.take_turn());
    }

    fn take_turn(mut self) {
        match self.trash.next() {
            Some(removal) => {
                removal.remove();
                self.go_on();
            }
            None => self.is_over = true,
        }
    }
}

/// It gets no turn any more where the I/O runtime has been shut down.
impl Drop for Remover {
    fn drop(&mut self) {
        while !self.is_over {
            match self.trash.next() {
                Some(removal) => removal.remove(),
                None => self.is_over = true,
            }
        }
    }
}

/// A file of segments.
struct Segments {
    /// Until it is dropped.
    file: Option<Arc<dyn SpillFile>>,
    /// Where each segment ends; the first begins at 0.
    ends: Vec<u64>,
    io: Handle,
    trash: Arc<Trash>,
    presence: Presence,
}

impl Drop for Segments {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let removal = Removal { file, _until: self.presence.begin() };
            self.trash.remove(removal, &self.io);
        }
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.file.as_ref().and_then(|file| file.path());
        write!(f, "{} batches in {path:?}", self.ends.len())
    }
}

/// Counts what goes through.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
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
    mut batches: ToSpill,
    is_wanted: impl Fn() -> bool,
) -> RuntimeResult<(Arc<dyn SpillFile>, Vec<u64>)> {
    let file = disk.create_tmp_file("gatework spill").or_fail()?;
    if file.path().is_none() {
        return exec_err!("spilling needs temporary files that have a path").or_fail();
    }
    let mut file_writer = file.open_writer().or_fail()?;
    let mut counted = Counted { inner: &mut file_writer, bytes: 0 };
    let mut ends = Vec::new();
    loop {
        // Before a batch is made.
        if !is_wanted() {
            return exec_err!("a spill that nobody waits for").or_fail();
        }
        let Some(batch) = batches.next() else { break };
        write_segment(&mut counted, &batch?).or_fail()?;
        ends.push(counted.bytes);
    }
    file_writer.finish().or_fail()?;
    Ok((file, ends))
}

fn write_segment(to: impl Write, batch: &RecordBatch) -> Result<()> {
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut segment = StreamWriter::try_new_with_options(to, batch.schema_ref(), options)?;
    segment.write(batch)?;
    Ok(segment.finish()?)
}

impl Segments {
    fn segment(&self, number: usize) -> Result<RecordBatch> {
        let path = self.file.as_ref().and_then(|file| file.path());
        let (Some(end), Some(path)) = (self.ends.get(number), path) else {
            return internal_err!("{self:?} has no batch {number}");
        };
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
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

impl Spilled for Segments {
    fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn read(self: Arc<Self>, batch: usize, done: Completion<RecordBatch>) {
        self.io.clone().spawn_blocking(move || {
            let read = if done.is_wanted() {
                self.segment(batch)
            } else {
                exec_err!("a batch that nobody waits for")
            };
            // Before the query learns that it is over.
            drop(self);
            done.complete(read.or_fail());
        });
    }
}
