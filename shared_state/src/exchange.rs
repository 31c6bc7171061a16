//! Local exchange, N:N: producers route items to the channels of consumers.
//!
//! One byte limit covers all channels. A producer that exceeds it waits at its own gate until
//! consumers have read the total below the limit. With [`BufferLimit::unless_starved`], an empty
//! open channel ends the wait as well. A consumer that is dropped closes its channel: the items in
//! it are dropped and their bytes no longer count, so an ended consumer never stalls the others.
//! When the last consumer is dropped, producers are told that they may end early. Waiting producers
//! are woken one after the other.
//!
//! Lock: `inner`. All gates change under it; wakers run, and dropped items are freed, after it.
//!
//! ```
//! use gatework_shared_state::exchange::{self, LocalExchangeKind};
//! use gatework_shared_state::{BufferLimit, Payload, PopResult, PushResult};
//! struct Rows(usize);
//! impl Payload for Rows {
//!     fn rows(&self) -> usize { self.0 }
//!     fn bytes(&self) -> usize { 8 * self.0 }
//! }
//! let (mut sinks, mut sources) =
//!     exchange::new("demo", LocalExchangeKind::Hash, 1, 2, BufferLimit::new(100));
//! let mut sink = sinks.remove(0);
//! assert!(matches!(sink.push(1, Rows(3)), PushResult::Accepted));
//! assert!(matches!(sink.push(1, Rows(1000)), PushResult::Backpressure(_)));
//! sink.finish();
//! assert!(matches!(sources[0].take(), PopResult::Finished));
//! assert!(matches!(sources[1].take(), PopResult::Item(Rows(3))));
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{
    BufferLimit, Dependency, DependencyKind, Gate, ManyToMany, Payload, PopResult, PushResult,
    StateLock, Wakeups, queue::SizedQueue,
};

/// How an exchange routes. The operator routes the rows; the kind fixes the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalExchangeKind {
    /// Rows by hash of their keys: [`ExchangeProducer::push`] with the channel.
    Hash,
    /// Rows by the bucket of their storage: [`ExchangeProducer::push`] with the channel.
    BucketHash,
    /// Whole items to the open channel with the fewest bytes: [`ExchangeProducer::push_any`].
    PassThrough,
    /// Every item to every channel: [`ExchangeProducer::push_all`].
    Broadcast,
    /// All items to channel 0; the other consumers finish at once.
    PassToOne,
    /// The first items are partitioned over all channels, later ones are passed whole.
    AdaptivePassThrough,
}

#[derive(Debug)]
struct Channel<T> {
    queue: SizedQueue<T>,
    open: bool,
}

#[derive(Debug)]
struct Inner<T> {
    channels: Box<[Channel<T>]>,
    bytes: usize,
    /// Number of open channels without items.
    starved: usize,
    /// Producers that wait for capacity, oldest first; and for each producer whether it still
    /// waits.
    waiting: VecDeque<usize>,
    is_waiting: Box<[bool]>,
    producers_left: usize,
    consumers_left: usize,
    aborted: bool,
    stats: ExchangeStats,
}

/// Row counts and peak bytes of an exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeStats {
    /// Rows that producers pushed (a broadcast counts once per channel).
    pub rows_in: u64,
    /// Rows that consumers took.
    pub rows_out: u64,
    /// Rows dropped because their consumer was dropped.
    pub rows_dropped: u64,
    /// Maximum number of bytes buffered at a time.
    pub peak_bytes: usize,
}

#[derive(Debug)]
struct State<T> {
    gates: ManyToMany,
    closed: Gate,
    kind: LocalExchangeKind,
    limit: BufferLimit,
    inner: StateLock<Inner<T>>,
}

/// The right of one producer task to push. Dropping it unfinished aborts the exchange.
#[derive(Debug)]
pub struct ExchangeProducer<T: Payload> {
    state: Arc<State<T>>,
    task_index: usize,
    /// The channel at which the next search starts.
    cursor: usize,
    finished: bool,
}

/// The right of one consumer task to read its channel. Dropping it closes the channel.
#[derive(Debug)]
pub struct ExchangeConsumer<T: Payload> {
    state: Arc<State<T>>,
    task_index: usize,
}

/// Creates an exchange between `producers` and `consumers` tasks.
///
/// # Panics
/// If either is 0.
pub fn new<T: Payload>(
    name: &str,
    kind: LocalExchangeKind,
    producers: usize,
    consumers: usize,
    limit: BufferLimit,
) -> (Vec<ExchangeProducer<T>>, Vec<ExchangeConsumer<T>>) {
    with_gates(name, kind, ManyToMany::new(name, producers, consumers), limit)
}

/// Creates an exchange with these gates.
pub(crate) fn with_gates<T: Payload>(
    name: &str,
    kind: LocalExchangeKind,
    gates: ManyToMany,
    limit: BufferLimit,
) -> (Vec<ExchangeProducer<T>>, Vec<ExchangeConsumer<T>>) {
    let (producers, consumers) = (gates.sinks().len(), gates.sources().len());
    assert!(producers > 0 && consumers > 0, "an exchange needs a producer and a consumer");
    if kind == LocalExchangeKind::PassToOne {
        gates.sources()[1..].iter().for_each(|gate| gate.set_always_ready());
    }
    let is_fed = |channel| kind != LocalExchangeKind::PassToOne || channel == 0;
    let channels = (0..consumers)
        .map(|channel| Channel { queue: SizedQueue::default(), open: is_fed(channel) });
    let state = Arc::new(State {
        gates,
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::ConsumersGone),
        kind,
        limit,
        inner: StateLock::new(Inner {
            channels: channels.collect(),
            bytes: 0,
            starved: if kind == LocalExchangeKind::PassToOne { 1 } else { consumers },
            waiting: VecDeque::new(),
            is_waiting: vec![false; producers].into(),
            producers_left: producers,
            consumers_left: consumers,
            aborted: false,
            stats: ExchangeStats::default(),
        }),
    });
    (
        (0..producers)
            .map(|task_index| ExchangeProducer {
                state: state.clone(),
                task_index,
                cursor: task_index % consumers,
                finished: false,
            })
            .collect(),
        (0..consumers)
            .map(|task_index| ExchangeConsumer { state: state.clone(), task_index })
            .collect(),
    )
}

impl<T: Payload> State<T> {
    /// Adds `item` to `channel`, or returns it to be dropped after the lock is released.
    fn add(
        &self,
        inner: &mut Inner<T>,
        channel: usize,
        item: T,
        wakeups: &mut Wakeups,
    ) -> Option<T> {
        let rows = item.rows() as u64;
        inner.stats.rows_in += rows;
        if !inner.channels[channel].open || inner.aborted {
            inner.stats.rows_dropped += rows;
            return Some(item);
        }
        inner.starved -= usize::from(inner.channels[channel].queue.is_empty());
        inner.bytes += inner.channels[channel].queue.push(item);
        inner.stats.peak_bytes = inner.stats.peak_bytes.max(inner.bytes);
        self.gates.source(channel).set_ready_exclusive(wakeups);
        None
    }

    /// Answers producer `task_index` after it added an item.
    fn poll_capacity(
        &self,
        inner: &mut Inner<T>,
        task_index: usize,
        wakeups: &mut Wakeups,
    ) -> PushResult {
        if inner.consumers_left == 0 || inner.aborted {
            return PushResult::Closed;
        }
        if self.is_full(inner) {
            let gate = self.gates.sink(task_index);
            gate.block();
            if !std::mem::replace(&mut inner.is_waiting[task_index], true) {
                inner.waiting.push_back(task_index);
            }
            return PushResult::Backpressure(gate.clone());
        }
        // This producer waits no longer: `wake_producer` skips its entry in `waiting`.
        inner.is_waiting[task_index] = false;
        self.wake_producer(inner, wakeups);
        PushResult::Accepted
    }

    fn is_full(&self, inner: &Inner<T>) -> bool {
        self.limit.is_exceeded_unless_starved(inner.bytes, inner.starved > 0)
    }

    /// Wakes the longest-waiting producer if the exchange is below its limit. That producer wakes
    /// the next when it has found capacity or is dropped. So all are woken while there is capacity,
    /// and few in vain, however many wait.
    fn wake_producer(&self, inner: &mut Inner<T>, wakeups: &mut Wakeups) {
        while !self.is_full(inner)
            && let Some(producer) = inner.waiting.pop_front()
        {
            if std::mem::take(&mut inner.is_waiting[producer]) {
                self.gates.sink(producer).set_ready_exclusive(wakeups);
                return;
            }
        }
    }
}

impl<T: Payload> ExchangeProducer<T> {
    /// Pushes `item` to `channel`.
    pub fn push(&mut self, channel: usize, item: T) -> PushResult {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        let rejected = self.state.add(inner, channel, item, wakeups);
        let result = self.state.poll_capacity(inner, self.task_index, wakeups);
        guard.unlock_and_drop(rejected);
        result
    }

    /// Pushes `item` to the open channel with the fewest bytes (channel 0 for
    /// [`LocalExchangeKind::PassToOne`]).
    pub fn push_any(&mut self, item: T) -> PushResult {
        if self.state.kind == LocalExchangeKind::PassToOne {
            return self.push(0, item);
        }
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        let count = inner.channels.len();
        let start = self.cursor;
        let channel = (0..count)
            .map(|step| (start + step) % count)
            .filter(|&channel| inner.channels[channel].open)
            .min_by_key(|&channel| inner.channels[channel].queue.bytes())
            .unwrap_or(start);
        self.cursor = (channel + 1) % count;
        let rejected = self.state.add(inner, channel, item, wakeups);
        let result = self.state.poll_capacity(inner, self.task_index, wakeups);
        guard.unlock_and_drop(rejected);
        result
    }

    /// Pushes a clone of `item` to every channel. Each clone counts towards the limit.
    pub fn push_all(&mut self, item: &T) -> PushResult
    where
        T: Clone,
    {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        let mut rejected = Vec::new();
        for channel in 0..inner.channels.len() {
            rejected.extend(self.state.add(inner, channel, item.clone(), wakeups));
        }
        let result = self.state.poll_capacity(inner, self.task_index, wakeups);
        guard.unlock_and_drop(rejected);
        result
    }

    /// Returns whether there is capacity, without pushing. A producer calls it after it was woken.
    pub fn poll_capacity(&mut self) -> PushResult {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        self.state.poll_capacity(inner, self.task_index, wakeups)
    }

    /// Ends this producer's input. After the last producer, consumers finish once they have read
    /// all items.
    ///
    /// It consumes the producer, so that it cannot be called twice:
    /// ```compile_fail
    /// # use gatework_shared_state::{BufferLimit, Payload, exchange::{self, LocalExchangeKind}};
    /// # struct Rows;
    /// # impl Payload for Rows {
    /// #     fn rows(&self) -> usize { 1 }
    /// #     fn bytes(&self) -> usize { 1 }
    /// # }
    /// let (mut sinks, _sources) =
    ///     exchange::new::<Rows>("exchange", LocalExchangeKind::Hash, 1, 1, BufferLimit::new(1));
    /// let sink = sinks.remove(0);
    /// sink.finish();
    /// sink.finish();
    /// ```
    pub fn finish(mut self) {
        self.leave(true);
    }

    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.producers_left -= 1;
        let was_aborted = inner.aborted;
        inner.aborted |= !finished;
        // Only once: in a cancelled query, all producers are dropped.
        if !was_aborted && (inner.aborted || inner.producers_left == 0) {
            self.state.gates.set_always_ready_all(wakeups);
        }
        // This producer may have been woken for capacity that it no longer needs.
        inner.is_waiting[self.task_index] = false;
        self.state.wake_producer(inner, wakeups);
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    /// Returns the number of channels.
    pub fn channels(&self) -> usize {
        self.state.gates.sources().len()
    }

    /// Returns how the exchange routes.
    pub fn kind(&self) -> LocalExchangeKind {
        self.state.kind
    }

    /// Returns the statistics so far.
    pub fn stats(&self) -> ExchangeStats {
        self.state.inner.lock().stats
    }
}

impl<T: Payload> Drop for ExchangeProducer<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload> ExchangeConsumer<T> {
    /// Takes the oldest item of this consumer's channel.
    pub fn take(&mut self) -> PopResult<T> {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if let Some((item, bytes)) = inner.channels[self.task_index].queue.pop() {
            inner.stats.rows_out += item.rows() as u64;
            inner.bytes -= bytes;
            inner.starved += usize::from(inner.channels[self.task_index].queue.is_empty());
            self.state.wake_producer(inner, wakeups);
            return PopResult::Item(item);
        }
        let unfed = self.state.kind == LocalExchangeKind::PassToOne && self.task_index > 0;
        if inner.producers_left == 0 || unfed {
            return PopResult::Finished;
        }
        let gate = self.state.gates.source(self.task_index);
        gate.block();
        PopResult::Blocked(gate.clone())
    }

    /// Returns the gate that is ready when there is an item, or when there will be no more.
    pub fn gate(&self) -> &Gate {
        self.state.gates.source(self.task_index)
    }

    /// Returns the statistics so far.
    pub fn stats(&self) -> ExchangeStats {
        self.state.inner.lock().stats
    }
}

impl<T: Payload> Drop for ExchangeConsumer<T> {
    fn drop(&mut self) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.consumers_left -= 1;
        let channel = &mut inner.channels[self.task_index];
        let was_open = std::mem::replace(&mut channel.open, false);
        let unread = channel.queue.take();
        inner.starved -= usize::from(was_open && unread.is_empty());
        inner.stats.rows_dropped += unread.rows() as u64;
        inner.bytes -= unread.bytes();
        self.state.wake_producer(inner, wakeups);
        // Also releases producers that wait for capacity in a closed exchange.
        if inner.consumers_left == 0 {
            self.state.closed.set_always_ready_deferred(wakeups);
            for gate in self.state.gates.sinks() {
                gate.set_always_ready_deferred(wakeups);
            }
        }
        guard.unlock_and_drop(unread);
    }
}
