//! The build sink of a nested-loop join: collects the left side in chunks.

use arrow::array::RecordBatch;
use gatework_runtime::{
    Result,
    pipeline::{Batch, FinishResult, LocalSink, Setup, Sink, SinkResult, Slots, TaskContext},
};
use gatework_shared_state::{Gate, join::BuildSink};

use super::table::{Part, Table};
use crate::{
    batch_bytes::{MAX_BATCH_BYTES, parts, sum_of},
    compact,
    compact::to_keep,
    concat::concat_rows,
    spilling::Debt,
};

/// Collects the left side.
#[derive(Debug)]
pub struct NestedLoopBuild {
    slots: Slots<BuildSink<Part, Table>>,
    chunk_rows: usize,
}

impl NestedLoopBuild {
    pub(super) fn new(sinks: Vec<BuildSink<Part, Table>>, chunk_rows: usize) -> Self {
        Self { slots: Slots::new(sinks), chunk_rows }
    }
}

impl Sink for NestedLoopBuild {
    fn name(&self) -> &str {
        "nested-loop join build"
    }

    fn holds_memory(&self) -> bool {
        true
    }

    fn local(&self, setup: Setup) -> Result<Box<dyn LocalSink>> {
        let sink = self.slots.take(&setup)?;
        Ok(Box::new(LocalBuild {
            closed: sink.closed().clone(),
            sink: Some(sink),
            chunk_rows: self.chunk_rows,
            small: Vec::new(),
            small_rows: 0,
            small_bytes: 0,
            chunks: Vec::new(),
            memory: Debt::new(setup),
        }))
    }
}

struct LocalBuild {
    sink: Option<BuildSink<Part, Table>>,
    closed: Gate,
    chunk_rows: usize,
    /// Batches that together do not fill a chunk.
    small: Vec<RecordBatch>,
    small_rows: usize,
    small_bytes: usize,
    chunks: Vec<RecordBatch>,
    memory: Debt,
}

impl LocalSink for LocalBuild {
    fn sink(&mut self, batch: Option<Batch>, _task: &TaskContext) -> Result<SinkResult> {
        if let Some(batch) = batch {
            let batch = Batch::new(to_keep(compact(batch)?)?);
            self.memory.add(batch.bytes())?;
            self.add(batch.into_parts().0)?;
        }
        Ok(match self.memory.settle()? {
            Some(gate) => SinkResult::Blocked(gate.into()),
            None => SinkResult::NeedInput,
        })
    }

    fn finish(&mut self, _task: &TaskContext) -> Result<FinishResult> {
        self.cut(1)?;
        if let Some(sink) = self.sink.take() {
            let chunks = std::mem::take(&mut self.chunks);
            sink.publish(Part { chunks, memory: self.memory.reservation().split_off() });
        }
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        Some(self.closed.clone())
    }
}

impl LocalBuild {
    fn add(&mut self, rows: RecordBatch) -> Result<()> {
        let bytes = sum_of(rows.columns());
        // Together they might not fit one array.
        if !self.small.is_empty() && self.small_bytes + bytes > MAX_BATCH_BYTES {
            self.cut(1)?;
        }
        self.small_rows += rows.num_rows();
        self.small_bytes += bytes;
        self.small.push(rows);
        match self.small_rows >= self.chunk_rows {
            true => self.cut(self.chunk_rows),
            false => Ok(()),
        }
    }

    /// Makes chunks of the small batches until fewer than `least` rows are left.
    fn cut(&mut self, least: usize) -> Result<()> {
        let rows = concat_rows(&std::mem::take(&mut self.small))?;
        let mut offset = 0;
        while rows.num_rows() - offset >= least {
            let length = self.chunk_rows.min(rows.num_rows() - offset);
            self.chunks.extend(parts(&rows.slice(offset, length), MAX_BATCH_BYTES));
            offset += length;
        }
        self.small_rows = rows.num_rows() - offset;
        if self.small_rows > 0 {
            self.small.push(rows.slice(offset, self.small_rows));
        }
        self.small_bytes = self.small.iter().map(|rows| sum_of(rows.columns())).sum();
        Ok(())
    }
}
