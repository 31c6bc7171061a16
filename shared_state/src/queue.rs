//! A queue that knows how many rows and bytes it holds. It has no lock: its owner has one.

use std::collections::VecDeque;

/// What shared states carry: something with rows and bytes.
pub trait Payload: Send + 'static {
    /// Rows in it, for the check that no exchange loses any.
    fn rows(&self) -> usize;
    /// Bytes it holds on to, for budgets.
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
    /// Appends `item` and answers the bytes it was charged with.
    pub(crate) fn push(&mut self, item: T) -> usize {
        let bytes = item.bytes();
        self.items.push_back((item, bytes));
        self.bytes += bytes;
        bytes
    }

    /// Takes the oldest item, with the bytes it was charged with.
    pub(crate) fn pop(&mut self) -> Option<(T, usize)> {
        let (item, bytes) = self.items.pop_front()?;
        self.bytes -= bytes;
        Some((item, bytes))
    }

    /// Takes everything out; the caller drops it after its lock is released.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows of all items. Counts them one by one, so it is for ends, not for every push.
    pub(crate) fn rows(&self) -> usize {
        self.items.iter().map(|(item, _)| item.rows()).sum()
    }
}
