//! Location and scale of the data, and its missing tables.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::error::Error;

use super::generate;
use super::table::Table;

/// A folder with all eight tables.
#[derive(Debug)]
pub(super) struct Data {
    folder: PathBuf,
    /// Scale factor of the tables, if their sizes agree on one.
    pub(super) scale: Option<f64>,
    /// Whether the specification has answers for data of this size.
    pub(super) has_answers: bool,
}

impl Data {
    /// The file of a table.
    pub(super) fn path(&self, table: Table) -> PathBuf {
        path(&self.folder, table)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Finds the data, or generates its missing tables.
///
/// Without a scale factor, uses that of the existing tables, or 1. With one, tables of another size
/// are an error, rather than a measurement of other data.
pub(super) async fn find_or_make(
    folder: Option<PathBuf>,
    wanted: Option<f64>,
    threads: NonZeroUsize,
) -> Result<Data, Error> {
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(format!("tpch-data/sf{}", wanted.unwrap_or(1.0))));
    fs::create_dir_all(&folder).map_err(|error| {
        Error::failed(format!("the folder '{}' cannot be created: {error}", folder.display()))
    })?;
    let sizes = sizes(&folder)?;
    if let Some(scale) = wanted {
        check_scale(&folder, &sizes, scale)?;
    }
    let scale = wanted.or_else(|| scale_of(&sizes));
    let missing: Vec<_> =
        Table::ALL.into_iter().filter(|&table| !path(&folder, table).exists()).collect();
    if !missing.is_empty() {
        let scale = scale.unwrap_or(1.0);
        make(folder.clone(), missing, scale, threads).await?;
        return Ok(Data { folder, scale: Some(scale), has_answers: scale == 1.0 });
    }
    Ok(Data { folder, scale, has_answers: scale == Some(1.0) })
}

/// Generates tables on threads of their own, and stops them if the future is dropped.
async fn make(
    folder: PathBuf,
    tables: Vec<Table>,
    scale: f64,
    threads: NonZeroUsize,
) -> Result<(), Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let _stop_on_drop = StopOnDrop(Arc::clone(&stop));
    let work = move || generate::generate(&folder, &tables, scale, threads, &stop);
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::failed(format!("generating the data failed: {error}")))?
}

/// Stops the generator when dropped: dropping a blocking task does not stop it.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // Relaxed: the flag publishes no other data.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The row counts of the existing tables whose size determines the scale.
fn sizes(folder: &Path) -> Result<Vec<(Table, i64)>, Error> {
    let present = Table::ALL
        .into_iter()
        .filter(|&table| table.tells_scale() && path(folder, table).is_file());
    present.map(|table| rows(&path(folder, table)).map(|rows| (table, rows))).collect()
}

fn rows(path: &Path) -> Result<i64, Error> {
    let unreadable = |error: &dyn std::fmt::Display| {
        let path = path.display();
        Error::failed(format!(
            "'{path}' cannot be read as Parquet: {error}; remove it to generate it again"
        ))
    };
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| unreadable(&error))?;
    Ok(reader.metadata().file_metadata().num_rows())
}

/// The scale that matches the row counts of all tables.
fn scale_of(sizes: &[(Table, i64)]) -> Option<f64> {
    /// Rows of the smallest table at scale factor 1. Tables scale in steps of its rows, so this
    /// base converts rows to a scale without a remainder.
    const SUPPLIERS_AT_1: f64 = 10_000.0;
    let (table, rows) = sizes.iter().max_by_key(|(table, _)| *table == Table::Supplier)?;
    let base = table.rows(SUPPLIERS_AT_1) as f64 / SUPPLIERS_AT_1;
    let scale = *rows as f64 / base;
    sizes.iter().all(|(table, rows)| table.rows(scale) == *rows).then_some(scale)
}

fn check_scale(folder: &Path, sizes: &[(Table, i64)], scale: f64) -> Result<(), Error> {
    let Some((table, rows)) = sizes.iter().find(|(table, rows)| table.rows(scale) != *rows) else {
        return Ok(());
    };
    let (name, folder, expected) = (table.name(), folder.display(), table.rows(scale));
    Err(Error::failed(format!(
        "'{folder}' has other data: {name} has {rows} rows, but {expected} at scale factor \
         {scale}; choose another --data, \
         or omit --scale-factor"
    )))
}

fn path(folder: &Path, table: Table) -> PathBuf {
    folder.join(table.name()).with_extension("parquet")
}

#[cfg(test)]
mod tests;
