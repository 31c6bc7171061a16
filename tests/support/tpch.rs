//! TPC-H: its data, generated once per test binary and scale factor, and its queries.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use arrow::{
    array::{RecordBatch, RecordBatchReader},
    datatypes::SchemaRef,
};
use datafusion::{
    datasource::MemTable,
    prelude::{ParquetReadOptions, SessionContext},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use tempfile::TempDir;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

/// The queries of the specification with its validation parameters; number 1 is the first.
pub(crate) const QUERIES: [&str; 22] = [
    include_str!("../../cli/queries/q1.sql"),
    include_str!("../../cli/queries/q2.sql"),
    include_str!("../../cli/queries/q3.sql"),
    include_str!("../../cli/queries/q4.sql"),
    include_str!("../../cli/queries/q5.sql"),
    include_str!("../../cli/queries/q6.sql"),
    include_str!("../../cli/queries/q7.sql"),
    include_str!("../../cli/queries/q8.sql"),
    include_str!("../../cli/queries/q9.sql"),
    include_str!("../../cli/queries/q10.sql"),
    include_str!("../../cli/queries/q11.sql"),
    include_str!("../../cli/queries/q12.sql"),
    include_str!("../../cli/queries/q13.sql"),
    include_str!("../../cli/queries/q14.sql"),
    include_str!("../../cli/queries/q15.sql"),
    include_str!("../../cli/queries/q16.sql"),
    include_str!("../../cli/queries/q17.sql"),
    include_str!("../../cli/queries/q18.sql"),
    include_str!("../../cli/queries/q19.sql"),
    include_str!("../../cli/queries/q20.sql"),
    include_str!("../../cli/queries/q21.sql"),
    include_str!("../../cli/queries/q22.sql"),
];

/// Rows per row group; few, so that small tables have several groups.
const ROW_GROUP_ROWS: usize = 8192;

/// Storage of a session's tables.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Storage {
    Parquet,
    Memory,
}

struct Table {
    name: &'static str,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

/// The eight tables in memory and as Parquet files, which are removed with the last user.
pub(crate) struct Tpch {
    tables: Vec<Table>,
    folder: TempDir,
}

impl Tpch {
    /// The data at `thousandths` of scale factor 1; generated unless another test is using it.
    pub(crate) fn new(thousandths: usize) -> Arc<Self> {
        static MADE: Mutex<Option<HashMap<usize, Weak<Tpch>>>> = Mutex::new(None);
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.get_or_insert_default();
        if let Some(data) = made.get(&thousandths).and_then(Weak::upgrade) {
            return data;
        }
        let data = Arc::new(Self::make(thousandths as f64 / 1000.0));
        made.insert(thousandths, Arc::downgrade(&data));
        data
    }

    fn make(scale: f64) -> Self {
        let readers: [(&str, Box<dyn RecordBatchReader>); 8] = [
            ("lineitem", Box::new(LineItemArrow::new(LineItemGenerator::new(scale, 1, 1)))),
            ("orders", Box::new(OrderArrow::new(OrderGenerator::new(scale, 1, 1)))),
            ("partsupp", Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, 1, 1)))),
            ("customer", Box::new(CustomerArrow::new(CustomerGenerator::new(scale, 1, 1)))),
            ("part", Box::new(PartArrow::new(PartGenerator::new(scale, 1, 1)))),
            ("supplier", Box::new(SupplierArrow::new(SupplierGenerator::new(scale, 1, 1)))),
            ("nation", Box::new(NationArrow::new(NationGenerator::new(scale, 1, 1)))),
            ("region", Box::new(RegionArrow::new(RegionGenerator::new(scale, 1, 1)))),
        ];
        let folder = TempDir::new().unwrap();
        let tables = readers.map(|(name, reader)| {
            let schema = reader.schema();
            let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
            let path = folder.path().join(name).with_extension("parquet");
            write_parquet(&path, &schema, &batches, ROW_GROUP_ROWS);
            Table { name, schema, batches }
        });
        Self { tables: tables.into(), folder }
    }

    /// The file of a table.
    pub(crate) fn path(&self, table: &str) -> PathBuf {
        self.folder.path().join(table).with_extension("parquet")
    }

    /// The rows of a table.
    pub(crate) fn batches(&self, table: &str) -> &[RecordBatch] {
        &self.table(table).batches
    }

    fn table(&self, name: &str) -> &Table {
        self.tables.iter().find(|table| table.name == name).unwrap()
    }

    /// Registers the tables in `session`.
    pub(crate) async fn register(&self, session: &SessionContext, storage: Storage) {
        for Table { name, schema, batches } in &self.tables {
            match storage {
                Storage::Parquet => {
                    let path = self.path(name);
                    let options = ParquetReadOptions::default();
                    session.register_parquet(*name, path.to_str().unwrap(), options).await.unwrap();
                }
                Storage::Memory => {
                    let table = MemTable::try_new(schema.clone(), vec![batches.clone()]).unwrap();
                    session.register_table(*name, Arc::new(table)).unwrap();
                }
            }
        }
    }
}

/// Writes a Parquet file with row groups of this many rows.
pub(crate) fn write_parquet(
    path: &std::path::Path,
    schema: &SchemaRef,
    batches: &[RecordBatch],
    row_group_rows: usize,
) {
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
}
