//! Definition levels of flat nullable columns, as bits, and the nulls of an output.

use super::bits::{RleBitPackedReader, Run};
use super::corrupt;
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, NullBuffer};
use bytes::Bytes;
use parquet::errors::Result;

/// The rows of a range that have a value.
pub(crate) enum Presence {
    /// All rows.
    All,
    /// The rows whose bit is set, and their number.
    Some(BooleanBuffer, usize),
}

/// The definition levels of a page whose highest level is 1.
pub(crate) struct DefinitionLevels {
    /// `None` if every row has a value.
    levels: Option<RleBitPackedReader>,
}

impl DefinitionLevels {
    /// Returns the levels of a required column: every row has a value.
    pub(crate) fn required() -> Self {
        Self { levels: None }
    }

    /// Reads levels in the RLE / bit-packing hybrid encoding.
    pub(crate) fn new(data: Bytes) -> Result<Self> {
        Ok(Self { levels: Some(RleBitPackedReader::new(data, 1)?) })
    }

    /// Returns which of the next `rows` rows have a value.
    pub(crate) fn read(&mut self, rows: usize) -> Result<Presence> {
        let Some(levels) = &mut self.levels else { return Ok(Presence::All) };
        let (run, remaining) = levels.run()?;
        if remaining >= rows && is_present(run)? == Some(true) {
            levels.advance(rows);
            return Ok(Presence::All);
        }
        let mut bits = BooleanBufferBuilder::new(rows);
        while bits.len() < rows {
            let (run, remaining) = levels.run()?;
            let taken = remaining.min(rows - bits.len());
            match (is_present(run)?, run) {
                (Some(present), _) => bits.append_n(taken, present),
                (None, Run::Packed { start, index }) => {
                    let first = start * 8 + index;
                    bits.append_packed_range(first..first + taken, levels.data());
                }
                (None, Run::Repeated(_)) => {}
            }
            levels.advance(taken);
        }
        let bits = bits.build();
        let present = bits.count_set_bits();
        Ok(if present == rows { Presence::All } else { Presence::Some(bits, present) })
    }

    /// Skips `rows` rows; returns the number of those that have a value.
    pub(crate) fn skip(&mut self, rows: usize) -> Result<usize> {
        let Some(levels) = &mut self.levels else { return Ok(rows) };
        let (mut passed, mut present) = (0, 0);
        while passed < rows {
            let (run, remaining) = levels.run()?;
            let taken = remaining.min(rows - passed);
            present += match (is_present(run)?, run) {
                (Some(all), _) => usize::from(all) * taken,
                (None, Run::Packed { start, index }) => {
                    arrow_buffer::bit_chunk_iterator::UnalignedBitChunk::new(
                        levels.data(),
                        start * 8 + index,
                        taken,
                    )
                    .count_ones()
                }
                (None, Run::Repeated(_)) => 0,
            };
            levels.advance(taken);
            passed += taken;
        }
        Ok(present)
    }
}

/// Returns whether the rows of a run have values; `None` if the run is bit-packed.
fn is_present(run: Run) -> Result<Option<bool>> {
    match run {
        Run::Repeated(0) => Ok(Some(false)),
        Run::Repeated(1) => Ok(Some(true)),
        Run::Repeated(level) => Err(corrupt(format!("definition level {level} of a flat column"))),
        Run::Packed { .. } => Ok(None),
    }
}

/// Builds the nulls of an output; allocates nothing until the first null.
#[derive(Default)]
pub(crate) struct ValidityBuilder {
    bits: Option<BooleanBufferBuilder>,
    len: usize,
}

impl ValidityBuilder {
    /// Appends rows with values.
    pub(crate) fn append_present(&mut self, rows: usize) {
        self.len += rows;
        if let Some(bits) = &mut self.bits {
            bits.append_n(rows, true);
        }
    }

    /// Appends rows; a row whose bit is unset is null.
    pub(crate) fn append(&mut self, present: &BooleanBuffer) {
        let before = self.len;
        let bits = self.bits.get_or_insert_with(|| {
            let mut bits = BooleanBufferBuilder::new(before + present.len());
            bits.append_n(before, true);
            bits
        });
        bits.append_buffer(present);
        self.len += present.len();
    }

    /// Returns the nulls of all appended rows; `None` if no row is null.
    pub(crate) fn finish(self) -> Option<NullBuffer> {
        let nulls = NullBuffer::new(self.bits?.build());
        (nulls.null_count() > 0).then_some(nulls)
    }
}
