//! Schema inference of CSV and JSON.

use std::fs;

use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;
use tempfile::{TempDir, tempdir};

use super::json::Keys;

fn session() -> SessionContext {
    let session = SessionContext::new();
    super::register(&session);
    session
}

fn file(name: &str, content: &str) -> (TempDir, String) {
    let folder = tempdir().unwrap();
    let path = folder.path().join(name).display().to_string();
    fs::write(&path, content).unwrap();
    (folder, path)
}

/// The inferred column names of a file, its number of rows, and the plan of its scan.
async fn table(path: &str, format: &str) -> (Vec<String>, usize, String) {
    let session = session();
    let sql = format!("CREATE EXTERNAL TABLE t STORED AS {format} LOCATION '{path}'");
    session.sql(&sql).await.unwrap();
    let table = session.table("t").await.unwrap();
    let names = table.schema().fields().iter().map(|field| field.name().clone()).collect();
    let plan = table.clone().create_physical_plan().await.unwrap();
    let plan = displayable(plan.as_ref()).indent(true).to_string();
    (names, table.count().await.unwrap(), plan)
}

/// Rows with line ends in quotes, after `plain` rows without.
fn quoted(plain: usize, rows: usize) -> String {
    let plain = (0..plain).map(|row| format!("{row},plain,{row}\n"));
    let quoted = (0..rows).map(|row| format!("{row},\"line {row}\nline, \"\"{row}\"\"\",{row}\n"));
    std::iter::once("a,b,c\n".to_owned()).chain(plain).chain(quoted).collect()
}

#[tokio::test]
async fn line_ends_in_quotes_do_not_end_a_record() {
    for (plain, rows) in [(0, 1000), (1, 5000), (2000, 1000)] {
        let (_folder, path) = file("t.csv", &quoted(plain, rows));
        let (names, count, _) = table(&path, "CSV").await;
        assert_eq!((names.join(",").as_str(), count), ("a,b,c", plain + rows));
    }
}

#[tokio::test]
async fn a_large_file_with_line_ends_in_quotes_is_not_cut() {
    let row = format!("1,\"{}\",2\n", "x".repeat(1 << 16));
    for (line_end, whole) in [("", false), ("\"a\nb\",1,2\n", true)] {
        let content = format!("a,b,c\n{line_end}{}", row.repeat(200));
        let (_folder, path) = file("t.csv", &content);
        let (_, count, plan) = table(&path, "CSV").await;
        assert_eq!(count, 200 + usize::from(whole));
        assert_eq!(!plan.contains(".csv:0.."), whole, "{plan}");
    }
}

#[tokio::test]
async fn batches_of_a_wide_file_are_small() {
    let names: Vec<_> = (0..5000).map(|column| format!("c{column}")).collect();
    let row = vec!["7"; 5000].join(",");
    let content = format!("{}\n{}", names.join(","), format!("{row}\n").repeat(1000));
    let (_folder, path) = file("t.csv", &content);
    let session = session();
    let sql = format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'");
    session.sql(&sql).await.unwrap();
    let batches = session.sql("SELECT c7 FROM t").await.unwrap().collect().await.unwrap();
    let rows: Vec<_> = batches.iter().map(arrow::array::RecordBatch::num_rows).collect();
    assert_eq!(rows.iter().sum::<usize>(), 1000);
    assert!(rows.iter().all(|&rows| rows <= (4 << 20) / 5000), "{rows:?}");
}

#[tokio::test]
async fn a_quote_that_does_not_end_is_an_error() {
    let (_folder, path) = file("t.csv", &format!("a\n\"{}", "x\n".repeat(40 << 20)));
    let sql = format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'");
    let said = session().sql(&sql).await.unwrap_err().to_string();
    assert!(said.contains("a record of a CSV file has more than 64 MiB"), "{said}");
}

#[tokio::test]
async fn lengths_of_a_damaged_arrow_file_are_not_believed() {
    let mut whole = Vec::new();
    let schema = arrow::datatypes::Schema::empty();
    arrow::ipc::writer::FileWriter::try_new(&mut whole, &schema).unwrap().finish().unwrap();
    let end = whole.len();
    let mut long_footer = whole.clone();
    long_footer[end - 10..end - 6].copy_from_slice(&i32::MAX.to_le_bytes());
    let stream = [&[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x7F][..], &[0; 40]].concat();
    for (content, said) in [
        (&whole[..end - 3], "it is truncated"),
        (&whole[..7], "it is truncated"),
        (&long_footer, "its footer has a length of 2147483647 bytes"),
        (&stream, "its first message has a length of 2130706432 bytes, in a file of 48"),
    ] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("t.arrow").display().to_string();
        fs::write(&path, content).unwrap();
        let sql = format!("CREATE EXTERNAL TABLE t STORED AS ARROW LOCATION '{path}'");
        let error = session().sql(&sql).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn json_has_the_columns_of_its_file() {
    let (_folder, path) = file("t.json", "{\"z\":1,\"a\":2}\n{\"z\":1,\"b\":2,\"a\":3}\n");
    let (names, count, _) = table(&path, "JSON").await;
    assert_eq!((names.join(",").as_str(), count), ("z,a,b", 2));
}

#[test]
fn keys_have_the_order_of_their_first_appearance() {
    let lines = r#"{"z":1,"n":{"y":1,"b":[{"q":1,"c":2}]}}

{"a":2,"z":3,"n":{"a":1}}
"#;
    let mut keys = Keys::default();
    assert_eq!(keys.read(lines.as_bytes(), 10), 2);
    let alphabetical = arrow::json::reader::infer_json_schema(lines.as_bytes(), None).unwrap().0;
    let sorted = keys.sort(alphabetical.fields());
    let names: Vec<_> = sorted.iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["z", "n", "a"]);
    let nested = sorted[1].data_type().to_string();
    let place = |name: &str| nested.find(&format!("\"{name}\"")).unwrap();
    assert!(place("y") < place("b") && place("b") < place("a"), "{nested}");
    assert!(place("q") < place("c"), "{nested}");
}
