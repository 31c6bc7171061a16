//! The state of an output buffer, under its lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    BufferId, OutputBuffers, OutputKind, OutputState, PageRead, ProtocolError,
    client::{ClientBuffer, Page},
};
use crate::{BufferLimit, Gate, Payload, StateLock, Wakeups, exchange::ExchangeStats};

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
    pub(super) inner: StateLock<Inner<T>>,
}

/// Pages to free after the lock is released.
pub(super) type DroppedPages<T> = Vec<T>;

fn master_is_drained<T>(kind: OutputKind, master: &VecDeque<Arc<Page<T>>>) -> bool {
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
    /// Reads buffer `id` from `token` on, under the lock of `inner`.
    pub(super) fn read(
        &self,
        inner: &mut Inner<T>,
        (id, token): (BufferId, u64),
        max_bytes: usize,
        gate: &Gate,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) -> Result<PageRead<T>, ProtocolError> {
        if inner.state == OutputState::Failed {
            return Ok(PageRead::Failed);
        }
        if !inner.clients.contains_key(&id) && inner.descriptor.no_more_buffers() {
            return Err(ProtocolError(format!("buffer {id} does not exist and cannot be added")));
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
        self.update_state(inner, dropped, wakeups);
        Ok(result)
    }

    /// Ends the reader of buffer `id`, under the lock of `inner`.
    pub(super) fn abort(
        &self,
        inner: &mut Inner<T>,
        id: BufferId,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) {
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
        self.update_state(inner, dropped, wakeups);
    }

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
