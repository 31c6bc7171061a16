//! The writer's end of an output.

use std::sync::Arc;

use super::{Dropped, Inner, Output, OutputKind, OutputState, State, client::Page};
use crate::{Gate, Give, Payload, Wakeups};

/// The right of one task to add pages. Dropping it unfinished fails the output.
#[derive(Debug)]
pub struct OutputWriter<T: Payload + Clone> {
    output: Output<T>,
    finished: bool,
}

impl<T: Payload + Clone> OutputWriter<T> {
    pub(super) fn new(output: Output<T>) -> Self {
        Self { output, finished: false }
    }

    /// Adds a page: to the buffer of `partition`; a broadcast or arbitrary output has partition 0 only.
    pub fn push(&mut self, partition: usize, item: T) -> Give {
        let (mut dropped, mut wakeups) = (Dropped::new(), Wakeups::new());
        let state = &self.output.0;
        let mut guard = state.inner.lock();
        let inner = &mut *guard;
        if !inner.state.takes_pages() {
            inner.flow.rows_dropped += item.rows() as u64;
            dropped.push(item);
            return Give::Closed;
        }
        let page = Arc::new(Page { bytes: item.bytes(), item });
        let rows = page.item.rows() as u64;
        inner.bytes += page.bytes;
        inner.flow.rows_in += rows;
        inner.flow.peak_bytes = inner.flow.peak_bytes.max(inner.bytes);
        let more_buffers = inner.state.takes_buffers();
        let mut wanted = false;
        match inner.descriptor.kind() {
            OutputKind::Partitioned => {
                let client = inner.clients.get_mut(&partition).filter(|client| !client.gone);
                if let Some(client) = client {
                    client.give(page.clone(), &mut wakeups);
                    wanted = true;
                }
            }
            OutputKind::Broadcast => {
                for client in inner.clients.values_mut().filter(|client| !client.gone) {
                    client.give(page.clone(), &mut wakeups);
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
                // Who comes first gets it; the others ask in vain.
                for client in inner.clients.values_mut() {
                    if let Some(listener) = client.listener.take() {
                        listener.set_ready_later(&mut wakeups);
                    }
                }
            }
        }
        if !wanted {
            inner.flow.rows_dropped += rows;
        }
        inner.release([page], &mut dropped);
        state.look_at_readers(inner, &mut wakeups);
        state.room(inner)
    }

    /// Whether there is room, without a page.
    pub fn room(&mut self) -> Give {
        self.output.0.room(&self.output.0.inner.lock())
    }

    /// Another one, for another task. The output waits for both.
    #[must_use]
    pub fn another(&self) -> Self {
        self.output.0.inner.lock().writers_left += 1;
        Self::new(self.output.clone())
    }

    /// Says that this task has written all it had.
    pub fn finish(mut self) {
        self.leave(true);
    }

    /// Open when no page is wanted any more.
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
        let (mut dropped, mut wakeups) = (Dropped::new(), Wakeups::new());
        let state = &self.output.0;
        let mut inner = state.inner.lock();
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
                listener.set_ready_later(&mut wakeups);
            }
        }
        state.look_around(&mut inner, &mut dropped, &mut wakeups);
    }
}

impl<T: Payload + Clone> State<T> {
    fn room(&self, inner: &Inner<T>) -> Give {
        if !inner.state.takes_pages() {
            return Give::Closed;
        }
        if self.budget.must_wait(inner.bytes) {
            self.room.block();
            return Give::Full(self.room.clone());
        }
        Give::Accepted
    }
}

impl<T: Payload + Clone> Drop for OutputWriter<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}
