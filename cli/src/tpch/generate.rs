//! Generates tables and writes them as Parquet, with all threads and bounded memory.
//!
//! A table is divided into parts of [`ROWS_PER_GROUP`] rows, one row group each. Threads take parts
//! in order, the largest table first. A thread generates and encodes its part, waits for the
//! previous part, and appends the encoded row group to the file. It waits with at most one encoded
//! row group, and the earlier parts are always taken by other threads already. So the number of
//! threads bounds memory, and some thread can always proceed.
//!
//! Locks: one mutex per table around its [`Writer`], with a condition variable that signals an
//! appended part or a failure. Files are written under temporary names and renamed when complete,
//! so an interrupted run leaves no partial table.
//!
//! Compression is Snappy: files are larger than with Zstandard, but decode several times faster, so
//! that queries measure the engine and not the decompressor. Most published TPC-H Parquet files use
//! it.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use indicatif::ProgressBar;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use tempfile::NamedTempFile;

use crate::error::Error;
use crate::progress;

use super::table::Table;

/// Rows per group: large enough for good encodings, small enough to occupy all cores of a large
/// machine at scale factor 1.
const ROWS_PER_GROUP: i64 = 262_144;

/// Generates tables into a folder until done or `stop` is set.
pub(super) fn generate(
    folder: &Path,
    tables: &[Table],
    scale: f64,
    threads: NonZeroUsize,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let files = tables
        .iter()
        .map(|&table| TableFile::create(folder, table, scale))
        .collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<_> =
        files.iter().flat_map(|file| (1..=file.parts).map(move |part| (file, part))).collect();
    let bar =
        progress::bar(parts.len() as u64, format!("generating TPC-H data, scale factor {scale}"));
    let job = Job { parts, next: AtomicUsize::new(0), scale, stop, bar };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.get()).map(|_| scope.spawn(|| job.run())).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::failed("a thread that generated data panicked")))
        })
    })?;
    job.bar.finish_and_clear();
    drop(job);
    files.into_iter().try_for_each(|file| file.finish(folder))
}

/// State that the threads share.
struct Job<'a> {
    parts: Vec<(&'a TableFile, i32)>,
    /// Index of the next part to take.
    next: AtomicUsize,
    scale: f64,
    stop: &'a AtomicBool,
    bar: ProgressBar,
}

impl Job<'_> {
    /// Takes parts until none remains.
    fn run(&self) -> Result<(), Error> {
        loop {
            // Relaxed: the counter only hands out indexes of a list that does not change.
            let Some(&(file, part)) = self.parts.get(self.next.fetch_add(1, Ordering::Relaxed))
            else {
                return Ok(());
            };
            if let Err(error) = self.make_part(file, part) {
                // Other threads wait for parts that will never be appended.
                self.stop.store(true, Ordering::Relaxed);
                self.parts.iter().for_each(|(file, _)| file.wake_all());
                return Err(error);
            }
            self.bar.inc(1);
        }
    }

    fn make_part(&self, file: &TableFile, part: i32) -> Result<(), Error> {
        let mut columns = file.factory.create_column_writers(0).map_err(unwritten)?;
        for batch in file.table.reader(self.scale, part, file.parts) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            let batch = batch.map_err(unwritten)?;
            let mut writers = columns.iter_mut();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                for leaf in compute_leaves(field, column).map_err(unwritten)? {
                    writers
                        .next()
                        .map_or(Ok(()), |writer| writer.write(&leaf))
                        .map_err(unwritten)?;
                }
            }
        }
        let chunks =
            columns.into_iter().map(|column| column.close()).collect::<Result<Vec<_>, _>>();
        file.append(part, chunks.map_err(unwritten)?, self.stop)
    }
}

/// A table that is being written.
struct TableFile {
    table: Table,
    parts: i32,
    factory: ArrowRowGroupWriterFactory,
    writer: Mutex<Writer>,
    part_appended: Condvar,
}

struct Writer {
    /// The part to append next, from 1.
    next_part: i32,
    out: SerializedFileWriter<File>,
    file: NamedTempFile,
}

impl TableFile {
    fn create(folder: &Path, table: Table, scale: f64) -> Result<Self, Error> {
        let parts = i32::try_from(table.rows(scale) / ROWS_PER_GROUP + 1).unwrap_or(i32::MAX);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(None)
            .build();
        let file = NamedTempFile::new_in(folder).map_err(unwritten)?;
        let schema = table.reader(scale, 1, parts).schema();
        let out = file.reopen().map_err(unwritten)?;
        let writer =
            ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties)).map_err(unwritten)?;
        let (out, factory) = writer.into_serialized_writer().map_err(unwritten)?;
        Ok(Self {
            table,
            parts,
            factory,
            writer: Mutex::new(Writer { next_part: 1, out, file }),
            part_appended: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic while appending fails the run before the file is renamed.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an encoded part after the previous one.
    fn append(
        &self,
        part: i32,
        chunks: Vec<ArrowColumnChunk>,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        let others =
            |writer: &mut Writer| writer.next_part != part && !stop.load(Ordering::Relaxed);
        let mut writer = self
            .part_appended
            .wait_while(self.lock(), others)
            .unwrap_or_else(PoisonError::into_inner);
        if stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        append_row_group(&mut writer.out, chunks).map_err(unwritten)?;
        writer.next_part += 1;
        self.part_appended.notify_all();
        Ok(())
    }

    /// Wakes the threads that wait for an earlier part, after `stop` was set. Taking the lock
    /// ensures that a thread that has just read the flag waits before it is woken.
    fn wake_all(&self) {
        drop(self.lock());
        self.part_appended.notify_all();
    }

    /// Completes the file and renames it.
    fn finish(self, folder: &Path) -> Result<(), Error> {
        let writer = self.writer.into_inner().unwrap_or_else(PoisonError::into_inner);
        writer.out.close().map_err(unwritten)?;
        let path = folder.join(self.table.name()).with_extension("parquet");
        make_readable(writer.file.as_file()).map_err(unwritten)?;
        writer.file.persist(path).map_err(unwritten)?;
        Ok(())
    }
}

/// Makes a file as readable as files usually are: temporary files are private to their owner.
#[cfg(unix)]
fn make_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_: &File) -> std::io::Result<()> {
    Ok(())
}

fn append_row_group(
    out: &mut SerializedFileWriter<File>,
    chunks: Vec<ArrowColumnChunk>,
) -> Result<(), ParquetError> {
    let mut group = out.next_row_group()?;
    for chunk in chunks {
        chunk.append_to_row_group(&mut group)?;
    }
    group.close()?;
    Ok(())
}

fn unwritten(error: impl std::fmt::Display) -> Error {
    Error::failed(format!("the data cannot be written: {error}"))
}

/// The error of an interrupted run, which is not reported.
fn stopped() -> Error {
    Error::failed("data generation was interrupted")
}
