//! One task of a scan: claims morsels, plans them and decodes their batches.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use arrow::array::RecordBatch;
use datafusion::{datasource::listing::PartitionedFile, error::Result as DataFusionResult};
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
    morsels::{self, FileMorsel},
    queue::ScanWork,
    row_group::{self, LocalConjuncts, OpenedRowGroup, RowGroupReader},
};
use crate::splits::Split;

pub(super) struct LocalFileScan {
    shared: Arc<FileScanPlan>,
    /// Index of the task, for metrics.
    task_index: usize,
    /// Name of the current file, for errors.
    file: Arc<str>,
    filters: LocalFilters,
    gate: PollGate,
    /// Read of a file's footer, which yields the file's row groups.
    planning_file: Option<BoxFuture<'static, DataFusionResult<Vec<FileMorsel>>>>,
    /// Opening of a row group, or check of an Arrow file.
    opening_row_group: Option<Opening>,
    /// The next row group, opened while the last rows of the current one are decoded.
    prefetched: Option<Opening>,
    /// The current row group, and the conjuncts of the scan's predicate.
    row_group: Option<Box<RowGroupReader>>,
    conjuncts: Option<LocalConjuncts>,
    /// The current morsel of DataFusion's reader: planners, a planner that waits for I/O,
    /// DataFusion's morsels, the stream of one of them.
    planners: VecDeque<Box<dyn MorselPlanner>>,
    planning_morsel: Option<BoxFuture<'static, DataFusionResult<Box<dyn MorselPlanner>>>>,
    morsels: VecDeque<Box<dyn Morsel>>,
    stream: Option<BoxStream<'static, DataFusionResult<RecordBatch>>>,
    /// The rest of a batch that was larger than `batch_rows`.
    remainder: Option<Decoded>,
    /// Guard of the current split, in a stage.
    split_guard: Option<SplitGuard<Split>>,
}

/// A morsel that is being opened.
struct Opening {
    /// The file, in case DataFusion's reader has to read it.
    file: PartitionedFile,
    /// The file's name, for errors.
    name: Arc<str>,
    opened: MaybeDone<BoxFuture<'static, DataFusionResult<OpenedRowGroup>>>,
}

impl Opening {
    /// Polls the opening; `None` while it is pending.
    fn poll(&mut self, gate: &PollGate) -> Option<DataFusionResult<OpenedRowGroup>> {
        self.advance(gate);
        Pin::new(&mut self.opened).take_output()
    }

    /// Drives the opening without waiting.
    fn advance(&mut self, gate: &PollGate) {
        let opened = Pin::new(&mut self.opened);
        let _later: Poll<()> = gate.poll(|context| opened.poll(context));
    }
}

/// A batch of a morsel.
struct Decoded {
    batch: RecordBatch,
    /// Whether the runtime filters have been applied.
    filtered: bool,
}

/// State of the current morsel: a batch, pending I/O, or exhausted.
enum Progress {
    Batch(Decoded),
    Pending,
    Exhausted,
}

impl LocalFileScan {
    pub(super) fn new(
        shared: Arc<FileScanPlan>,
        task_index: usize,
        filters: LocalFilters,
        conjuncts: Option<LocalConjuncts>,
    ) -> Self {
        Self {
            shared,
            task_index,
            file: "".into(),
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

    /// Continues with the current morsel.
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

    /// Returns the next rows of the current row group.
    fn decode(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        match (&mut self.row_group, &mut self.conjuncts) {
            (Some(reader), Some(conjuncts)) => reader.next(conjuncts),
            _ => Ok(None),
        }
    }

    /// Drives the opening of the next row group, without waiting. Starts at the last quarter of the
    /// current one: until then, another task may claim the row group sooner.
    fn prefetch(&mut self) -> DataFusionResult<()> {
        if self.prefetched.is_none()
            && self.row_group.as_ref().is_some_and(|reader| reader.is_near_end())
            && let Some(morsel) = self.shared.queue.take_row_group()
        {
            let fallback = morsel.for_fallback();
            self.prefetched = self.open(*morsel, &fallback);
            if self.prefetched.is_none() {
                self.plan_fallback(fallback)?;
            }
        }
        if let Some(prefetched) = &mut self.prefetched {
            prefetched.advance(&self.gate);
        }
        Ok(())
    }

    /// Polls the planning of a file. Returns true if none is pending any more.
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
        let fallback = morsel.for_fallback();
        match self.open(morsel, &fallback) {
            Some(opening) => self.opening_row_group = Some(opening),
            None => self.plan_fallback(fallback)?,
        }
        Ok(())
    }

    /// Starts to open a morsel, which is `fallback` for DataFusion's reader; `None` if that reader
    /// needs no preparation to read it.
    fn open(&self, morsel: FileMorsel, fallback: &PartitionedFile) -> Option<Opening> {
        let (shared, task_index) = (self.shared.clone(), self.task_index);
        let FileMorsel { file: opened_file, group } = morsel;
        let name: Arc<str> =
            damage::name(&shared.config.object_store_url, &opened_file.object_meta.location).into();
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
        Some(Opening { file: fallback.clone(), name, opened: maybe_done(opened.boxed()) })
    }

    /// Passes a file to DataFusion's reader.
    fn plan_fallback(&mut self, file: PartitionedFile) -> DataFusionResult<()> {
        let file = fallback::without_float_bounds(file);
        self.planners.push_back(self.shared.morselizer.plan_file(file)?);
        Ok(())
    }

    /// Starts to divide a file into row groups.
    fn plan_file(&mut self, file: PartitionedFile) {
        let (shared, task_index) = (self.shared.clone(), self.task_index);
        let planning = async move { morsels::row_groups(&shared.config, file, task_index).await };
        self.planning_file = Some(planning.boxed());
    }

    /// Runs a step in the current file, whose name its errors get. The step may continue to the
    /// next file.
    fn in_file<T>(&mut self, step: impl FnOnce(&mut Self) -> DataFusionResult<T>) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| step(self)));
        damage::outcome(&self.file, done).query_err()
    }

    /// Sets the file that the errors of the next [`Self::in_file`] name.
    fn set_file(&mut self, file: &PartitionedFile) {
        self.file =
            damage::name(&self.shared.config.object_store_url, &file.object_meta.location).into();
    }

    /// Returns at most `batch_rows` rows of `decoded`, filtered; keeps the rest as `remainder`.
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
        // Readers find the I/O runtime through the thread that polls them.
        let _entered = shared.io.enter();
        loop {
            task.check_cancelled()?;
            if let Some(remainder) = self.remainder.take() {
                if let Some(batch) = self.emit(remainder)? {
                    return Ok(SourceResult::Batch(batch));
                }
                // The filters may drop all rows for a long time.
                if task.should_yield() {
                    return Ok(SourceResult::Yield);
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
                    if task.should_yield() {
                        return Ok(SourceResult::Yield);
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
