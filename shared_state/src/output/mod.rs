//! Output of a stage's task, N:N: pages wait in *buffers*, one per reading task of other stages,
//! until the reader has acknowledged them.
//!
//! Readers are added and leave while the output is written. Versions of a descriptor
//! ([`OutputBuffers`]) name the current ones. Page `k` of a buffer has token `k`. A reader sends
//! its *token*: this acknowledges all pages before the token and requests the pages from it on. A
//! page that was read stays, and counts, until it is acknowledged. A page in several buffers counts
//! once. (Presto's output buffers; rules H and I of `stages/RULES.md`.)
//!
//! ```text
//! Open ──no more buffers──▶ NoMoreBuffers ──no more pages─▶ Flushing ──all left──▶ Finished
//!   └────no more pages────▶ NoMorePages ───no more buffers─────┘
//! any but Finished ──a writer fails──▶ Failed
//! ```
//!
//! A partitioned or broadcast output whose readers have all left ends early once no more readers
//! can be added. An arbitrary output also ends when all its pages were taken and their readers have
//! left. It does so even if more readers may be added: the stage that decides about another reader
//! may wait for this end.
//!
//! Permissions: an [`OutputWriter`] is the right of one task to add pages; dropping it unfinished
//! fails the output. All other actors share the handle [`OutputBuffer`].
//!
//! Lock: `inner`. Gates change under it; wakers run, and dropped pages are freed, after it. A
//! reader passes its own gate with each read, and blocks it *before* the read. A page between the
//! answer and the wait then makes the gate ready. So one gate can serve many outputs, as in an
//! [`ExchangeClient`].

mod buffer_state;
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

use buffer_state::{DroppedPages, Inner, State};

use crate::{
    BufferLimit, Dependency, DependencyKind, Gate, Payload, StateLock, Wakeups,
    exchange::ExchangeStats,
};

/// The state of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputState {
    /// Pages and buffers may be added.
    Open,
    /// Pages may be added.
    NoMoreBuffers,
    /// Buffers may be added.
    NoMorePages,
    /// The existing pages are to be read.
    Flushing,
    /// All readers have left, or the output was destroyed.
    Finished,
    /// The output will never be complete.
    Failed,
}

impl OutputState {
    /// Returns whether the state is an end.
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

/// The result of a read.
#[derive(Debug)]
pub enum PageRead<T> {
    /// Pages from the requested token on.
    Pages {
        /// At least one.
        pages: Vec<T>,
        /// The token of the next page.
        next: u64,
    },
    /// No page yet: the gate passed with the read becomes ready when there may be one.
    Pending,
    /// The reader acknowledged this token before: the answer to a duplicate request.
    TokenTooOld,
    /// No page is left and none will be added. The reader must still leave
    /// ([`OutputBuffer::abort`]).
    Complete,
    /// The output has failed.
    Failed,
}

/// The shared handle of an output, for reading, linking and observing it. Clones are the same
/// output.
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

impl<T: Payload + Clone> OutputBuffer<T> {
    /// Creates an output with the kind and buffers of `descriptor`, for `writers` writing tasks.
    ///
    /// # Errors
    /// If it is partitioned and not all buffers are known, or `writers` is 0.
    pub fn new(
        name: &str,
        descriptor: OutputBuffers,
        limit: BufferLimit,
        writers: usize,
    ) -> Result<(Self, Vec<OutputWriter<T>>), ProtocolError> {
        if descriptor.kind() == OutputKind::Partitioned && !descriptor.no_more_buffers() {
            return Err(ProtocolError("a partitioned output needs a final set of buffers".into()));
        }
        if writers == 0 {
            return Err(ProtocolError("an output needs at least 1 writer".into()));
        }
        let gate = |what: &str, kind| Dependency::blocked(format!("{name} {what}"), kind);
        // Readers are tasks of another query context: external, as readers of the result are.
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
            inner: StateLock::new(inner),
        }));
        output.set_buffers(&descriptor)?;
        let writers = (0..writers).map(|_| OutputWriter::new(output.clone())).collect();
        Ok((output, writers))
    }

    /// Sets the known buffers. Ignores older versions, and all versions after the end.
    ///
    /// # Errors
    /// If `newer` revokes anything of the current version, or makes the set final without a buffer
    /// that was read.
    pub fn set_buffers(&self, newer: &OutputBuffers) -> Result<(), ProtocolError> {
        let mut dropped = DroppedPages::new();
        let mut guard = self.0.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.state.is_final() || newer.version() < inner.descriptor.version() {
            return Ok(());
        }
        inner.descriptor.check_transition(newer)?;
        if newer.no_more_buffers()
            && let Some(unknown) = inner.clients.keys().find(|id| !newer.contains(**id))
        {
            return Err(ProtocolError(format!(
                "buffer {unknown} is read, but is no buffer of the output"
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
            self.0.update_state(inner, &mut dropped, wakeups);
        }
        Ok(())
    }

    /// Acknowledges the pages of buffer `id` before `token`, and reads from there on. Returns at
    /// least one page if there is one, and more while their total is at most `max_bytes`. `gate`,
    /// which the caller has blocked, becomes ready when a pending read is worth retrying. A newer
    /// read ends an older pending one.
    ///
    /// # Errors
    /// If there is no such buffer, or no such token in it.
    pub fn read(
        &self,
        id: BufferId,
        token: u64,
        max_bytes: usize,
        gate: &Gate,
    ) -> Result<PageRead<T>, ProtocolError> {
        let mut dropped = DroppedPages::new();
        let mut guard = self.0.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.0.read(inner, (id, token), max_bytes, gate, &mut dropped, wakeups)
    }

    /// Does what [`read`](Self::read) does, for a caller under a lock: the caller frees `dropped`
    /// and runs `wakeups` after it has released its lock.
    fn read_deferred(
        &self,
        at: (BufferId, u64),
        max_bytes: usize,
        gate: &Gate,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) -> Result<PageRead<T>, ProtocolError> {
        self.0.read(&mut self.0.inner.lock(), at, max_bytes, gate, dropped, wakeups)
    }

    /// Frees the pages of buffer `id` before `token`, as the next read from `token` on would.
    /// Ignores older tokens and unknown buffers.
    ///
    /// # Errors
    /// If there is no such token in the buffer.
    pub fn acknowledge(&self, id: BufferId, token: u64) -> Result<(), ProtocolError> {
        let mut dropped = DroppedPages::new();
        let mut guard = self.0.inner.lock();
        let (inner, wakeups) = guard.parts();
        let Some(client) = inner.clients.get_mut(&id) else { return Ok(()) };
        if client.aborted || token < client.token {
            return Ok(());
        }
        let (acknowledged, skipped) = client.acknowledge(token)?;
        inner.stats.rows_dropped += skipped;
        inner.release(acknowledged, &mut dropped);
        self.0.update_state(inner, &mut dropped, wakeups);
        Ok(())
    }

    /// Ends the reader of buffer `id`, before or after it has read all pages. Drops its unread
    /// pages.
    pub fn abort(&self, id: BufferId) {
        let mut dropped = DroppedPages::new();
        let mut guard = self.0.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.0.abort(inner, id, &mut dropped, wakeups);
    }

    /// Does what [`abort`](Self::abort) does, for a caller under a lock: the caller frees `dropped`
    /// and runs `wakeups` after it has released its lock.
    fn abort_deferred(&self, id: BufferId, dropped: &mut DroppedPages<T>, wakeups: &mut Wakeups) {
        self.0.abort(&mut self.0.inner.lock(), id, dropped, wakeups);
    }

    /// Ends the output cleanly in any state, because no reader wants its pages.
    pub fn destroy(&self) {
        self.end(OutputState::Finished);
    }

    /// Fails the output: it will never be complete, and its readers get [`PageRead::Failed`].
    pub fn fail(&self) {
        self.end(OutputState::Failed);
    }

    fn end(&self, state: OutputState) {
        let mut dropped = DroppedPages::new();
        let mut guard = self.0.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.0.end(inner, state, &mut dropped, wakeups);
    }

    /// Returns the state.
    pub fn state(&self) -> OutputState {
        self.0.inner.lock().state
    }

    /// Returns the gate that is ready when the output has finished or failed.
    pub fn finished_gate(&self) -> &Gate {
        &self.0.finished
    }

    /// Returns the number of buffered bytes.
    pub fn bytes(&self) -> usize {
        self.0.inner.lock().bytes
    }

    /// Returns whether readers are slower than writers. That is so for a full output; an arbitrary
    /// one is also overutilized if it is half full or all its pages were added.
    pub fn is_overutilized(&self) -> bool {
        self.0.is_overutilized(&self.0.inner.lock())
    }

    /// Returns the gate that is ready while the output is overutilized, and at its end.
    pub fn overutilized_gate(&self) -> &Gate {
        &self.0.overutilized
    }

    /// Returns the rows so far. Rows in count once, however many buffers contain them; rows out and
    /// dropped rows count once per buffer. Dropped rows are those that no reader wanted: added too
    /// late, or unread. Except for a broadcast, rows in are rows out plus dropped rows at the end.
    pub fn stats(&self) -> ExchangeStats {
        self.0.inner.lock().stats
    }
}
