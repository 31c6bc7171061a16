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
use gatework_operators::{OrFail, stream_scan::PollGate};
use gatework_runtime::{
    Result,
    pipeline::{Batch, LocalSource, SourceResult, Start, TaskContext},
};
use gatework_shared_state::splits::Reading;

use super::{
    Shared,
    columns::{self, LocalConjuncts, Opened, RowGroupRows},
    damage, fallback,
    filters::LocalFilters,
    ipc,
    pieces::{self, Piece, RowGroup},
    queue::Work,
};
use crate::splits::Split;

pub(super) struct LocalFileScan {
    shared: Arc<Shared>,
    /// The number of the task, for metrics.
    worker: usize,
    /// The name of the file at hand, for errors.
    file: Arc<str>,
    baseline: BaselineMetrics,
    filters: LocalFilters,
    gate: PollGate,
    /// A file's footer that is being read, to cut the file.
    cutting: Option<BoxFuture<'static, DataFusionResult<Vec<Piece>>>>,
    /// A row group that is being opened or a file that is being checked.
    opening: Option<Opening>,
    /// The row group that comes next, which is opened while the last rows of the one at hand are decoded.
    ahead: Option<Opening>,
    /// The row group at hand, and its predicate.
    rows: Option<Box<RowGroupRows>>,
    conjuncts: Option<LocalConjuncts>,
    /// The piece at hand of DataFusion's reader: planners, a planner that waits for I/O, morsels, the stream of one.
    planners: VecDeque<Box<dyn MorselPlanner>>,
    planning: Option<BoxFuture<'static, DataFusionResult<Box<dyn MorselPlanner>>>>,
    morsels: VecDeque<Box<dyn Morsel>>,
    stream: Option<BoxStream<'static, DataFusionResult<RecordBatch>>>,
    /// What is left of a batch that was larger than asked for.
    rest: Option<Decoded>,
    /// The split at hand, of a stage's table.
    reading: Option<Reading<Split>>,
}

/// A piece on its way from the disk.
struct Opening {
    /// In case DataFusion's reader gets it.
    file: PartitionedFile,
    /// For errors.
    name: Arc<str>,
    opened: MaybeDone<BoxFuture<'static, DataFusionResult<Opened>>>,
}

impl Opening {
    /// What became of it; `None` while it is under way.
    fn poll(&mut self, gate: &PollGate) -> Option<DataFusionResult<Opened>> {
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
    UsedUp,
}

impl LocalFileScan {
    pub(super) fn new(
        shared: Arc<Shared>,
        worker: usize,
        baseline: BaselineMetrics,
        filters: LocalFilters,
        conjuncts: Option<LocalConjuncts>,
    ) -> Self {
        Self {
            shared,
            worker,
            file: "".into(),
            baseline,
            filters,
            gate: PollGate::new("file read"),
            cutting: None,
            opening: None,
            ahead: None,
            rows: None,
            conjuncts,
            planners: VecDeque::new(),
            planning: None,
            morsels: VecDeque::new(),
            stream: None,
            rest: None,
            reading: None,
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
            } else if self.rows.is_some() {
                self.read_ahead()?;
                if let Some(batch) = self.decode()? {
                    return Ok(Progress::Batch(Decoded { batch, filtered: true }));
                }
                self.rows = None;
            } else if let Some(mut opening) = self.opening.take().or_else(|| self.ahead.take()) {
                self.file = opening.name.clone();
                let Some(opened) = opening.poll(&self.gate) else {
                    self.opening = Some(opening);
                    return Ok(Progress::Pending);
                };
                match opened? {
                    Opened::Rows(rows) => self.rows = Some(rows),
                    Opened::Foreign => self.plan(opening.file)?,
                    Opened::Nothing => {}
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

    /// The next rows of the row group at hand.
    fn decode(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        match (&mut self.rows, &mut self.conjuncts) {
            (Some(rows), Some(conjuncts)) => rows.next(conjuncts),
            _ => Ok(None),
        }
    }

    /// Goes on with opening the next row group, from the last quarter of the one at hand on: before,
    /// another task may be free for it sooner. Does not wait.
    fn read_ahead(&mut self) -> DataFusionResult<()> {
        if self.ahead.is_none()
            && self.rows.as_ref().is_some_and(|rows| rows.is_near_end())
            && let Some(piece) = self.shared.queue.take_row_group()
        {
            self.ahead = self.open(&piece.file, piece.group);
            if self.ahead.is_none() {
                self.plan(piece.file)?;
            }
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.advance(&self.gate);
        }
        Ok(())
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

    fn begin(&mut self, piece: Piece) -> DataFusionResult<()> {
        match self.open(&piece.file, piece.group) {
            Some(opening) => self.opening = Some(opening),
            None => self.plan(piece.file)?,
        }
        Ok(())
    }

    /// Begins to open a piece of `file`, unless all of it is for DataFusion's reader.
    fn open(&self, file: &PartitionedFile, group: Option<RowGroup>) -> Option<Opening> {
        let (shared, worker) = (self.shared.clone(), self.worker);
        let (name, piece) = (Arc::<str>::from(damage::name(&shared.config, file)), file.clone());
        let opened = match (group, &self.shared.columns) {
            (Some(group), Some(plan)) => {
                let plan = plan.clone();
                async move {
                    columns::open(plan, &shared.config, piece, group, worker, shared.batch_rows)
                        .await
                }
                .boxed()
            }
            _ if shared.config.file_source.file_type().starts_with("arrow") => async move {
                let is_file = shared.config.file_source.file_type() == "arrow";
                let part = piece.range.clone().map_or(ipc::Part::All, ipc::Part::Range);
                ipc::check(&*shared.store, &piece.object_meta, is_file, &part).await?;
                Ok(Opened::Foreign)
            }
            .boxed(),
            _ => return None,
        };
        let named = name.clone();
        let opened = async move { damage::named_future(&named, opened).await };
        Some(Opening { file: file.clone(), name, opened: maybe_done(opened.boxed()) })
    }

    /// Gives a file to DataFusion's reader.
    fn plan(&mut self, file: PartitionedFile) -> DataFusionResult<()> {
        let file = fallback::without_float_bounds(file);
        self.planners.push_back(self.shared.morselizer.plan_file(file)?);
        Ok(())
    }

    /// Cuts a file into row groups.
    fn begin_to_cut(&mut self, file: PartitionedFile) {
        let (shared, worker) = (self.shared.clone(), self.worker);
        let cutting = async move { pieces::row_groups(&shared.config, file, worker).await };
        self.cutting = Some(cutting.boxed());
    }

    /// Takes a step in the file at hand, whose errors name it. The step may go on to the next file.
    fn in_file<T>(&mut self, step: impl FnOnce(&mut Self) -> DataFusionResult<T>) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(|| step(self)));
        damage::outcome(&self.file, done).or_fail()
    }

    /// Takes up a file for which [`Self::in_file`] is called next.
    fn take_up(&mut self, file: &PartitionedFile) {
        self.file = damage::name(&self.shared.config, file).into();
    }

    /// A batch of at most the size asked for, and what the filters left of it.
    fn emit(&mut self, decoded: Decoded) -> Result<Option<Batch>> {
        let wanted = self.shared.batch_rows;
        let Decoded { batch, filtered } = decoded;
        let batch = if batch.num_rows() > wanted {
            let rest = batch.slice(wanted, batch.num_rows() - wanted);
            self.rest = Some(Decoded { batch: rest, filtered });
            batch.slice(0, wanted)
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
                // Rows may all be dropped for a long time.
                if let Some(breath) = task.breath() {
                    return Ok(SourceResult::Blocked(breath.into()));
                }
                continue;
            }
            if !self.in_file(Self::cut)? {
                return Ok(SourceResult::Blocked(self.gate.gate().into()));
            }
            match self.in_file(Self::advance)? {
                Progress::Pending => return Ok(SourceResult::Blocked(self.gate.gate().into())),
                Progress::Batch(batch) => {
                    if let Some(batch) = self.emit(batch)? {
                        return Ok(SourceResult::Batch(batch));
                    }
                    if let Some(breath) = task.breath() {
                        return Ok(SourceResult::Blocked(breath.into()));
                    }
                }
                Progress::UsedUp => match shared.queue.take(&mut self.reading) {
                    Work::Done => return Ok(SourceResult::Finished),
                    Work::Wait(gate) => return Ok(SourceResult::Blocked(gate.into())),
                    Work::Read(piece) => {
                        self.take_up(&piece.file);
                        self.in_file(|scan| scan.begin(*piece))?;
                    }
                    Work::Cut(file) => {
                        self.take_up(&file);
                        self.begin_to_cut(*file);
                    }
                },
            }
        }
    }
}
