//! The writer's end of an output buffer.

use std::sync::Arc;

use super::{DroppedPages, Inner, OutputBuffer, OutputKind, OutputState, State, client::Page};
use crate::{Gate, Payload, PushResult};

/// The right of one task to add pages. Dropping it unfinished fails the output.
#[derive(Debug)]
pub struct OutputWriter<T: Payload + Clone> {
    output: OutputBuffer<T>,
    finished: bool,
}

impl<T: Payload + Clone> OutputWriter<T> {
    pub(super) fn new(output: OutputBuffer<T>) -> Self {
        Self { output, finished: false }
    }

    /// Adds a page to the buffer of `partition`. A broadcast or arbitrary output has partition 0
    /// only.
    pub fn push(&mut self, partition: usize, item: T) -> PushResult {
        let mut dropped = DroppedPages::new();
        let state = &self.output.0;
        let mut guard = state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if !inner.state.can_add_pages() {
            inner.stats.rows_dropped += item.rows() as u64;
            dropped.push(item);
            return PushResult::Closed;
        }
        let page = Arc::new(Page { bytes: item.bytes(), item });
        let rows = page.item.rows() as u64;
        inner.bytes += page.bytes;
        inner.stats.rows_in += rows;
        inner.stats.peak_bytes = inner.stats.peak_bytes.max(inner.bytes);
        let more_buffers = inner.state.can_add_buffers();
        let mut wanted = false;
        match inner.descriptor.kind() {
            OutputKind::Partitioned => {
                let client = inner.clients.get_mut(&partition).filter(|client| !client.aborted);
                if let Some(client) = client {
                    client.push(page.clone(), wakeups);
                    wanted = true;
                }
            }
            OutputKind::Broadcast => {
                for client in inner.clients.values_mut().filter(|client| !client.aborted) {
                    client.push(page.clone(), wakeups);
                    wanted = true;
                }
                if more_buffers {
                    inner.master.push_back(page.clone());
                    wanted = true;
                }
            }
            OutputKind::Arbitrary => {
                inner.master.push_back(page.clone());
                wanted = true;
                // The first reader gets the page; the reads of the others stay pending.
                for client in inner.clients.values_mut() {
                    if let Some(listener) = client.listener.take() {
                        listener.set_ready_deferred(wakeups);
                    }
                }
            }
        }
        if !wanted {
            inner.stats.rows_dropped += rows;
        }
        inner.release([page], &mut dropped);
        state.update_utilization(inner, wakeups);
        state.poll_capacity(inner)
    }

    /// Returns whether there is capacity, without adding a page.
    pub fn poll_capacity(&mut self) -> PushResult {
        self.output.0.poll_capacity(&self.output.0.inner.lock())
    }

    /// Creates a writer for another task. The output waits for both.
    #[must_use]
    pub fn add_writer(&self) -> Self {
        self.output.0.inner.lock().writers_left += 1;
        Self::new(self.output.clone())
    }

    /// Records that this task has written all its pages.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Returns the gate that is ready when no reader wants pages any more.
    pub fn closed(&self) -> &Gate {
        &self.output.0.closed
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if !finished {
            return self.output.fail();
        }
        let mut dropped = DroppedPages::new();
        let state = &self.output.0;
        let mut guard = state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.writers_left -= 1;
        if inner.writers_left > 0 || inner.state.is_final() {
            return;
        }
        inner.state = match inner.state {
            OutputState::NoMoreBuffers => OutputState::Flushing,
            _ => OutputState::NoMorePages,
        };
        for client in inner.clients.values_mut() {
            if let Some(listener) = client.listener.take() {
                listener.set_ready_deferred(wakeups);
            }
        }
        state.update_state(inner, &mut dropped, wakeups);
    }
}

impl<T: Payload + Clone> State<T> {
    fn poll_capacity(&self, inner: &Inner<T>) -> PushResult {
        if !inner.state.can_add_pages() {
            return PushResult::Closed;
        }
        if self.limit.is_exceeded(inner.bytes) {
            self.capacity.block();
            return PushResult::Backpressure(self.capacity.clone());
        }
        PushResult::Accepted
    }
}

impl<T: Payload + Clone> Drop for OutputWriter<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}
