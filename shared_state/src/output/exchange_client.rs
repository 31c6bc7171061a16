//! The reader's end of output buffers, N:1: one buffer of each writing task, shared by the tasks of
//! the reading pipeline. (Presto's `ExchangeClient`; rules M-11 and M-12.)
//!
//! A client buffers only the pages of one answer. All other pages stay, and count, in their output
//! buffer until the next read acknowledges them. So the client has no limit of its own.
//!
//! Lock: `inner`, taken before the locks of output buffers, which never call back. The gate is
//! blocked before the output buffers are read, so that a page added after a read makes it ready
//! again.

use std::{collections::VecDeque, fmt, sync::Arc};

use super::{BufferId, DroppedPages, OutputBuffer, PageRead, ProtocolError};
use crate::{Dependency, DependencyKind, Gate, Payload, PopResult, StateLock, Wakeups};

/// Id of an output buffer in a client: that of the task that writes it.
pub type LocationId = u64;

/// Maximum size of one answer of an output buffer, in bytes; a single page may be larger.
const MAX_READ_BYTES: usize = 1 << 20;

struct Location<T> {
    output: OutputBuffer<T>,
    buffer: BufferId,
    token: u64,
}

struct Inner<T> {
    /// Output buffers that are not complete; the first is the next to read.
    locations: VecDeque<Location<T>>,
    known: Vec<LocationId>,
    no_more_locations: bool,
    pages: VecDeque<T>,
    failed: bool,
    closed: bool,
    rows: u64,
}

/// Reads output buffers that are added while it reads. Clones are the same client.
pub struct ExchangeClient<T> {
    inner: Arc<StateLock<Inner<T>>>,
    gate: Gate,
}

impl<T> Clone for ExchangeClient<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.clone() }
    }
}

impl<T> fmt::Debug for ExchangeClient<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        write!(f, "client of {} outputs, {} open", inner.known.len(), inner.locations.len())
    }
}

impl<T: Payload + Clone> ExchangeClient<T> {
    /// Creates a client without output buffers.
    pub fn new(name: &str) -> Self {
        let inner = Inner {
            locations: VecDeque::new(),
            known: Vec::new(),
            no_more_locations: false,
            pages: VecDeque::new(),
            failed: false,
            closed: false,
            rows: 0,
        };
        // The writers are tasks of other query contexts.
        let gate = Dependency::blocked(format!("{name} pages"), DependencyKind::External);
        Self { inner: Arc::new(StateLock::new(inner)), gate }
    }

    /// Adds buffer `buffer` of `output`. A known `id` is ignored. A closed client leaves the buffer
    /// at once.
    ///
    /// # Errors
    /// If [`set_no_more_locations`](Self::set_no_more_locations) was called before.
    pub fn add_location(
        &self,
        id: LocationId,
        output: OutputBuffer<T>,
        buffer: BufferId,
    ) -> Result<(), ProtocolError> {
        let mut dropped = DroppedPages::new();
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.known.contains(&id) {
            return Ok(());
        }
        if inner.closed {
            output.abort_deferred(buffer, &mut dropped, wakeups);
            return Ok(());
        }
        if inner.no_more_locations {
            return Err(ProtocolError(format!("output {id} comes after the last one")));
        }
        inner.known.push(id);
        inner.locations.push_back(Location { output, buffer, token: 0 });
        self.gate.set_ready_deferred(wakeups);
        Ok(())
    }

    /// Records that no more output buffers will be added.
    pub fn set_no_more_locations(&self) {
        let mut inner = self.inner.lock();
        inner.no_more_locations = true;
        inner.set_ready(&self.gate);
    }

    /// Takes the next page of any output buffer.
    pub fn take(&self) -> PopResult<T> {
        let mut dropped = DroppedPages::new();
        let mut guard = self.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.failed {
            return PopResult::Aborted;
        }
        if inner.pages.is_empty() {
            self.gate.block();
            if self.poll_locations(inner, &mut dropped, wakeups).is_err() || inner.failed {
                inner.failed = true;
                self.gate.set_always_ready_deferred(wakeups);
                return PopResult::Aborted;
            }
        }
        if let Some(page) = inner.pages.pop_front() {
            inner.rows += page.rows() as u64;
            // Other waiting tasks may find output buffers to read as well.
            self.gate.set_ready_deferred(wakeups);
            return PopResult::Item(page);
        }
        if inner.closed || inner.no_more_locations && inner.locations.is_empty() {
            self.gate.set_always_ready_deferred(wakeups);
            return PopResult::Finished;
        }
        PopResult::Blocked(self.gate.clone())
    }

    /// Moves each output buffer to a client of its own, for a caller that reads them side by side.
    /// This client keeps none. Blocks until all output buffers are known.
    pub fn split_by_location(&self, name: &str) -> PopResult<Vec<Self>> {
        let mut inner = self.inner.lock();
        if inner.failed {
            return PopResult::Aborted;
        }
        if inner.closed {
            return PopResult::Finished;
        }
        if !inner.no_more_locations {
            self.gate.block();
            return PopResult::Blocked(self.gate.clone());
        }
        let known = std::mem::take(&mut inner.known);
        let single = |(id, location): (LocationId, Location<T>)| {
            let client = Self::new(name);
            let mut inner = client.inner.lock();
            inner.known.push(id);
            inner.locations.push_back(location);
            inner.no_more_locations = true;
            drop(inner);
            client
        };
        PopResult::Item(known.into_iter().zip(inner.locations.drain(..)).map(single).collect())
    }

    /// Reads each output buffer once, until one has pages.
    fn poll_locations(
        &self,
        inner: &mut Inner<T>,
        dropped: &mut DroppedPages<T>,
        wakeups: &mut Wakeups,
    ) -> Result<(), ProtocolError> {
        for _ in 0..inner.locations.len() {
            let Some(mut location) = inner.locations.pop_front() else { break };
            let Location { output, buffer, token, .. } = &mut location;
            let at = (*buffer, *token);
            match output.read_deferred(at, MAX_READ_BYTES, &self.gate, dropped, wakeups)? {
                PageRead::Pages { pages, next } => {
                    *token = next;
                    inner.pages.extend(pages);
                    inner.locations.push_back(location);
                    break;
                }
                PageRead::Pending => inner.locations.push_back(location),
                PageRead::TokenTooOld => {
                    return Err(ProtocolError(format!("buffer {buffer} has another reader")));
                }
                PageRead::Complete => output.abort_deferred(*buffer, dropped, wakeups),
                PageRead::Failed => {
                    inner.failed = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Closes the client, because no task reads it any more, and leaves all output buffers.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let unread = std::mem::take(&mut inner.pages);
        let locations = std::mem::take(&mut inner.locations);
        inner.set_always_ready(&self.gate);
        inner.unlock_and_drop(unread);
        locations.iter().for_each(|location| location.output.abort(location.buffer));
    }

    /// Returns the number of rows taken so far.
    pub fn rows(&self) -> u64 {
        self.inner.lock().rows
    }

    /// Returns the ids of the known output buffers.
    pub fn locations(&self) -> Vec<LocationId> {
        self.inner.lock().known.clone()
    }
}
