//! Storage of a table's rows: in memory in several partitions, or in Parquet files of random
//! layouts whose columns differ in order and number.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Int32Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    datasource::MemTable,
    error::Result,
    prelude::{ParquetReadOptions, SessionContext, col},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
    schema::types::ColumnPath,
};

use super::{random::Random, tables::Table};

/// Storage of a table, determined by its seed.
#[derive(Debug, Clone)]
pub(crate) enum Storage {
    /// Partitions with batches of random sizes; if `sorted`, the order by `id` is declared.
    Memory { partitions: usize, sorted: bool, seed: u64 },
    /// Files of random layouts.
    Parquet { files: usize, sorted: bool, seed: u64 },
}

impl Storage {
    /// Picks a storage.
    pub(crate) fn random(random: &mut Random) -> Self {
        let (count, sorted) = (1 + random.below(3), random.chance(20));
        let seed = random.bits();
        match random.chance(50) {
            true => Self::Memory { partitions: count, sorted, seed },
            false => Self::Parquet { files: count, sorted, seed },
        }
    }
}

/// A table that sessions can register.
pub(crate) enum Stored {
    Memory(Arc<MemTable>),
    Folder { path: String, schema: Schema, sorted: bool },
}

impl Stored {
    /// Stores the rows of `table`; files go below `folder`. Types that Parquet cannot store stay in
    /// memory.
    pub(crate) fn new(table: &Table, folder: &Path) -> Self {
        match table.storage {
            Storage::Memory { partitions, sorted, seed } => {
                in_memory(&table.rows, partitions, sorted, seed)
            }
            Storage::Parquet { files, sorted, seed } => {
                let folder = folder.join(&table.name);
                match in_files(&table.rows, files, &folder, &mut Random::new(seed)) {
                    Ok(()) => Self::Folder {
                        path: folder.to_string_lossy().into_owned(),
                        schema: table.rows.schema().as_ref().clone(),
                        sorted,
                    },
                    Err(_not_storable) => in_memory(&table.rows, files, sorted, seed),
                }
            }
        }
    }

    /// Registers the table in a session.
    pub(crate) async fn register(&self, name: &str, session: &SessionContext) -> Result<()> {
        match self {
            Self::Memory(table) => session.register_table(name, Arc::clone(table) as _).map(drop),
            Self::Folder { path, schema, sorted } => {
                let mut options = ParquetReadOptions::default().schema(schema);
                if *sorted {
                    options.file_sort_order = vec![vec![col("id").sort(true, false)]];
                }
                session.register_parquet(name, path, options).await
            }
        }
    }
}

/// Cuts rows into `count` runs, some of which may be empty.
fn runs(rows: &RecordBatch, count: usize, random: &mut Random) -> Vec<RecordBatch> {
    let mut ends: Vec<_> = (1..count).map(|_| random.below(rows.num_rows() + 1)).collect();
    ends.push(rows.num_rows());
    ends.sort_unstable();
    let mut first = 0;
    let cut = ends.into_iter().map(|end| {
        let run = rows.slice(first, end - first);
        first = end;
        run
    });
    cut.collect()
}

fn in_memory(rows: &RecordBatch, partitions: usize, sorted: bool, seed: u64) -> Stored {
    let mut random = Random::new(seed);
    let parts = runs(rows, partitions, &mut random);
    let parts = parts.iter().map(|part| runs(part, 3, &mut random)).collect();
    let table = MemTable::try_new(rows.schema(), parts).unwrap();
    let table = match sorted {
        true => table.with_sort_order(vec![vec![col("id").sort(true, false)]]),
        false => table,
    };
    Stored::Memory(Arc::new(table))
}

fn in_files(
    rows: &RecordBatch,
    count: usize,
    folder: &Path,
    random: &mut Random,
) -> parquet::errors::Result<()> {
    std::fs::create_dir_all(folder).unwrap();
    for (number, run) in runs(rows, count, random).into_iter().enumerate() {
        let run = rearranged(&run, random);
        write_file(&run, &folder.join(format!("{number}.parquet")), random)?;
    }
    Ok(())
}

/// Writes a Parquet file of a random layout.
pub(crate) fn write_file(
    rows: &RecordBatch,
    path: &Path,
    random: &mut Random,
) -> parquet::errors::Result<()> {
    let properties = properties(&rows.schema(), random);
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), rows.schema(), Some(properties))?;
    writer.write(rows)?;
    writer.close()?;
    Ok(())
}

/// Reorders columns, and adds columns that the table does not have.
fn rearranged(rows: &RecordBatch, random: &mut Random) -> RecordBatch {
    let schema = rows.schema();
    let mut columns: Vec<(Arc<Field>, ArrayRef)> =
        schema.fields().iter().cloned().zip(rows.columns().iter().cloned()).collect();
    if random.chance(30) {
        let place = random.below(columns.len() + 1);
        let field = Arc::new(Field::new("inserted", DataType::Int32, true));
        columns.insert(place, (field, Arc::new(Int32Array::from(vec![7; rows.num_rows()]))));
    }
    if random.chance(30) {
        let (from, to) = (random.below(columns.len()), random.below(columns.len()));
        columns.swap(from, to);
    }
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn properties(schema: &Schema, random: &mut Random) -> WriterProperties {
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ];
    let statistics = [EnabledStatistics::None, EnabledStatistics::Chunk, EnabledStatistics::Page];
    let version = match random.chance(50) {
        true => WriterVersion::PARQUET_1_0,
        false => WriterVersion::PARQUET_2_0,
    };
    let mut builder = WriterProperties::builder()
        .set_compression(*random.one(&compressions))
        .set_writer_version(version)
        .set_statistics_enabled(*random.one(&statistics))
        .set_bloom_filter_enabled(random.chance(20))
        .set_dictionary_page_size_limit(*random.one(&[16, 200, 1 << 20]))
        .set_data_page_row_count_limit(*random.one(&[1, 7, 50, 20_000]))
        .set_write_batch_size(*random.one(&[1, 5, 1024]))
        .set_max_row_group_row_count(Some(*random.one(&[1, 9, 40, 100_000])));
    for field in schema.fields() {
        let path = ColumnPath::new(vec![field.name().clone()]);
        builder = builder.set_column_dictionary_enabled(path.clone(), random.chance(50));
        if let Some(encoding) = encoding(field.data_type(), random) {
            builder = builder.set_column_encoding(path, encoding);
        }
    }
    builder.build()
}

/// Picks an encoding that the type supports.
fn encoding(data_type: &DataType, random: &mut Random) -> Option<Encoding> {
    let choices: &[Encoding] = match data_type {
        DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::Date32 => {
            &[Encoding::PLAIN, Encoding::DELTA_BINARY_PACKED, Encoding::BYTE_STREAM_SPLIT]
        }
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Binary => {
            &[Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY]
        }
        DataType::Float32 | DataType::Float64 => &[Encoding::PLAIN, Encoding::BYTE_STREAM_SPLIT],
        DataType::Boolean => &[Encoding::PLAIN, Encoding::RLE],
        _ => return None,
    };
    random.chance(60).then(|| *random.one(choices))
}
