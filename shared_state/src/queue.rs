//! A queue that counts its rows and bytes. It has no lock of its own: its owner locks.

use std::collections::VecDeque;

/// An item of a shared state: it has rows and bytes.
pub trait Payload: Send + 'static {
    /// Returns the number of rows, for the check that no exchange loses any.
    fn rows(&self) -> usize;
    /// Returns the number of bytes in memory, for limits.
    fn bytes(&self) -> usize;
}

#[derive(Debug)]
pub(crate) struct SizedQueue<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
}

impl<T> Default for SizedQueue<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Payload> SizedQueue<T> {
    /// Appends `item` and returns the bytes counted for it.
    pub(crate) fn push(&mut self, item: T) -> usize {
        let bytes = item.bytes();
        self.items.push_back((item, bytes));
        self.bytes += bytes;
        bytes
    }

    /// Takes the oldest item, with the bytes counted for it.
    pub(crate) fn pop(&mut self) -> Option<(T, usize)> {
        let (item, bytes) = self.items.pop_front()?;
        self.bytes -= bytes;
        Some((item, bytes))
    }

    /// Takes all items; the caller drops them after its lock is released.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the rows of all items. Counts them one by one: call it at the end, not for every
    /// push.
    pub(crate) fn rows(&self) -> usize {
        self.items.iter().map(|(item, _)| item.rows()).sum()
    }
}
