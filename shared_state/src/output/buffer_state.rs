//! The state of an output buffer, under its lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    BufferId, OutputBuffers, OutputKind, OutputState,
    client::{ClientBuffer, Page},
};
use crate::{BufferLimit, Gate, Payload, Wakeups, exchange::ExchangeStats, sync::Mutex};

pub(super) struct Inner<T> {
    pub(super) state: OutputState,
    pub(super) descriptor: OutputBuffers,
    pub(super) clients: BTreeMap<BufferId, ClientBuffer<T>>,
    /// Broadcast: all pages, for buffers added later, as long as buffers may be added. Arbitrary:
    /// the pages that no buffer has taken.
    pub(super) master: VecDeque<Arc<Page<T>>>,
    /// Total bytes of all pages, each counted once.
    pub(super) bytes: usize,
    pub(super) writers_left: usize,
    pub(super) stats: ExchangeStats,
}

pub(super) struct State<T> {
    pub(super) limit: BufferLimit,
    /// Ready while there is capacity for pages.
    pub(super) capacity: Gate,
    /// Ready while readers are slower than writers.
    pub(super) overutilized: Gate,
    /// Ready when no reader wants pages any more.
    pub(super) closed: Gate,
    /// Ready when the output has ended.
    pub(super) finished: Gate,
    pub(super) inner: Mutex<Inner<T>>,
}

/// Pages to free after the lock is released.
pub(super) type DroppedPages<T> = Vec<T>;

/// Work to do after the caller's locks are released, too.
pub(super) struct Deferred<T> {
    pub(super) dropped: DroppedPages<T>,
    pub(super) wakeups: Wakeups,
}

impl<T> Default for Deferred<T> {
    fn default() -> Self {
        Self { dropped: DroppedPages::new(), wakeups: Wakeups::new() }
    }
}

pub(super) fn master_is_drained<T>(kind: OutputKind, master: &VecDeque<Arc<Page<T>>>) -> bool {
    kind != OutputKind::Arbitrary || master.is_empty()
}

impl<T: Payload + Clone> Inner<T> {
    /// Returns buffer `id`, and creates it if needed. A broadcast buffer starts with all pages so
    /// far.
    pub(super) fn client(&mut self, id: BufferId) -> &mut ClientBuffer<T> {
        let broadcast = self.descriptor.kind() == OutputKind::Broadcast;
        let earlier = || self.master.iter().filter(|_| broadcast).cloned().collect();
        self.clients.entry(id).or_insert_with(|| ClientBuffer::new(earlier()))
    }

    /// Removes references to `pages`: a page in no other buffer no longer counts.
    pub(super) fn release(
        &mut self,
        pages: impl IntoIterator<Item = Arc<Page<T>>>,
        dropped: &mut DroppedPages<T>,
    ) {
        // Only buffers refer to pages, all under this lock; readers have copies of the items.
        for page in pages.into_iter().filter_map(Arc::into_inner) {
            self.bytes -= page.bytes;
            dropped.push(page.item);
        }
    }

    /// Returns whether no page, present or future, will be read.
    pub(super) fn no_readers_left(&self) -> bool {
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
    /// Ends the output if no reader is left, and updates its gates. Called after a change.
    pub(super) fn update_state(
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

    pub(super) fn is_overutilized(&self, inner: &Inner<T>) -> bool {
        match inner.descriptor.kind() {
            OutputKind::Arbitrary => {
                inner.bytes >= self.limit.limit_bytes().div_ceil(2) || !inner.state.can_add_pages()
            }
            _ => inner.bytes >= self.limit.limit_bytes(),
        }
    }

    /// Sets the gate to the current utilization.
    pub(super) fn update_utilization(&self, inner: &Inner<T>, wakeups: &mut Wakeups) {
        let open = self.overutilized.is_ready();
        match self.is_overutilized(inner) {
            true if !open => self.overutilized.set_ready_deferred(wakeups),
            false if open => self.overutilized.block(),
            _ => {}
        }
    }

    pub(super) fn end(
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
