//! One task of a scan: takes pieces, plans them, decodes their batches.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use arrow::array::RecordBatch;
use datafusion::{
    datasource::listing::PartitionedFile, error::Result as DataFusionResult,
    physical_plan::metrics::BaselineMetrics,
};
use datafusion_datasource::morsel::{Morsel, MorselPlanner};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, MaybeDone, maybe_done},
    stream::BoxStream,
};
use gatework_operators::{ResultExt, stream_scan::PollGate};
use gatework_runtime::{
    Result,
    pipeline::{Batch, DriverContext, LocalSource, SourceResult, StartResult},
};
use gatework_shared_state::splits::SplitGuard;

use super::{
    FileScanPlan, damage, fallback,
    filters::LocalFilters,
    ipc,
    morsels::{self, FileMorsel, RowGroup},
    queue::ScanWork,
    row_group::{self, LocalConjuncts, OpenedRowGroup, RowGroupReader},
};
use crate::splits::Split;

pub(super) struct LocalFileScan {
    shared: Arc<FileScanPlan>,
    /// The number of the task, for metrics.
    task_index: usize,
    /// The name of the file at hand, for errors.
    file: Arc<str>,
    baseline: BaselineMetrics,
    filters: LocalFilters,
    gate: PollGate,
    /// A file's footer that is being read, to cut the file.
    planning_file: Option<BoxFuture<'static, DataFusionResult<Vec<FileMorsel>>>>,
    /// A row group that is being opened or a file that is being checked.
    opening_row_group: Option<Opening>,
    /// The row group that comes next, which is opened while the last rows of the one at hand are decoded.
    prefetched: Option<Opening>,
    /// The row group at hand, and its predicate.
    row_group: Option<Box<RowGroupReader>>,
    conjuncts: Option<LocalConjuncts>,
    /// The piece at hand of DataFusion's reader: planners, a planner that waits for I/O, morsels, the stream of one.
    planners: VecDeque<Box<dyn MorselPlanner>>,
    planning_morsel: Option<BoxFuture<'static, DataFusionResult<Box<dyn MorselPlanner>>>>,
    morsels: VecDeque<Box<dyn Morsel>>,
    stream: Option<BoxStream<'static, DataFusionResult<RecordBatch>>>,
    /// What is left of a batch that was larger than asked for.
    remainder: Option<Decoded>,
    /// The split at hand, of a stage's table.
    split_guard: Option<SplitGuard<Split>>,
}

/// A piece on its way from the disk.
struct Opening {
    /// In case DataFusion's reader gets it.
    file: PartitionedFile,
    /// For errors.
    name: Arc<str>,
    opened: MaybeDone<BoxFuture<'static, DataFusionResult<OpenedRowGroup>>>,
}

impl Opening {
    /// What became of it; `None` while it is under way.
    fn poll(&mut self, gate: &PollGate) -> Option<DataFusionResult<OpenedRowGroup>> {
        self.advance(gate);
        Pin::new(&mut self.opened).take_output()
    }

    /// Goes on as far as that is possible now.
    fn advance(&mut self, gate: &PollGate) {
        let opened = Pin::new(&mut self.opened);
        let _later: Poll<()> = gate.poll(|context| opened.poll(context));
    }
}

/// A batch of a piece.
struct Decoded {
    batch: RecordBatch,
    /// Whether the runtime filters have been asked.
    filtered: bool,
}

/// Whether the piece at hand has given a batch, waits, or is used up.
enum Progress {
    Batch(Decoded),
    Pending,
    Exhausted,
}

impl LocalFileScan {
    pub(super) fn new(
        shared: Arc<FileScanPlan>,
        task_index: usize,
        baseline: BaselineMetrics,
        filters: LocalFilters,
        conjuncts: Option<LocalConjuncts>,
    ) -> Self {
        Self {
            shared,
            task_index,
            file: "".into(),
            baseline,
            filters,
            gate: PollGate::new("file read"),
            planning_file: None,
            opening_row_group: None,
            prefetched: None,
            row_group: None,
            conjuncts,
            planners: VecDeque::new(),
            planning_morsel: None,
            morsels: VecDeque::new(),
            stream: None,
            remainder: None,
            split_guard: None,
        }
    }

    /// Goes on with the piece at hand.
    fn advance(&mut self) -> DataFusionResult<Progress> {
        loop {
            if let Some(stream) = &mut self.stream {
                match self.gate.poll(|context| stream.poll_next_unpin(context)) {
                    Poll::Pending => return Ok(Progress::Pending),
                    Poll::Ready(Some(batch)) => {
                        return Ok(Progress::Batch(Decoded { batch: batch?, filtered: false }));
                    }
                    Poll::Ready(None) => self.stream = None,
                }
            } else if self.row_group.is_some() {
                self.prefetch()?;
                if let Some(batch) = self.decode()? {
                    return Ok(Progress::Batch(Decoded { batch, filtered: true }));
                }
                self.row_group = None;
            } else if let Some(mut opening) =
                self.opening_row_group.take().or_else(|| self.prefetched.take())
            {
                self.file = opening.name.clone();
                let Some(opened) = opening.poll(&self.gate) else {
                    self.opening_row_group = Some(opening);
                    return Ok(Progress::Pending);
                };
                match opened? {
                    OpenedRowGroup::Reader(reader) => self.row_group = Some(reader),
                    OpenedRowGroup::Unsupported => self.plan_fallback(opening.file)?,
                    OpenedRowGroup::Pruned => {}
                }
            } else if let Some(planning) = &mut self.planning_morsel {
                match self.gate.poll(|context| planning.poll_unpin(context)) {
                    Poll::Pending => return Ok(Progress::Pending),
                    Poll::Ready(planner) => {
                        self.planning_morsel = None;
                        self.planners.push_front(planner?);
                    }
                }
            } else if let Some(morsel) = self.morsels.pop_front() {
                self.stream = Some(morsel.into_stream());
            } else if let Some(planner) = self.planners.pop_front() {
                if let Some(mut plan) = planner.plan()? {
                    self.morsels.extend(plan.take_morsels());
                    self.planners.extend(plan.take_ready_planners());
                    self.planning_morsel =
                        plan.take_pending_planner().map(|planning| planning.into_future());
                }
            } else {
                return Ok(Progress::Exhausted);
            }
        }
    }

    /// The next rows of the row group at hand.
    fn decode(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        match (&mut self.row_group, &mut self.conjuncts) {
            (Some(reader), Some(conjuncts)) => reader.next(conjuncts),
            _ => Ok(None),
        }
    }

    /// Goes on with opening the next row group, from the last quarter of the one at hand on: before,
    /// another task may be free for it sooner. Does not wait.
    fn prefetch(&mut self) -> DataFusionResult<()> {
        if self.prefetched.is_none()
            && self.row_group.as_ref().is_some_and(|reader| reader.is_near_end())
            && let Some(morsel) = self.shared.queue.take_row_group()
        {
            self.prefetched = self.open(&morsel.file, morsel.group);
            if self.prefetched.is_none() {
                self.plan_fallback(morsel.file)?;
            }
        }
        if let Some(prefetched) = &mut self.prefetched {
            prefetched.advance(&self.gate);
        }
        Ok(())
    }

    /// Goes on with the footer at hand. `true`: it is read, and its file cut.
    fn poll_file_plan(&mut self) -> DataFusionResult<bool> {
        let Some(planning) = &mut self.planning_file else { return Ok(true) };
        match self.gate.poll(|context| planning.poll_unpin(context)) {
            Poll::Pending => Ok(false),
            Poll::Ready(morsels) => {
                self.planning_file = None;
                self.shared.queue.finish_planning(morsels?);
                Ok(true)
            }
        }
    }

    fn start_morsel(&mut self, morsel: FileMorsel) -> DataFusionResult<()> {
        match self.open(&morsel.file, morsel.group) {
            Some(opening) => self.opening_row_group = Some(opening),
            None => self.plan_fallback(morsel.file)?,
        }
        Ok(())
    }

    /// Begins to open a piece of `file`, unless all of it is for DataFusion's reader.
    fn open(&self, file: &PartitionedFile, group: Option<RowGroup>) -> Option<Opening> {
        let (shared, task_index) = (self.shared.clone(), self.task_index);
        let (name, opened_file) =
            (Arc::<str>::from(damage::name(&shared.config, file)), file.clone());
        let opened = match (group, &self.shared.row_group_plan) {
            (Some(group), Some(plan)) => {
                let plan = plan.clone();
                async move {
                    row_group::open(
                        plan,
                        &shared.config,
                        opened_file,
                        group,
                        task_index,
                        shared.batch_rows,
                    )
                    .await
                }
                .boxed()
            }
            _ if shared.config.file_source.file_type().starts_with("arrow") => async move {
                let is_file = shared.config.file_source.file_type() == "arrow";
                let part = opened_file.range.clone().map_or(ipc::Part::All, ipc::Part::Range);
                ipc::check(&*shared.store, &opened_file.object_meta, is_file, &part).await?;
                Ok(OpenedRowGroup::Unsupported)
            }
            .boxed(),
            _ => return None,
        };
        let named = name.clone();
        let opened = async move { damage::named_future(&named, opened).await };
        Some(Opening { file: file.clone(), name, opened: maybe_done(opened.boxed()) })
    }

    /// Gives a file to DataFusion's reader.
    fn plan_fallback(&mut self, file: PartitionedFile) -> DataFusionResult<()> {
        let file = fallback::without_float_bounds(file);
        self.planners.push_back(self.shared.morselizer.plan_file(file)?);
        Ok(())
    }

    /// Cuts a file into row groups.
    fn plan_file(&mut self, file: PartitionedFile) {
        let (shared, task_index) = (self.shared.clone(), self.task_index);
        let planning = async move { morsels::row_groups(&shared.config, file, task_index).await };
        self.planning_file = Some(planning.boxed());
    }

    /// Takes a step in the file at hand, whose errors name it. The step may go on to the next file.
    fn in_file<T>(&mut self, step: impl FnOnce(&mut Self) -> DataFusionResult<T>) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| step(self)));
        damage::outcome(&self.file, done).query_err()
    }

    /// Takes up a file for which [`Self::in_file`] is called next.
    fn set_file(&mut self, file: &PartitionedFile) {
        self.file = damage::name(&self.shared.config, file).into();
    }

    /// A batch of at most the size asked for, and what the filters left of it.
    fn emit(&mut self, decoded: Decoded) -> Result<Option<Batch>> {
        let max_rows = self.shared.batch_rows;
        let Decoded { batch, filtered } = decoded;
        let batch = if batch.num_rows() > max_rows {
            let remainder = batch.slice(max_rows, batch.num_rows() - max_rows);
            self.remainder = Some(Decoded { batch: remainder, filtered });
            batch.slice(0, max_rows)
        } else {
            batch
        };
        self.baseline.record_output(batch.num_rows());
        if filtered {
            return Ok((batch.num_rows() > 0).then(|| Batch::new(batch)));
        }
        Ok(match self.filters.select(&batch)? {
            Some(selection) if selection.count_set_bits() == 0 => None,
            Some(selection) => Some(Batch::with_selection(batch, selection)),
            None => Some(Batch::new(batch)),
        })
    }
}

impl LocalSource for LocalFileScan {
    fn start(&mut self, _task: &DriverContext) -> Result<StartResult> {
        let blocked = self.shared.start_after.iter().find(|gate| !gate.is_ready());
        if let Some(gate) = blocked {
            return Ok(StartResult::Blocked(gate.clone().into()));
        }
        Ok(match self.filters.gate() {
            Some(gate) => StartResult::Blocked(gate.into()),
            None => StartResult::Ready,
        })
    }

    fn next(&mut self, task: &DriverContext) -> Result<SourceResult> {
        let shared = self.shared.clone();
        // Readers find the I/O runtime through the thread they are polled on.
        let _entered = shared.io.enter();
        loop {
            task.check_cancelled()?;
            if let Some(remainder) = self.remainder.take() {
                if let Some(batch) = self.emit(remainder)? {
                    return Ok(SourceResult::Batch(batch));
                }
                // Rows may all be dropped for a long time.
                if let Some(yield_gate) = task.yield_gate() {
                    return Ok(SourceResult::Blocked(yield_gate.into()));
                }
                continue;
            }
            if !self.in_file(Self::poll_file_plan)? {
                return Ok(SourceResult::Blocked(self.gate.gate().into()));
            }
            match self.in_file(Self::advance)? {
                Progress::Pending => return Ok(SourceResult::Blocked(self.gate.gate().into())),
                Progress::Batch(batch) => {
                    if let Some(batch) = self.emit(batch)? {
                        return Ok(SourceResult::Batch(batch));
                    }
                    if let Some(yield_gate) = task.yield_gate() {
                        return Ok(SourceResult::Blocked(yield_gate.into()));
                    }
                }
                Progress::Exhausted => match shared.queue.take(&mut self.split_guard) {
                    ScanWork::Done => return Ok(SourceResult::Finished),
                    ScanWork::Blocked(gate) => return Ok(SourceResult::Blocked(gate.into())),
                    ScanWork::Read(morsel) => {
                        self.set_file(&morsel.file);
                        self.in_file(|scan| scan.start_morsel(*morsel))?;
                    }
                    ScanWork::PlanFile(file) => {
                        self.set_file(&file);
                        self.plan_file(*file);
                    }
                },
            }
        }
    }
}
