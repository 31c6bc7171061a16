//! What the join types mean, written once for all joins: which rows are output, from which columns,
//! and which build rows have found a match. The left side is the build side.
//!
//! | join type | pairs | build rows after the probe | probe rows after their pairs |
//! |---|---|---|---|
//! | inner | yes | | |
//! | left | yes | those without a match | |
//! | right | yes | | those without a match |
//! | full | yes | those without a match | those without a match |
//! | left semi, right semi | | left: those with a match | right: those with a match |
//! | left anti, right anti | | left: those without a match | right: those without a match |
//! | left mark, right mark | | left: all, with the mark | right: all, with the mark |

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array, new_null_array},
    buffer::BooleanBuffer,
    datatypes::SchemaRef,
};
use datafusion_common::{JoinSide, JoinType};
use gatework_runtime::{Result, pipeline::Batch};

use crate::{
    ResultExt,
    chunked::Gather,
    dictionary::{TakenColumns, assemble_taken},
};

/// Source of an output column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputColumn {
    /// A column of the build side.
    Build(usize),
    /// A column of the probe side.
    Probe(usize),
    /// Whether the row found a match.
    Mark,
}

/// The output of a join.
#[derive(Debug)]
pub(crate) struct JoinLayout {
    join_type: JoinType,
    columns: Vec<OutputColumn>,
    schema: SchemaRef,
    /// Output columns that the consumer takes as dictionaries.
    dictionaries: TakenColumns,
}

/// One side's rows of an output batch.
pub(crate) enum RowSource<'a> {
    /// The rows at these indices.
    Take(&'a dyn Gather, &'a UInt32Array),
    /// All rows, unchanged.
    All(&'a RecordBatch),
    /// NULL in every column.
    Nulls,
}

impl JoinLayout {
    /// Creates the layout of a join of sides with these numbers of columns. `projection` lists the
    /// output columns, as indices into the join's own: left and right by index, or those of one
    /// side, then the mark. `schema` is the schema after the projection.
    pub(crate) fn new(
        join_type: JoinType,
        [left, right]: [usize; 2],
        projection: Option<&[usize]>,
        schema: SchemaRef,
    ) -> Self {
        use OutputColumn::{Build, Mark, Probe};
        let (left, right) = ((0..left).map(Build), (0..right).map(Probe));
        let all: Vec<_> = match join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                left.chain(right).collect()
            }
            JoinType::LeftSemi | JoinType::LeftAnti => left.collect(),
            JoinType::RightSemi | JoinType::RightAnti => right.collect(),
            JoinType::LeftMark => left.chain([Mark]).collect(),
            JoinType::RightMark => right.chain([Mark]).collect(),
        };
        let columns = match projection {
            Some(projection) => projection.iter().map(|&column| all[column]).collect(),
            None => all,
        };
        Self { join_type, columns, schema, dictionaries: TakenColumns::default() }
    }

    /// Replaces the indices of build columns, for a table that keeps only some of them.
    pub(crate) fn map_build_columns(&mut self, mut map: impl FnMut(usize) -> usize) {
        for column in &mut self.columns {
            if let OutputColumn::Build(index) = column {
                *index = map(*index);
            }
        }
    }

    /// Returns the output columns that are gathered: of the build side, and of the probe side.
    pub(crate) fn gathered(&self) -> [Vec<usize>; 2] {
        let build = self.columns.iter().filter_map(|column| match column {
            OutputColumn::Build(column) => Some(*column),
            _ => None,
        });
        let probe = self.columns.iter().filter_map(|column| match column {
            OutputColumn::Probe(column) => Some(*column),
            _ => None,
        });
        [build.collect(), probe.collect()]
    }

    /// Tells the join that its consumer takes the columns `output` as dictionaries. Returns the
    /// probe columns that are found in none but these.
    pub(crate) fn take_dictionaries(&self, output: &[usize]) -> Vec<usize> {
        self.dictionaries.record(output);
        let probe = |index: usize| match self.columns.get(index) {
            Some(OutputColumn::Probe(column)) => Some(*column),
            _ => None,
        };
        let other = (0..self.columns.len()).filter(|index| !output.contains(index));
        let other: Vec<usize> = other.filter_map(probe).collect();
        let mut taken: Vec<usize> = output.iter().filter_map(|index| probe(*index)).collect();
        taken.retain(|column| !other.contains(column));
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    /// Returns whether column `column` of the probe side is part of the output.
    pub(crate) fn has_probe_column(&self, column: usize) -> bool {
        self.columns.contains(&OutputColumn::Probe(column))
    }

    /// Checks that all consumers take the same columns as dictionaries.
    ///
    /// # Errors
    /// If two consumers take different columns.
    pub(crate) fn check_dictionaries(&self) -> Result<()> {
        self.dictionaries.check()
    }

    /// Returns the schema of the output.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns whether pairs are output rows.
    pub(crate) fn emits_pairs(&self) -> bool {
        use JoinType::{Full, Inner, Left, Right};
        matches!(self.join_type, Inner | Left | Right | Full)
    }

    /// Returns whether build rows are output after the probe, by whether they found a match.
    pub(crate) fn tracks_build_matches(&self) -> bool {
        use JoinType::{Full, Left, LeftAnti, LeftMark, LeftSemi};
        matches!(self.join_type, Left | Full | LeftSemi | LeftAnti | LeftMark)
    }

    /// Returns whether probe rows are output after their pairs, by whether they found a match.
    pub(crate) fn tracks_probe_matches(&self) -> bool {
        use JoinType::{Full, Right, RightAnti, RightMark, RightSemi};
        matches!(self.join_type, Right | Full | RightSemi | RightAnti | RightMark)
    }

    /// Returns whether probe rows without a match are output rows. If so, no scan may drop them,
    /// and an empty build side does not mean an empty result.
    pub(crate) fn preserves_probe_rows(&self) -> bool {
        self.tracks_probe_matches() && self.join_type != JoinType::RightSemi
    }

    /// Returns a batch of `rows` rows with the columns of both sides, and `mark` for the mark.
    pub(crate) fn batch(
        &self,
        build: &RowSource<'_>,
        probe: &RowSource<'_>,
        mark: Option<&BooleanArray>,
        rows: usize,
    ) -> Result<RecordBatch> {
        let is_taken = |index: usize| self.dictionaries.contains(index);
        let column = |(index, column): (usize, &OutputColumn)| {
            let nulls = || new_null_array(self.schema.field(index).data_type(), rows);
            let (side, column) = match column {
                OutputColumn::Build(column) => (build, *column),
                OutputColumn::Probe(column) => (probe, *column),
                OutputColumn::Mark => {
                    return Ok(mark.map_or_else(nulls, |mark| Arc::new(mark.clone())));
                }
            };
            match side {
                RowSource::Take(data, indices) if is_taken(index) => {
                    data.gather_codes(column, indices)
                }
                RowSource::Take(data, indices) => data.gather(column, indices),
                RowSource::All(data) => Ok(data.column(column).clone()),
                RowSource::Nulls => Ok(nulls()),
            }
        };
        let columns: Result<Vec<ArrayRef>> = self.columns.iter().enumerate().map(column).collect();
        assemble_taken(&self.schema, columns?, rows, is_taken).query_err()
    }

    /// Returns those rows of one side that are output by their `matched` bits, if there are any.
    /// They are selected, not gathered: all columns of `rows`, and NULLs for the other side.
    pub(crate) fn one_side(
        &self,
        side: JoinSide,
        rows: &RecordBatch,
        matched: BooleanBuffer,
    ) -> Result<Option<Batch>> {
        let mark = BooleanArray::new(matched, None);
        let selection = match self.join_type {
            JoinType::LeftMark | JoinType::RightMark => None,
            JoinType::LeftSemi | JoinType::RightSemi => Some(mark.values().clone()),
            _ => Some(!mark.values()),
        };
        if selection.as_ref().is_some_and(|selection| selection.count_set_bits() == 0) {
            return Ok(None);
        }
        let (all, nulls) = (RowSource::All(rows), RowSource::Nulls);
        let (build, probe) = if side == JoinSide::Left { (&all, &nulls) } else { (&nulls, &all) };
        let data = self.batch(build, probe, Some(&mark), rows.num_rows())?;
        Ok(Some(match selection {
            Some(selection) => Batch::with_selection(data, selection),
            None => Batch::new(data),
        }))
    }
}

/// A bit per build row, set once any probe task has found a match.
///
/// Ordering: all accesses are relaxed. Bits are only ever set, so a probe task that misses the bit
/// of another does some work twice. The final reads happen after `finish_probe` of every probe
/// task, whose lock orders all earlier writes.
#[derive(Debug, Default)]
pub(crate) struct MatchBits(Box<[AtomicU64]>);

impl MatchBits {
    /// Creates bits for `rows` rows.
    pub(crate) fn new(rows: usize) -> Self {
        Self((0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Returns the number of bytes.
    pub(crate) fn bytes(&self) -> usize {
        8 * self.0.len()
    }

    /// Returns whether `row` is known to have a match.
    #[inline]
    pub(crate) fn is_set(&self, row: u32) -> bool {
        self.0[row as usize / 64].load(Ordering::Relaxed) & (1 << (row % 64)) != 0
    }

    /// Records a match of `row`.
    #[inline]
    pub(crate) fn set(&self, row: u32) {
        let (word, bit) = (&self.0[row as usize / 64], 1_u64 << (row % 64));
        // Most matches are repeated, and a load does not invalidate the cache line of other cores.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Records a match of all rows.
    pub(crate) fn set_all(&self) {
        for word in &self.0 {
            if word.load(Ordering::Relaxed) != u64::MAX {
                word.store(u64::MAX, Ordering::Relaxed);
            }
        }
    }
}
