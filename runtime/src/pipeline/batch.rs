//! The unit of data between operators.

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use gatework_shared_state::Payload;

/// A `RecordBatch`, its selected rows, and its sequence number within its morsel.
///
/// Every column has [`num_physical_rows`](Self::num_physical_rows) values. The selection, if any,
/// has one bit per value, and [`num_rows`](Self::num_rows) is the number of set bits. A filter only
/// refines the selection; an operator that needs contiguous columns applies the selection once.
#[derive(Debug, Clone)]
pub struct Batch {
    data: RecordBatch,
    selection: Option<BooleanBuffer>,
    rows: usize,
    sequence: u64,
}

impl Batch {
    /// Creates a batch of all rows of `data`.
    pub fn new(data: RecordBatch) -> Self {
        Self { rows: data.num_rows(), data, selection: None, sequence: 0 }
    }

    /// Creates a batch of the rows of `data` whose bit is set.
    ///
    /// # Panics
    /// If `selection` does not have one bit per row.
    pub fn with_selection(data: RecordBatch, selection: BooleanBuffer) -> Self {
        assert_eq!(data.num_rows(), selection.len(), "one selection bit per row");
        let rows = selection.count_set_bits();
        let selection = (rows < selection.len()).then_some(selection);
        Self { rows, data, selection, sequence: 0 }
    }

    /// Returns the batch with only those of its rows for which `keep`, called with their index
    /// among the values of each column, returns true. Copies no value.
    #[must_use]
    pub fn refine(self, keep: impl Fn(usize) -> bool) -> Self {
        let is_kept = |row: usize| {
            self.selection.as_ref().is_none_or(|selection| selection.value(row)) && keep(row)
        };
        let selection = BooleanBuffer::collect_bool(self.data.num_rows(), is_kept);
        Self::with_selection(self.data, selection).with_sequence(self.sequence)
    }

    /// Sets the batch's sequence number within its morsel.
    #[must_use]
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = sequence;
        self
    }

    /// Returns the batch's sequence number within its morsel.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the number of selected rows.
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of values per column, selected or not.
    pub fn num_physical_rows(&self) -> usize {
        self.data.num_rows()
    }

    /// Returns the columns, unselected rows included.
    pub fn data(&self) -> &RecordBatch {
        &self.data
    }

    /// Returns the selection; `None` if all rows are selected.
    pub fn selection(&self) -> Option<&BooleanBuffer> {
        self.selection.as_ref()
    }

    /// Splits the batch into its columns and its selection.
    pub fn into_parts(self) -> (RecordBatch, Option<BooleanBuffer>) {
        (self.data, self.selection)
    }

    /// Returns the size of the columns in bytes. A slice counts only its part of a shared buffer,
    /// so the sizes of a batch's slices sum up to about the size of the batch.
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

/// Returns the size of one column in bytes, as [`Batch::bytes`] counts it.
pub fn column_bytes(column: &dyn Array) -> usize {
    let rows = column.len();
    let validity = if column.nulls().is_some() { rows.div_ceil(8) } else { 0 };
    let values = match column.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows.div_ceil(8),
        // Slices share their buffers: only the bytes that their views refer to count.
        DataType::Utf8View => 16 * rows + column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => 16 * rows + column.as_binary_view().total_buffer_bytes_used(),
        kind => match kind.primitive_width() {
            Some(width) => width * rows,
            None => column.to_data().get_slice_memory_size().unwrap_or(0),
        },
    };
    values + validity
}
