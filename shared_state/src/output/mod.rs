//! Output of a stage's task, N:N: pages wait in *buffers*, one a reading task of other stages, until the reader
//! has acknowledged them.
//!
//! Readers come and go while the output is written: which there are is told by versions of a descriptor
//! ([`OutputBuffers`]). A reader names the place it has come to, its *token*: that acknowledges all pages before
//! it, and asks for those from there on. Page `k` of a buffer has place `k`. What is read is kept until it is
//! acknowledged, and counts. A page that several buffers hold counts once. (Presto's output buffers; rules H and
//! I of `stages/RULES.md`.)
//!
//! ```text
//! Open ──no more buffers──▶ NoMoreBuffers ──no more pages──▶ Flushing ──all readers gone──▶ Finished
//!   └────no more pages────▶ NoMorePages ───no more buffers──────┘
//! any but Finished ──a writer fails──▶ Failed
//! ```
//!
//! A partitioned or broadcast output whose readers have all gone ends early once there will be no other readers.
//! An arbitrary one also ends when all its pages were taken and the readers that took them have gone, without
//! knowing that there will be no other: the stage that decides whether there will be another reader may wait for
//! this end.
//!
//! Who may do what: [`OutputWriter`]s are the right to add pages, one a task; one that is dropped unfinished
//! fails the output. [`OutputBuffer`] is the handle of everybody else; it is shared.
//!
//! Lock: `inner`. Gates flip under it; wakers run, and dropped pages are freed, after it. A reader gives a gate
//! of its own with its question, and shuts it *before* it asks: what comes between the answer and the wait opens
//! it. So one gate can stand for many outputs, as that of an [`ExchangeClient`] does.

mod client;
mod descriptor;
mod exchange_client;
mod writer;

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use descriptor::{BufferId, OutputBuffers, OutputKind, ProtocolError};
pub use exchange_client::{ExchangeClient, LocationId};
pub use writer::OutputWriter;

use client::{ClientBuffer, Page};

use crate::{
    BufferLimit, Dependency, DependencyKind, Gate, Payload, Wakeups, exchange::ExchangeStats,
    sync::Mutex,
};

/// How far an output has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputState {
    /// Pages and buffers may come.
    Open,
    /// Pages may come.
    NoMoreBuffers,
    /// Buffers may come.
    NoMorePages,
    /// What is there is to be read.
    Flushing,
    /// Everybody has read what they wanted.
    Finished,
    /// It will never be whole.
    Failed,
}

impl OutputState {
    /// Whether it is an end.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }

    fn can_add_pages(self) -> bool {
        matches!(self, Self::Open | Self::NoMoreBuffers)
    }

    fn can_add_buffers(self) -> bool {
        matches!(self, Self::Open | Self::NoMorePages)
    }
}

/// What a reader is told.
#[derive(Debug)]
pub enum PageRead<T> {
    /// Pages from the place that was asked for on.
    Pages {
        /// At least one.
        pages: Vec<T>,
        /// The place of the next one.
        next: u64,
    },
    /// None yet: the gate that was given with the question opens when there may be some.
    Pending,
    /// The reader has acknowledged this place before: an answer to a question asked twice.
    TokenTooOld,
    /// There is none, and will be none. The reader is still to leave ([`OutputBuffer::abort`]).
    Complete,
    /// The output has failed.
    Failed,
}

struct Inner<T> {
    state: OutputState,
    descriptor: OutputBuffers,
    clients: BTreeMap<BufferId, ClientBuffer<T>>,
    /// Of a broadcast output: all pages, for buffers that come later, as long as such may come. Of an arbitrary
    /// one: those nobody has taken.
    master: VecDeque<Arc<Page<T>>>,
    /// Of all pages that are held, each once.
    bytes: usize,
    writers_left: usize,
    stats: ExchangeStats,
}

struct State<T> {
    limit: BufferLimit,
    /// Open while there is room for pages.
    capacity: Gate,
    /// Open while readers are slower than writers.
    overutilized: Gate,
    /// Open when no page is wanted any more.
    closed: Gate,
    /// Open at the end.
    finished: Gate,
    inner: Mutex<Inner<T>>,
}

/// An output, for those who link it, read it and watch it. Clones are the same output.
pub struct OutputBuffer<T>(Arc<State<T>>);

impl<T> Clone for OutputBuffer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> std::fmt::Debug for OutputBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.0.inner.lock();
        write!(f, "output {:?}, {} bytes in {}", inner.state, inner.bytes, inner.clients.len())
    }
}

/// What is freed after the lock.
type DroppedPages<T> = Vec<T>;

/// What is done after the locks of the caller, too.
struct Deferred<T> {
    dropped: DroppedPages<T>,
    wakeups: Wakeups,
}

impl<T> Default for Deferred<T> {
    fn default() -> Self {
        Self { dropped: DroppedPages::new(), wakeups: Wakeups::new() }
    }
}

impl<T: Payload + Clone> OutputBuffer<T> {
    /// An output of the kind and with the buffers of `descriptor`, which `writers` tasks write.
    ///
    /// # Errors
    /// If it is partitioned and not all buffers are known, or nobody writes it.
    pub fn new(
        name: &str,
        descriptor: OutputBuffers,
        limit: BufferLimit,
        writers: usize,
    ) -> Result<(Self, Vec<OutputWriter<T>>), ProtocolError> {
        if descriptor.kind() == OutputKind::Partitioned && !descriptor.no_more_buffers() {
            return Err(ProtocolError("a partitioned output does not know all its buffers".into()));
        }
        if writers == 0 {
            return Err(ProtocolError("nobody writes an output".into()));
        }
        let gate = |what: &str, kind| Dependency::blocked(format!("{name} {what}"), kind);
        // Who reads is a task of another query context, as a reader of the result is.
        let capacity = Dependency::ready(format!("{name} capacity"), DependencyKind::External);
        let inner = Inner {
            state: OutputState::Open,
            descriptor: OutputBuffers::new(descriptor.kind()),
            clients: BTreeMap::new(),
            master: VecDeque::new(),
            bytes: 0,
            writers_left: writers,
            stats: ExchangeStats::default(),
        };
        let output = Self(Arc::new(State {
            limit,
            capacity,
            overutilized: gate("overutilized", DependencyKind::External),
            closed: gate("closed", DependencyKind::ConsumersGone),
            finished: gate("finished", DependencyKind::External),
            inner: Mutex::new(inner),
        }));
        output.set_buffers(&descriptor)?;
        let writers = (0..writers).map(|_| OutputWriter::new(output.clone())).collect();
        Ok((output, writers))
    }

    /// Makes known which buffers there are. Older versions, and all of them after the end, are ignored.
    ///
    /// # Errors
    /// If a newer version takes back what was said, or a buffer was read that is none.
    pub fn set_buffers(&self, newer: &OutputBuffers) -> Result<(), ProtocolError> {
        let (mut dropped, mut wakeups) = (DroppedPages::new(), Wakeups::new());
        let mut inner = self.0.inner.lock();
        if inner.state.is_final() || newer.version() < inner.descriptor.version() {
            return Ok(());
        }
        inner.descriptor.check_transition(newer)?;
        if newer.no_more_buffers()
            && let Some(unknown) = inner.clients.keys().find(|id| !newer.contains(**id))
        {
            return Err(ProtocolError(format!(
                "buffer {unknown} is read, and no buffer of the output"
            )));
        }
        for id in newer.ids() {
            inner.client(id);
        }
        inner.descriptor = newer.clone();
        if newer.no_more_buffers() && inner.state.can_add_buffers() {
            inner.state = match inner.state {
                OutputState::NoMorePages => OutputState::Flushing,
                _ => OutputState::NoMoreBuffers,
            };
            if newer.kind() == OutputKind::Broadcast {
                let all = std::mem::take(&mut inner.master);
                inner.release(all, &mut dropped);
            }
            self.0.update_state(&mut inner, &mut dropped, &mut wakeups);
        }
        drop(inner);
        Ok(())
    }

    /// Acknowledges the pages of buffer `id` before `token`, and reads from there on: at least one page if there
    /// is one, and more while they take no more than `max_bytes` together. `gate`, which the caller has shut,
    /// opens when a pending question is worth asking again; a newer question answers an older one.
    ///
    /// # Errors
    /// If there is no such buffer, or no such place in it.
    pub fn read(
        &self,
        id: BufferId,
        token: u64,
        max_bytes: usize,
        gate: &Gate,
    ) -> Result<PageRead<T>, ProtocolError> {
        self.read_deferred((id, token), max_bytes, gate, &mut Deferred::default())
    }

    /// [`read`](Self::read) under a lock.
    fn read_deferred(
        &self,
        (id, token): (BufferId, u64),
        max_bytes: usize,
        gate: &Gate,
        deferred: &mut Deferred<T>,
    ) -> Result<PageRead<T>, ProtocolError> {
        let Deferred { dropped, wakeups } = deferred;
        let mut guard = self.0.inner.lock();
        let inner = &mut *guard;
        if inner.state == OutputState::Failed {
            return Ok(PageRead::Failed);
        }
        if !inner.clients.contains_key(&id) && inner.descriptor.no_more_buffers() {
            return Err(ProtocolError(format!("there is no buffer {id}, and there will be none")));
        }
        if inner.state == OutputState::Finished {
            return Ok(PageRead::Complete);
        }
        inner.client(id);
        let Inner { clients, master, descriptor, state, .. } = inner;
        let Some(client) = clients.get_mut(&id) else { return Ok(PageRead::Complete) };
        if let Some(older) = client.listener.take()
            && !Arc::ptr_eq(&older, gate)
        {
            older.set_ready_deferred(wakeups);
        }
        if client.aborted {
            return Ok(PageRead::Complete);
        }
        if token < client.token {
            return Ok(PageRead::TokenTooOld);
        }
        let (acknowledged, skipped) = client.acknowledge(token)?;
        if descriptor.kind() == OutputKind::Arbitrary {
            client.load_from(master, max_bytes);
        }
        let (pages, next, rows) = client.pages(max_bytes);
        let result = if !pages.is_empty() {
            PageRead::Pages { pages, next }
        } else if state.can_add_pages() || !master_is_drained(descriptor.kind(), master) {
            client.listener = Some(gate.clone());
            PageRead::Pending
        } else {
            PageRead::Complete
        };
        inner.stats.rows_out += rows;
        inner.stats.rows_dropped += skipped;
        inner.release(acknowledged, dropped);
        self.0.update_state(inner, dropped, wakeups);
        Ok(result)
    }

    /// Frees the pages of buffer `id` before `token`, as the next read from there on would. Older places, and
    /// buffers that are not there, are ignored.
    ///
    /// # Errors
    /// If there is no such place in the buffer.
    pub fn acknowledge(&self, id: BufferId, token: u64) -> Result<(), ProtocolError> {
        let (mut dropped, mut wakeups) = (DroppedPages::new(), Wakeups::new());
        let mut inner = self.0.inner.lock();
        let Some(client) = inner.clients.get_mut(&id) else { return Ok(()) };
        if client.aborted || token < client.token {
            return Ok(());
        }
        let (acknowledged, skipped) = client.acknowledge(token)?;
        inner.stats.rows_dropped += skipped;
        inner.release(acknowledged, &mut dropped);
        self.0.update_state(&mut inner, &mut dropped, &mut wakeups);
        drop(inner);
        Ok(())
    }

    /// The reader of buffer `id` leaves, with all it wanted or before. What it has not read is dropped.
    pub fn abort(&self, id: BufferId) {
        self.abort_deferred(id, &mut Deferred::default());
    }

    /// [`abort`](Self::abort) under a lock.
    fn abort_deferred(&self, id: BufferId, deferred: &mut Deferred<T>) {
        let Deferred { dropped, wakeups } = deferred;
        let mut inner = self.0.inner.lock();
        if inner.state.is_final()
            || !inner.clients.contains_key(&id) && inner.descriptor.no_more_buffers()
        {
            return;
        }
        let client = inner.client(id);
        let (unread, rows) = client.abort();
        if let Some(listener) = client.listener.take() {
            listener.set_ready_deferred(wakeups);
        }
        inner.stats.rows_dropped += rows;
        inner.release(unread, dropped);
        self.0.update_state(&mut inner, dropped, wakeups);
    }

    /// Nobody wants any of it: a clean end, at whatever point it has come to.
    pub fn destroy(&self) {
        self.end(OutputState::Finished);
    }

    /// It will never be whole: its readers are told so.
    pub fn fail(&self) {
        self.end(OutputState::Failed);
    }

    fn end(&self, state: OutputState) {
        let (mut dropped, mut wakeups) = (DroppedPages::new(), Wakeups::new());
        let mut inner = self.0.inner.lock();
        self.0.end(&mut inner, state, &mut dropped, &mut wakeups);
    }

    /// How far it has come.
    pub fn state(&self) -> OutputState {
        self.0.inner.lock().state
    }

    /// Open at the end, whichever it is.
    pub fn finished_gate(&self) -> &Gate {
        &self.0.finished
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.0.inner.lock().bytes
    }

    /// Whether its readers are slower than its writers: it is full, or, if it is arbitrary, half full or all
    /// that will be there is there.
    pub fn is_overutilized(&self) -> bool {
        self.0.is_overutilized(&self.0.inner.lock())
    }

    /// Open while that is so, and at the end.
    pub fn overutilized_gate(&self) -> &Gate {
        &self.0.overutilized
    }

    /// Rows so far: into the output (once, however many buffers hold them), out to readers (once a buffer), and
    /// those that no reader wanted: they came too late, or were left (once a buffer). Unless it is a broadcast, all
    /// that came in is either out or dropped at the end.
    pub fn stats(&self) -> ExchangeStats {
        self.0.inner.lock().stats
    }
}

fn master_is_drained<T>(kind: OutputKind, master: &VecDeque<Arc<Page<T>>>) -> bool {
    kind != OutputKind::Arbitrary || master.is_empty()
}

impl<T: Payload + Clone> Inner<T> {
    /// Buffer `id`, which is made if it is not there. Of a broadcast output it begins with all pages so far.
    fn client(&mut self, id: BufferId) -> &mut ClientBuffer<T> {
        let broadcast = self.descriptor.kind() == OutputKind::Broadcast;
        let earlier = || self.master.iter().filter(|_| broadcast).cloned().collect();
        self.clients.entry(id).or_insert_with(|| ClientBuffer::new(earlier()))
    }

    /// Lets go of `pages`: one that no other buffer holds no longer counts.
    fn release(
        &mut self,
        pages: impl IntoIterator<Item = Arc<Page<T>>>,
        dropped: &mut DroppedPages<T>,
    ) {
        // Only buffers hold pages, all under this lock: readers have copies of what is in them.
        for page in pages.into_iter().filter_map(Arc::into_inner) {
            self.bytes -= page.bytes;
            dropped.push(page.item);
        }
    }

    /// Whether no page that is there, or may come, will be read.
    fn no_readers_left(&self) -> bool {
        let all_aborted = self.clients.values().all(|client| client.aborted);
        let no_more_buffers =
            matches!(self.state, OutputState::NoMoreBuffers | OutputState::Flushing);
        let all_taken = self.state == OutputState::NoMorePages
            && self.descriptor.kind() == OutputKind::Arbitrary
            && self.master.is_empty();
        all_aborted && (no_more_buffers || all_taken)
    }
}

impl<T: Payload + Clone> State<T> {
    /// Draws the consequences of a change.
    fn update_state(
        &self,
        inner: &mut Inner<T>,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) {
        if !inner.state.is_final() && inner.no_readers_left() {
            self.end(inner, OutputState::Finished, dropped, wakeups);
        }
        if !self.limit.is_exceeded(inner.bytes) {
            self.capacity.set_ready_deferred(wakeups);
        }
        self.update_utilization(inner, wakeups);
    }

    fn is_overutilized(&self, inner: &Inner<T>) -> bool {
        match inner.descriptor.kind() {
            OutputKind::Arbitrary => {
                inner.bytes >= self.limit.limit_bytes().div_ceil(2) || !inner.state.can_add_pages()
            }
            _ => inner.bytes >= self.limit.limit_bytes(),
        }
    }

    /// The gate says what it stands for.
    fn update_utilization(&self, inner: &Inner<T>, wakeups: &mut Wakeups) {
        let open = self.overutilized.is_ready();
        match self.is_overutilized(inner) {
            true if !open => self.overutilized.set_ready_deferred(wakeups),
            false if open => self.overutilized.block(),
            _ => {}
        }
    }

    fn end(
        &self,
        inner: &mut Inner<T>,
        state: OutputState,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) {
        if inner.state.is_final() {
            return;
        }
        inner.state = state;
        let master = std::mem::take(&mut inner.master);
        if inner.descriptor.kind() == OutputKind::Arbitrary {
            let untaken = master.iter().map(|page| page.item.rows() as u64);
            inner.stats.rows_dropped += untaken.sum::<u64>();
        }
        inner.release(master, dropped);
        let mut clients = std::mem::take(&mut inner.clients);
        for client in clients.values_mut() {
            let (unread, rows) = client.abort();
            inner.stats.rows_dropped += rows;
            inner.release(unread, dropped);
            if let Some(listener) = client.listener.take() {
                listener.set_ready_deferred(wakeups);
            }
        }
        inner.clients = clients;
        for gate in [&self.capacity, &self.overutilized, &self.closed, &self.finished] {
            gate.set_always_ready_deferred(wakeups);
        }
    }
}
