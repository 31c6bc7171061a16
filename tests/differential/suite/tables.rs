//! Tables and functions that some files of the suite expect, registered like in DataFusion's own
//! runner (`TestContext`).

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, DictionaryArray, Float64Array, Int32Array, LargeBinaryArray,
        LargeStringArray, RecordBatch, StringArray, StructArray, TimestampNanosecondArray,
        UInt32Array, UnionArray,
    },
    buffer::ScalarBuffer,
    datatypes::{DataType, Field, Fields, Schema, TimeUnit, UInt32Type, UnionFields},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider},
    common::cast::as_float64_array,
    error::Result,
    functions::math::abs,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl},
        create_udf,
    },
    prelude::{CsvReadOptions, SessionContext},
};

/// Registers what the file called `name` needs; files go below `folder`.
pub(crate) async fn register(session: &SessionContext, name: &str, folder: &Path) {
    match name {
        "cte.slt" => register_orders(session),
        "information_schema_columns.slt" => register_many_types(session),
        "map.slt" => register_map(session),
        "joins.slt" => {
            session.register_udf(example());
            register_partitions(session, folder).await;
            register_many_types(session);
        }
        "metadata.slt" | "arrow_field.slt" => register_metadata(session),
        "union_function.slt" => register_union(session),
        "aggregate.slt" => register_groups_of_unions(session),
        "dictionary_struct.slt" => register_dictionaries(session),
        "async_udf.slt" => {
            let udf = AsyncScalarUDF::new(Arc::new(AsyncAbs(abs())));
            session.register_udf(udf.into_scalar_udf());
        }
        _ => (),
    }
}

fn batch(columns: Vec<(Field, ArrayRef)>, metadata: HashMap<String, String>) -> RecordBatch {
    let (fields, columns): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, metadata)), columns).unwrap()
}

fn put(session: &SessionContext, name: &str, columns: Vec<(Field, ArrayRef)>) {
    session.register_batch(name, batch(columns, HashMap::new())).unwrap();
}

fn register_orders(session: &SessionContext) {
    let schema = Arc::new(MemorySchemaProvider::new());
    session.catalog("datafusion").unwrap().register_schema("strict_schema", schema).unwrap();
    let ids: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
    let columns = vec![(Field::new("order_id", DataType::Int32, false), ids)];
    put(session, "datafusion.strict_schema.orders", columns);
}

fn register_many_types(session: &SessionContext) {
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("my_schema", Arc::new(MemorySchemaProvider::new())).unwrap();
    session.register_catalog("my_catalog", Arc::new(catalog));
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let text: &[u8] = b"foo";
    let columns: Vec<(&str, bool, ArrayRef)> = vec![
        ("int32_col", false, Arc::new(Int32Array::from(vec![1]))),
        ("float64_col", true, Arc::new(Float64Array::from(vec![1.0]))),
        ("utf8_col", true, Arc::new(StringArray::from(vec!["foo"]))),
        ("large_utf8_col", false, Arc::new(LargeStringArray::from(vec!["bar"]))),
        ("binary_col", false, Arc::new(BinaryArray::from(vec![text]))),
        ("large_binary_col", false, Arc::new(LargeBinaryArray::from(vec![text]))),
        ("timestamp_nanos", false, Arc::new(TimestampNanosecondArray::from(vec![123]))),
    ];
    assert_eq!(columns[6].2.data_type(), &time);
    let columns = columns.into_iter().map(|(name, nullable, column)| {
        (Field::new(name, column.data_type().clone(), nullable), column)
    });
    put(session, "my_catalog.my_schema.table_with_many_types", columns.collect());
}

fn register_map(session: &SessionContext) {
    let parts =
        vec![Field::new("key", DataType::Int64, false), Field::new("value", DataType::Int64, true)];
    let entries = Field::new("entries", DataType::Struct(parts.into()), false);
    let fields = vec![
        Field::new("int_field", DataType::Int64, true),
        Field::new("map_field", DataType::Map(Arc::new(entries), false), true),
    ];
    let empty = RecordBatch::new_empty(Arc::new(Schema::new(fields)));
    session.register_batch("table_with_map", empty).unwrap();
}

/// Adds two numbers.
fn example() -> ScalarUDF {
    let add = |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let (left, right) = (as_float64_array(&arrays[0])?, as_float64_array(&arrays[1])?);
        let sums = left.iter().zip(right).map(|(left, right)| Some(left? + right?));
        Ok(ColumnarValue::from(Arc::new(sums.collect::<Float64Array>()) as ArrayRef))
    };
    let types = vec![DataType::Float64, DataType::Float64];
    create_udf("example", types, DataType::Float64, Volatility::Immutable, Arc::new(add))
}

async fn register_partitions(session: &SessionContext, folder: &Path) {
    let folder = folder.join("partitions");
    fs::create_dir_all(&folder).unwrap();
    let rows = (0..=10).map(|n| format!("0,{n},{}\n", n % 2 == 0));
    fs::write(folder.join("partition-0.csv"), rows.collect::<String>()).unwrap();
    let schema = Schema::new(vec![
        Field::new("c1", DataType::UInt32, false),
        Field::new("c2", DataType::UInt64, false),
        Field::new("c3", DataType::Boolean, false),
    ]);
    let options = CsvReadOptions::new().schema(&schema);
    let path = folder.to_str().unwrap();
    session.register_csv("test_partition_table", path, options).await.unwrap();
}

fn metadata(value: &str) -> HashMap<String, String> {
    HashMap::from([("metadata_key".to_owned(), value.to_owned())])
}

fn register_metadata(session: &SessionContext) {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let field = |name: &str, data_type, nullable, text: &str| {
        Field::new(name, data_type, nullable).with_metadata(metadata(text))
    };
    let texts = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let columns = vec![
        (
            field("id", DataType::Int32, true, "the id field"),
            Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])) as ArrayRef,
        ),
        (
            field("name", DataType::Utf8, true, "the name field"),
            texts(vec![None, Some("bar"), Some("baz")]),
        ),
        (
            field("l_name", DataType::Utf8, true, "the l_name field"),
            texts(vec![None, Some("l_bar"), Some("l_baz")]),
        ),
        (
            field("ts", time, false, "ts non-nullable field"),
            Arc::new(TimestampNanosecondArray::from(vec![1_599_572_549_190_855_123; 3])),
        ),
        (
            field("nonnull_name", DataType::Utf8, false, "the nonnull_name field"),
            texts(vec![Some("no_foo"), Some("no_bar"), Some("no_baz")]),
        ),
    ];
    let whole = batch(columns, metadata("the entire schema"));
    session.register_batch("table_with_metadata", whole).unwrap();
    let numbers = |name: &str, values: Vec<i32>, side: &str| {
        let column: ArrayRef = Arc::new(Int32Array::from(values));
        batch(vec![(Field::new(name, DataType::Int32, false), column)], metadata(side))
    };
    let larger = numbers("a", (1..=10).collect(), "left");
    session.register_batch("larger_table", larger).unwrap();
    session.register_batch("smaller_table", numbers("b", vec![1], "right")).unwrap();
}

fn register_union(session: &SessionContext) {
    let fields = vec![
        Field::new("int", DataType::Int32, false),
        Field::new("string", DataType::Utf8, false),
    ];
    let union = UnionArray::try_new(
        UnionFields::try_new(vec![3, 1], fields).unwrap(),
        ScalarBuffer::from(vec![3_i8, 1, 3, 3, 1, 3]),
        None,
        vec![
            Arc::new(Int32Array::from(vec![1, 2, 3, 1, 5, 3])),
            Arc::new(StringArray::from(vec!["foo", "bar", "baz", "qux", "bar", "quux"])),
        ],
    );
    let union = union.unwrap();
    let field = Field::new("union_column", union.data_type().clone(), false);
    put(session, "union_table", vec![(field, Arc::new(union))]);
}

fn register_groups_of_unions(session: &SessionContext) {
    let fields =
        vec![Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)];
    let union = UnionArray::try_new(
        UnionFields::try_new(vec![0, 1], fields).unwrap(),
        ScalarBuffer::from(vec![0_i8, 0, 1, 1, 0, 0, 1, 0]),
        Some(ScalarBuffer::from(vec![0, 1, 0, 1, 2, 3, 2, 4])),
        vec![
            Arc::new(Int32Array::from(vec![Some(1), Some(1), None, None, Some(5)])),
            Arc::new(StringArray::from(vec![Some("x"), Some("y"), None])),
        ],
    );
    let union = union.unwrap();
    let groups: ArrayRef = Arc::new(Int32Array::from(vec![1, 1, 1, 2, 2, 3, 3, 4]));
    let field = Field::new("u", union.data_type().clone(), false);
    let columns =
        vec![(Field::new("g", DataType::Int32, false), groups), (field, Arc::new(union) as _)];
    put(session, "approx_distinct_union_test", columns);
}

fn structs(names: Vec<&str>, ids: Vec<i32>) -> StructArray {
    let fields: Fields =
        vec![Field::new("name", DataType::Utf8, false), Field::new("id", DataType::Int32, false)]
            .into();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(names)), Arc::new(Int32Array::from(ids))];
    StructArray::try_new(fields, columns, None).unwrap()
}

fn dictionary(keys: UInt32Array, values: StructArray, name: &str) -> (Field, ArrayRef) {
    let nullable = keys.null_count() > 0;
    let array = DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(values)).unwrap();
    (Field::new(name, array.data_type().clone(), nullable), Arc::new(array))
}

fn register_dictionaries(session: &SessionContext) {
    let keys = UInt32Array::from(vec![0, 1, 2, 0, 1]);
    let values = structs(vec!["Alice", "Bob", "Carol"], vec![1, 2, 3]);
    let plain = structs(vec!["Alice", "Bob", "Carol", "Alice", "Bob"], vec![1, 2, 3, 1, 2]);
    let plain_field = Field::new("plain_struct", plain.data_type().clone(), false);
    let columns =
        vec![dictionary(keys, values, "dict_struct"), (plain_field, Arc::new(plain) as ArrayRef)];
    put(session, "dict_struct_table", columns);
    let keys = UInt32Array::from(vec![Some(0), None, Some(1), None]);
    let nullable = dictionary(keys, structs(vec!["X", "Y"], vec![10, 20]), "ds");
    put(session, "dict_struct_nullable", vec![nullable]);
}

/// The absolute value, as an asynchronous function.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AsyncAbs(Arc<ScalarUDF>);

impl ScalarUDFImpl for AsyncAbs {
    fn name(&self) -> &str {
        "async_abs"
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.0.return_type(types)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        datafusion::common::not_impl_err!("async_abs is called asynchronously only")
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for AsyncAbs {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.0.invoke_with_args(args)
    }
}
