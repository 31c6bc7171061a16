//! Well-formed files, from which damaged ones are made.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use arrow::{
    array::RecordBatch,
    ipc::writer::{FileWriter, StreamWriter},
};
use datafusion::prelude::SessionContext;

use crate::queries::{random::Random, storage, tables::Table};

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    Csv,
    Json,
    Arrow,
}

impl Format {
    /// Returns the word of the format in `STORED AS`, which is also its extension.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Arrow => "arrow",
        }
    }

    fn of(path: &Path) -> Self {
        let all = [Self::Parquet, Self::Csv, Self::Json, Self::Arrow];
        let extension = path.extension().unwrap().to_string_lossy().into_owned();
        all.into_iter().find(|format| format.word() == extension).unwrap()
    }
}

/// A well-formed file.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) bytes: Vec<u8>,
}

/// Writes well-formed files below `folder`.
pub(crate) async fn write(folder: &Path, seed: u64) {
    for set in 0..4_u64 {
        let mut random = Random::new(seed ^ set << 40);
        for table in Table::random_set(&mut random) {
            write_table(&folder.join(format!("{set}-{}", table.name)), &table, &mut random).await;
        }
    }
}

async fn write_table(path: &Path, table: &Table, random: &mut Random) {
    let rows = &table.rows;
    for layout in 0..2 {
        let path = PathBuf::from(format!("{}-{layout}.parquet", path.display()));
        if storage::write_file(rows, &path, random).is_err() {
            // The table has a column that Parquet cannot store.
            fs::remove_file(&path).unwrap();
        }
    }
    write_arrow(rows, path);
    let session = SessionContext::new();
    session.register_batch("t", rows.clone()).unwrap();
    for format in ["csv", "json"] {
        let sql = format!(
            "COPY (SELECT id, c0, c1 FROM t) TO '{}.{format}' STORED AS {format}",
            path.display()
        );
        session.sql(&sql).await.unwrap().collect().await.unwrap();
    }
}

fn write_arrow(rows: &RecordBatch, path: &Path) {
    let file = |kind: &str| File::create(format!("{}-{kind}.arrow", path.display())).unwrap();
    let schema = rows.schema();
    let mut writer = FileWriter::try_new(file("file"), &schema).unwrap();
    writer.write(rows).unwrap();
    writer.finish().unwrap();
    let mut writer = StreamWriter::try_new(file("stream"), &schema).unwrap();
    writer.write(rows).unwrap();
    writer.finish().unwrap();
}

/// Returns the well-formed files below `folder`, always in the same order.
pub(crate) fn read(folder: &Path) -> Vec<Seed> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    let seed =
        |path: PathBuf| Seed { format: Format::of(&path), bytes: fs::read(&path).unwrap(), path };
    paths.into_iter().map(seed).collect()
}
