//! Build sink of a nested-loop join: collects the left side in chunks.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_common::JoinSide;
use gatework_runtime::{
    Result,
    pipeline::{
        Batch, DriverContext, LocalSink, OperatorContext, OutOfMemory, PerTask, Reservation, Sink,
        SinkResult,
    },
};
use gatework_shared_state::{Gate, join_bridge::BuildProducer};

use super::{
    plan::NestedLoopJoinPlan,
    range::SortedKeys,
    table::{BuildChunk, BuildPart, Table},
};
use crate::{
    apply_selection,
    batch_bytes::{MAX_BATCH_BYTES, split_by_bytes, sum_of},
    compact::compact_views,
    concat::concat_batches,
    spill::{BreakerSink, BreakerState},
};

/// Sink that collects the build side.
#[derive(Debug)]
pub struct NestedLoopBuild {
    producers: PerTask<BuildProducer<BuildPart, Table>>,
    plan: Arc<NestedLoopJoinPlan>,
}

impl NestedLoopBuild {
    pub(super) fn new(
        producers: Vec<BuildProducer<BuildPart, Table>>,
        plan: Arc<NestedLoopJoinPlan>,
    ) -> Self {
        Self { producers: PerTask::new("nested loop join build", producers), plan }
    }
}

impl Sink for NestedLoopBuild {
    fn name(&self) -> &str {
        "nested-loop join build"
    }

    fn can_reclaim(&self) -> bool {
        true
    }

    fn local(&self, context: OperatorContext) -> Result<Box<dyn LocalSink>> {
        let producer = self.producers.take(&context)?;
        let closed = producer.closed().clone();
        let local = LocalBuild {
            producer: Some(producer),
            chunk_rows: self.plan.batch_size,
            plan: self.plan.clone(),
            small: Vec::new(),
            small_rows: 0,
            small_bytes: 0,
            chunks: Vec::new(),
            bytes: 0,
            memory: context.reservation(),
        };
        Ok(Box::new(BreakerSink::new(local, context, closed)))
    }
}

struct LocalBuild {
    producer: Option<BuildProducer<BuildPart, Table>>,
    plan: Arc<NestedLoopJoinPlan>,
    chunk_rows: usize,
    /// Batches that together do not fill a chunk.
    small: Vec<RecordBatch>,
    small_rows: usize,
    small_bytes: usize,
    chunks: Vec<BuildChunk>,
    /// Bytes of all rows.
    bytes: usize,
    memory: Reservation,
}

impl BreakerState for LocalBuild {
    fn add(&mut self, batch: Batch, _task: &DriverContext) -> Result<SinkResult> {
        let batch = Batch::new(compact_views(apply_selection(batch)?)?);
        self.bytes += batch.bytes();
        self.add_rows(batch.into_parts().0)?;
        Ok(SinkResult::NeedInput)
    }

    fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.memory.resize(self.bytes)
    }

    fn publish(&mut self, _wanted: bool, _task: &DriverContext) -> Result<Option<Gate>> {
        self.flush_chunks(1)?;
        // If it is denied: the last chunk's order takes little.
        let _granted = self.memory.resize(self.bytes);
        if let Some(producer) = self.producer.take() {
            let chunks = std::mem::take(&mut self.chunks);
            producer.publish(BuildPart { chunks, memory: self.memory.take() });
        }
        Ok(None)
    }
}

impl LocalBuild {
    fn add_rows(&mut self, rows: RecordBatch) -> Result<()> {
        let bytes = sum_of(rows.columns());
        // Together the batches might not fit into one array.
        if !self.small.is_empty() && self.small_bytes + bytes > MAX_BATCH_BYTES {
            self.flush_chunks(1)?;
        }
        self.small_rows += rows.num_rows();
        self.small_bytes += bytes;
        self.small.push(rows);
        match self.small_rows >= self.chunk_rows {
            true => self.flush_chunks(self.chunk_rows),
            false => Ok(()),
        }
    }

    /// Makes chunks of the small batches until fewer than `min_rows` rows remain.
    fn flush_chunks(&mut self, min_rows: usize) -> Result<()> {
        let rows = concat_batches(&std::mem::take(&mut self.small))?;
        let mut offset = 0;
        while rows.num_rows() - offset >= min_rows {
            let length = self.chunk_rows.min(rows.num_rows() - offset);
            for rows in split_by_bytes(&rows.slice(offset, length), MAX_BATCH_BYTES) {
                let range = self.plan.range.as_ref();
                let range = range.filter(|range| range.sorted == JoinSide::Left);
                let sorted = range.and_then(|range| range.sort(&rows));
                self.bytes += sorted.as_ref().map_or(0, SortedKeys::bytes);
                self.chunks.push(BuildChunk { rows, sorted });
            }
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
