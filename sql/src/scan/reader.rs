//! One task of a scan: takes pieces, plans them, decodes their batches.

use std::{collections::VecDeque, sync::Arc, task::Poll};

use arrow::array::RecordBatch;
use datafusion::{
    datasource::listing::PartitionedFile, error::Result as DataFusionResult,
    physical_plan::metrics::BaselineMetrics,
};
use datafusion_datasource::morsel::{Morsel, MorselPlanner};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use gatework_operators::{OrFail, stream_scan::PollGate};
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalSource, SourceResult, Start, TaskContext},
};

use super::{Shared, filters::LocalFilters, pieces, queue::Work};

pub(super) struct LocalFileScan {
    shared: Arc<Shared>,
    baseline: BaselineMetrics,
    filters: LocalFilters,
    gate: PollGate,
    /// A file's footer that is being read, to cut the file.
    cutting: Option<BoxFuture<'static, DataFusionResult<Vec<PartitionedFile>>>>,
    /// The piece at hand: planners, a planner that waits for I/O, morsels, the stream of one.
    planners: VecDeque<Box<dyn MorselPlanner>>,
    planning: Option<BoxFuture<'static, DataFusionResult<Box<dyn MorselPlanner>>>>,
    morsels: VecDeque<Box<dyn Morsel>>,
    stream: Option<BoxStream<'static, DataFusionResult<RecordBatch>>>,
    /// What is left of a batch that was larger than asked for.
    rest: Option<RecordBatch>,
}

/// Whether the piece at hand has given a batch, waits, or is used up.
enum Progress {
    Batch(RecordBatch),
    Pending,
    UsedUp,
}

impl LocalFileScan {
    pub(super) fn new(
        shared: Arc<Shared>,
        baseline: BaselineMetrics,
        filters: LocalFilters,
    ) -> Self {
        Self {
            shared,
            baseline,
            filters,
            gate: PollGate::new("file read"),
            cutting: None,
            planners: VecDeque::new(),
            planning: None,
            morsels: VecDeque::new(),
            stream: None,
            rest: None,
        }
    }

    /// Goes on with the piece at hand.
    fn advance(&mut self) -> DataFusionResult<Progress> {
        loop {
            if let Some(stream) = &mut self.stream {
                match self.gate.poll(|context| stream.poll_next_unpin(context)) {
                    Poll::Pending => return Ok(Progress::Pending),
                    Poll::Ready(Some(batch)) => return Ok(Progress::Batch(batch?)),
                    Poll::Ready(None) => self.stream = None,
                }
            } else if let Some(planning) = &mut self.planning {
                match self.gate.poll(|context| planning.poll_unpin(context)) {
                    Poll::Pending => return Ok(Progress::Pending),
                    Poll::Ready(planner) => {
                        self.planning = None;
                        self.planners.push_front(planner?);
                    }
                }
            } else if let Some(morsel) = self.morsels.pop_front() {
                self.stream = Some(morsel.into_stream());
            } else if let Some(planner) = self.planners.pop_front() {
                if let Some(mut plan) = planner.plan()? {
                    self.morsels.extend(plan.take_morsels());
                    self.planners.extend(plan.take_ready_planners());
                    self.planning =
                        plan.take_pending_planner().map(|planning| planning.into_future());
                }
            } else {
                return Ok(Progress::UsedUp);
            }
        }
    }

    /// Goes on with the footer at hand. `true`: it is read, and its file cut.
    fn cut(&mut self) -> DataFusionResult<bool> {
        let Some(cutting) = &mut self.cutting else { return Ok(true) };
        match self.gate.poll(|context| cutting.poll_unpin(context)) {
            Poll::Pending => Ok(false),
            Poll::Ready(pieces) => {
                self.cutting = None;
                self.shared.queue.add(pieces?);
                Ok(true)
            }
        }
    }

    /// A batch of at most the size asked for, and what the filters left of it.
    fn emit(&mut self, batch: RecordBatch) -> Result<Option<Batch>> {
        let wanted = self.shared.batch_rows;
        let batch = if batch.num_rows() > wanted {
            self.rest = Some(batch.slice(wanted, batch.num_rows() - wanted));
            batch.slice(0, wanted)
        } else {
            batch
        };
        self.baseline.record_output(batch.num_rows());
        Ok(match self.filters.select(&batch)? {
            Some(selection) if selection.count_set_bits() == 0 => None,
            Some(selection) => Some(Batch::with_selection(batch, selection)),
            None => Some(Batch::new(batch)),
        })
    }
}

impl LocalSource for LocalFileScan {
    fn start(&mut self, _task: &TaskContext) -> Result<Start> {
        let shut = self.shared.start_after.iter().find(|gate| !gate.is_ready());
        if let Some(gate) = shut {
            return Ok(Start::Blocked(gate.clone().into()));
        }
        Ok(match self.filters.gate() {
            Some(gate) => Start::Blocked(gate.into()),
            None => Start::Ready,
        })
    }

    fn next(&mut self, task: &TaskContext) -> Result<SourceResult> {
        let shared = self.shared.clone();
        // Readers find the I/O runtime through the thread they are polled on.
        let _entered = shared.io.enter();
        loop {
            task.check()?;
            if let Some(rest) = self.rest.take() {
                if let Some(batch) = self.emit(rest)? {
                    return Ok(SourceResult::Batch(batch));
                }
                continue;
            }
            if !self.cut().or_fail()? {
                return Ok(SourceResult::Blocked(self.gate.gate().into()));
            }
            match self.advance().or_fail()? {
                Progress::Pending => return Ok(SourceResult::Blocked(self.gate.gate().into())),
                Progress::Batch(batch) => {
                    if let Some(batch) = self.emit(batch)? {
                        return Ok(SourceResult::Batch(batch));
                    }
                }
                Progress::UsedUp => match shared.queue.take() {
                    Work::Done => return Ok(SourceResult::Finished),
                    Work::Wait(gate) => return Ok(SourceResult::Blocked(gate.into())),
                    Work::Read(piece) => {
                        self.planners.push_back(shared.morselizer.plan_file(*piece).or_fail()?);
                    }
                    Work::Cut(file) => {
                        let (shared, worker) = (shared.clone(), task.worker());
                        let cutting =
                            async move { pieces::row_groups(&shared.config, *file, worker).await };
                        self.cutting = Some(cutting.boxed());
                    }
                },
            }
        }
    }
}
