//! One buffer of an output: the pages from the acknowledged token on.

use std::{collections::VecDeque, sync::Arc};

use super::ProtocolError;
use crate::{Gate, Payload, Wakeups};

/// A page, and the bytes counted for it.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) item: T,
    pub(super) bytes: usize,
}

pub(super) type Pages<T> = VecDeque<Arc<Page<T>>>;

#[derive(Debug)]
pub(super) struct ClientBuffer<T> {
    /// The token of the first page in `pages`: all pages before it are acknowledged.
    pub(super) token: u64,
    pub(super) pages: VecDeque<Arc<Page<T>>>,
    /// Becomes ready when a pending read is worth retrying.
    pub(super) listener: Option<Gate>,
    /// The token up to which pages were sent.
    sent: u64,
    /// Whether the reader has left.
    pub(super) aborted: bool,
}

impl<T: Payload + Clone> ClientBuffer<T> {
    pub(super) fn new(pages: VecDeque<Arc<Page<T>>>) -> Self {
        Self { token: 0, pages, listener: None, sent: 0, aborted: false }
    }

    pub(super) fn push(&mut self, page: Arc<Page<T>>, wakeups: &mut Wakeups) {
        self.pages.push_back(page);
        if let Some(listener) = self.listener.take() {
            listener.set_ready_deferred(wakeups);
        }
    }

    /// Removes the pages before `token`, which is not smaller than the last one. Returns them, and
    /// the rows of those that were never sent.
    pub(super) fn acknowledge(&mut self, token: u64) -> Result<(Pages<T>, u64), ProtocolError> {
        let acknowledged = token.saturating_sub(self.token);
        if acknowledged > self.pages.len() as u64 {
            let end = self.token + self.pages.len() as u64;
            return Err(ProtocolError(format!(
                "token {token} is past the end of the buffer, {end}"
            )));
        }
        let remaining = self.pages.split_off(acknowledged as usize);
        let sent = (self.sent - self.token) as usize;
        self.sent = self.sent.max(token);
        self.token = token;
        let pages = std::mem::replace(&mut self.pages, remaining);
        let unread = pages.iter().skip(sent).map(|page| page.item.rows() as u64).sum();
        Ok((pages, unread))
    }

    /// Moves pages from `master` into the buffer until there is a page to read, up to `max_bytes`.
    pub(super) fn load_from(&mut self, master: &mut VecDeque<Arc<Page<T>>>, max_bytes: usize) {
        let mut bytes: usize = self.pages.iter().map(|page| page.bytes).sum();
        while let Some(next) = master.front() {
            bytes += next.bytes;
            if bytes > max_bytes && !self.pages.is_empty() {
                break;
            }
            self.pages.extend(master.pop_front());
        }
    }

    /// Returns copies of the first pages (at least one, if there is one) and the token of the next
    /// page. Also returns the number of rows that are sent for the first time.
    pub(super) fn pages(&mut self, max_bytes: usize) -> (Vec<T>, u64, u64) {
        let mut bytes = 0;
        let fits = |page: &&Arc<Page<T>>| {
            let first = bytes == 0;
            bytes += page.bytes.max(1);
            first || bytes <= max_bytes
        };
        let pages: Vec<T> =
            self.pages.iter().take_while(fits).map(|page| page.item.clone()).collect();
        let next = self.token + pages.len() as u64;
        let resent = (self.sent - self.token).min(pages.len() as u64) as usize;
        let new = pages[resent..].iter().map(|page| page.rows() as u64).sum();
        self.sent = self.sent.max(next);
        (pages, next, new)
    }

    /// Marks that the reader left. Returns the remaining pages, and their rows that were never
    /// sent.
    pub(super) fn abort(&mut self) -> (Pages<T>, u64) {
        self.aborted = true;
        let pages = std::mem::take(&mut self.pages);
        let sent = (self.sent - self.token) as usize;
        let unread = pages.iter().skip(sent).map(|page| page.item.rows() as u64).sum();
        (pages, unread)
    }
}
