//! The unit of data between operators.

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use gatework_shared_state::Payload;

/// A `RecordBatch`, the rows of it that count, and its place in the order of its morsel.
///
/// Shapes: every column has [`num_physical_rows`](Self::num_physical_rows) values; the selection, if there
/// is one, has as many bits; [`num_rows`](Self::num_rows) is the number of set bits. A filter only narrows
/// the selection; whoever needs contiguous columns gathers them once.
#[derive(Debug, Clone)]
pub struct Batch {
    data: RecordBatch,
    selection: Option<BooleanBuffer>,
    rows: usize,
    sequence: u64,
}

impl Batch {
    /// All rows of `data`.
    pub fn new(data: RecordBatch) -> Self {
        Self { rows: data.num_rows(), data, selection: None, sequence: 0 }
    }

    /// The rows of `data` whose bit is set.
    ///
    /// # Panics
    /// If `selection` does not have one bit per row.
    pub fn with_selection(data: RecordBatch, selection: BooleanBuffer) -> Self {
        assert_eq!(data.num_rows(), selection.len(), "one selection bit per row");
        let rows = selection.count_set_bits();
        let selection = (rows < selection.len()).then_some(selection);
        Self { rows, data, selection, sequence: 0 }
    }

    /// The same batch at place `sequence` of its morsel's order.
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = sequence;
        self
    }

    /// Its place in the order of its morsel.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Rows that count.
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// Values per column, selected or not.
    pub fn num_physical_rows(&self) -> usize {
        self.data.num_rows()
    }

    /// The columns, unselected rows included.
    pub fn data(&self) -> &RecordBatch {
        &self.data
    }

    /// Which rows count; `None` for all.
    pub fn selection(&self) -> Option<&BooleanBuffer> {
        self.selection.as_ref()
    }

    /// The columns and the selection.
    pub fn into_parts(self) -> (RecordBatch, Option<BooleanBuffer>) {
        (self.data, self.selection)
    }

    /// The bytes its columns take, as far as their own rows are concerned: slices count their part
    /// of a buffer, so that the parts of a batch sum up to about the whole.
    pub fn bytes(&self) -> usize {
        self.data.columns().iter().map(|column| column_bytes(column.as_ref())).sum()
    }
}

impl From<RecordBatch> for Batch {
    fn from(data: RecordBatch) -> Self {
        Self::new(data)
    }
}

impl Payload for Batch {
    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        Self::bytes(self)
    }
}

/// The bytes that one column takes, as [`Batch::bytes`] counts them.
pub fn column_bytes(column: &dyn Array) -> usize {
    let rows = column.len();
    let validity = if column.nulls().is_some() { rows.div_ceil(8) } else { 0 };
    let values = match column.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        // Slices share their buffers: what they refer to counts, not what else is in there.
        DataType::Utf8View => 16 * rows + column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => 16 * rows + column.as_binary_view().total_buffer_bytes_used(),
        kind => match kind.primitive_width() {
            Some(width) => width * rows,
            None => column.to_data().get_slice_memory_size().unwrap_or(0),
        },
    };
    values + validity
}
