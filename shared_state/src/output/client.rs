//! One buffer of an output: the pages from the place that its reader has acknowledged on.

use std::{collections::VecDeque, sync::Arc};

use super::Misuse;
use crate::{Gate, Payload, Wakeups};

/// A page, and what it was counted with.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) item: T,
    pub(super) bytes: usize,
}

pub(super) type Pages<T> = VecDeque<Arc<Page<T>>>;

#[derive(Debug)]
pub(super) struct Client<T> {
    /// The place of the first of `pages`: all before it are acknowledged.
    pub(super) token: u64,
    pub(super) pages: VecDeque<Arc<Page<T>>>,
    /// Opens when a pending question is worth asking again.
    pub(super) listener: Option<Gate>,
    /// The place up to which pages were given out.
    given: u64,
    /// The reader has left.
    pub(super) gone: bool,
}

impl<T: Payload + Clone> Client<T> {
    pub(super) fn new(pages: VecDeque<Arc<Page<T>>>) -> Self {
        Self { token: 0, pages, listener: None, given: 0, gone: false }
    }

    pub(super) fn give(&mut self, page: Arc<Page<T>>, wakeups: &mut Wakeups) {
        self.pages.push_back(page);
        if let Some(listener) = self.listener.take() {
            listener.set_ready_later(wakeups);
        }
    }

    /// Takes out the pages before `token`, which is not older than the last one, with the rows of those that were
    /// never given out.
    pub(super) fn acknowledge(&mut self, token: u64) -> Result<(Pages<T>, u64), Misuse> {
        let read = token.saturating_sub(self.token);
        if read > self.pages.len() as u64 {
            let end = self.token + self.pages.len() as u64;
            return Err(Misuse(format!(
                "place {token} is asked for in a buffer that ends at {end}"
            )));
        }
        let rest = self.pages.split_off(read as usize);
        let given = (self.given - self.token) as usize;
        self.given = self.given.max(token);
        self.token = token;
        let pages = std::mem::replace(&mut self.pages, rest);
        let unread = pages.iter().skip(given).map(|page| page.item.rows() as u64).sum();
        Ok((pages, unread))
    }

    /// Takes over pages from `master` until there is something to read, up to `most_bytes`.
    pub(super) fn take_from(&mut self, master: &mut VecDeque<Arc<Page<T>>>, most_bytes: usize) {
        let mut bytes: usize = self.pages.iter().map(|page| page.bytes).sum();
        while let Some(next) = master.front() {
            bytes += next.bytes;
            if bytes > most_bytes && !self.pages.is_empty() {
                break;
            }
            self.pages.extend(master.pop_front());
        }
    }

    /// Copies of the first pages, at least one if there is one, the place of the next, and how many rows are given
    /// out for the first time.
    pub(super) fn pages(&mut self, most_bytes: usize) -> (Vec<T>, u64, u64) {
        let mut bytes = 0;
        let fits = |page: &&Arc<Page<T>>| {
            let first = bytes == 0;
            bytes += page.bytes.max(1);
            first || bytes <= most_bytes
        };
        let pages: Vec<T> =
            self.pages.iter().take_while(fits).map(|page| page.item.clone()).collect();
        let next = self.token + pages.len() as u64;
        let again = (self.given - self.token).min(pages.len() as u64) as usize;
        let new = pages[again..].iter().map(|page| page.rows() as u64).sum();
        self.given = self.given.max(next);
        (pages, next, new)
    }

    /// The reader leaves: the pages that are left, and their rows that were never given out.
    pub(super) fn leave(&mut self) -> (Pages<T>, u64) {
        self.gone = true;
        let pages = std::mem::take(&mut self.pages);
        let given = (self.given - self.token) as usize;
        let unread = pages.iter().skip(given).map(|page| page.item.rows() as u64).sum();
        (pages, unread)
    }
}
