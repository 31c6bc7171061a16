//! Every format, with and without rows, and an output that its reader has closed.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::ipc::reader::StreamReader;

use super::{Destination, LineWriter, Output};
use crate::args::Format;
use crate::error::Error;

#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Destination for Memory {}

struct Closed;

impl Destination for Closed {}

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn batch(rows: &[(Option<i64>, &str)]) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>());
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)));
    RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("name", names, false)])
        .unwrap()
}

fn bytes(format: Format, batches: &[RecordBatch]) -> Vec<u8> {
    let memory = Memory::default();
    let mut output =
        Output::new(format, batch(&[]).schema(), LineWriter::to(memory.clone())).unwrap();
    batches.iter().for_each(|batch| output.write(batch).unwrap());
    output.finish().unwrap();
    memory.0.take()
}

fn text(format: Format, batches: &[RecordBatch]) -> String {
    String::from_utf8(bytes(format, batches)).unwrap()
}

#[test]
fn texts() {
    let batches = [batch(&[(Some(1), "a,b"), (None, "c")]), batch(&[(Some(23), "line\nbreak")])];
    assert_eq!(text(Format::Csv, &batches), "n,name\n1,\"a,b\"\n,c\n23,\"line\nbreak\"\n");
    assert_eq!(
        text(Format::Json, &batches),
        "{\"n\":1,\"name\":\"a,b\"}\n\
         {\"n\":null,\"name\":\"c\"}\n{\"n\":23,\"name\":\"line\\nbreak\"}\n"
    );
    let table = "\
+------+-------------+
|    n | name        |
+------+-------------+
|    1 | a,b         |
| NULL | c           |
|   23 | line\\nbreak |
+------+-------------+
";
    assert_eq!(text(Format::Table, &batches), table);
}

#[test]
fn results_without_rows() {
    assert_eq!(text(Format::Csv, &[]), "n,name\n");
    assert_eq!(text(Format::Json, &[]), "");
    assert_eq!(
        text(Format::Table, &[]),
        "+---+------+\n| n | name |\n+---+------+\n+---+------+\n"
    );
}

#[test]
fn arrow_can_be_read_back() {
    for batches in [vec![], vec![batch(&[(Some(1), "a")]), batch(&[(None, "b")])]] {
        let bytes = bytes(Format::Arrow, &batches);
        let read: Vec<_> =
            StreamReader::try_new(bytes.as_slice(), None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, batches);
    }
}

#[test]
fn long_results_keep_the_widths_of_their_beginning() {
    let batches: Vec<_> = (0..3).map(|_| batch(&vec![(Some(1), "a"); 700])).collect();
    assert_eq!(text(Format::Table, &batches).lines().count(), 2100 + 4);
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for format in [Format::Table, Format::Csv, Format::Json, Format::Arrow] {
        let rows = batch(&[(Some(1), "a")]);
        let attempt = || -> Result<(), Error> {
            let mut output = Output::new(format, rows.schema(), LineWriter::to(Closed))?;
            output.write(&rows)?;
            output.finish()
        };
        assert!(matches!(attempt(), Err(Error::OutputClosed)), "{format:?}");
    }
}
