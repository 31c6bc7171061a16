//! Local exchange, N:N: sinks route items to the channels of sources.
//!
//! One byte budget covers all channels. A sink that passes it waits on its own gate until sources
//! have read the total below the budget again, or, if the budget says so, until an open channel is empty.
//! A source that leaves closes its channel: what was routed there is dropped and its bytes are given
//! back, so one ended reader never stalls the rest. When the last source leaves, sinks are told that
//! they may end. Only sinks that wait are woken, one after the other.
//!
//! Lock: `inner`. All gates flip under it; wakers run, and dropped items are freed, after it.
//!
//! ```
//! use gatework_shared_state::{Budget, Give, Payload, Take, exchange::{self, ExchangeKind}};
//! struct Rows(usize);
//! impl Payload for Rows {
//!     fn rows(&self) -> usize { self.0 }
//!     fn bytes(&self) -> usize { 8 * self.0 }
//! }
//! let (mut sinks, mut sources) =
//!     exchange::new("demo", ExchangeKind::Hash, 1, 2, Budget::new(100));
//! let mut sink = sinks.remove(0);
//! assert!(matches!(sink.push(1, Rows(3)), Give::Accepted));
//! assert!(matches!(sink.push(1, Rows(1000)), Give::Full(_)));
//! sink.finish();
//! assert!(matches!(sources[0].take(), Take::Finished));
//! assert!(matches!(sources[1].take(), Take::Item(Rows(3))));
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{
    Budget, Dependency, DependencyKind, Gate, Give, ManyToMany, Payload, Take, Wakeups,
    queue::Queue, sync::Mutex,
};

/// How an exchange routes. Which rows go where is the operator's work; the kind fixes the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// Rows by hash of their keys: [`ExchangeSink::push`] with the channel.
    Hash,
    /// Rows by the bucket their storage put them into: [`ExchangeSink::push`] with the channel.
    BucketHash,
    /// Whole items to the open channel that holds least: [`ExchangeSink::push_any`].
    PassThrough,
    /// Every item to every channel: [`ExchangeSink::push_all`].
    Broadcast,
    /// Everything to channel 0; the other sources finish at once.
    PassToOne,
    /// The first items are split over all channels, later ones are passed whole.
    AdaptivePassThrough,
}

#[derive(Debug)]
struct Channel<T> {
    queue: Queue<T>,
    open: bool,
}

#[derive(Debug)]
struct Inner<T> {
    channels: Box<[Channel<T>]>,
    bytes: usize,
    /// Open channels that have nothing to take.
    starved: usize,
    /// Sinks that wait for room, and for each sink whether it is among them.
    waiting: VecDeque<usize>,
    waits: Box<[bool]>,
    sinks_left: usize,
    sources_left: usize,
    aborted: bool,
    flow: Flow,
}

/// Rows that went through an exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Rows that sinks pushed (a broadcast counts once a channel).
    pub rows_in: u64,
    /// Rows that sources took.
    pub rows_out: u64,
    /// Rows dropped because their source had left.
    pub rows_dropped: u64,
    /// The most bytes that were held at a time.
    pub peak_bytes: usize,
}

#[derive(Debug)]
struct State<T> {
    gates: ManyToMany,
    closed: Gate,
    kind: ExchangeKind,
    budget: Budget,
    inner: Mutex<Inner<T>>,
}

/// The right of one sink task to push. Dropping it unfinished aborts the exchange.
#[derive(Debug)]
pub struct ExchangeSink<T: Payload> {
    state: Arc<State<T>>,
    instance: usize,
    /// Where the next search for a channel starts.
    cursor: usize,
    finished: bool,
}

/// The right of one source task to read its channel. Dropping it closes the channel.
#[derive(Debug)]
pub struct ExchangeSource<T: Payload> {
    state: Arc<State<T>>,
    instance: usize,
}

/// An exchange between `sinks` and `sources` tasks.
///
/// # Panics
/// If either is 0.
pub fn new<T: Payload>(
    name: &str,
    kind: ExchangeKind,
    sinks: usize,
    sources: usize,
    budget: Budget,
) -> (Vec<ExchangeSink<T>>, Vec<ExchangeSource<T>>) {
    with_gates(name, kind, ManyToMany::new(name, sinks, sources), budget)
}

/// An exchange with these gates.
pub(crate) fn with_gates<T: Payload>(
    name: &str,
    kind: ExchangeKind,
    gates: ManyToMany,
    budget: Budget,
) -> (Vec<ExchangeSink<T>>, Vec<ExchangeSource<T>>) {
    let (sinks, sources) = (gates.sinks().len(), gates.sources().len());
    assert!(sinks > 0 && sources > 0, "an exchange has at least one sink and one source");
    if kind == ExchangeKind::PassToOne {
        gates.sources()[1..].iter().for_each(|gate| gate.set_always_ready());
    }
    let is_fed = |channel| kind != ExchangeKind::PassToOne || channel == 0;
    let channels =
        (0..sources).map(|channel| Channel { queue: Queue::default(), open: is_fed(channel) });
    let state = Arc::new(State {
        gates,
        closed: Dependency::blocked(format!("{name} closed"), DependencyKind::Closed),
        kind,
        budget,
        inner: Mutex::new(Inner {
            channels: channels.collect(),
            bytes: 0,
            starved: if kind == ExchangeKind::PassToOne { 1 } else { sources },
            waiting: VecDeque::new(),
            waits: vec![false; sinks].into(),
            sinks_left: sinks,
            sources_left: sources,
            aborted: false,
            flow: Flow::default(),
        }),
    });
    (
        (0..sinks)
            .map(|instance| ExchangeSink {
                state: state.clone(),
                instance,
                cursor: instance % sources,
                finished: false,
            })
            .collect(),
        (0..sources).map(|instance| ExchangeSource { state: state.clone(), instance }).collect(),
    )
}

impl<T: Payload> State<T> {
    /// Adds `item` to `channel`, or gives it back to be dropped outside the lock.
    fn add(
        &self,
        inner: &mut Inner<T>,
        channel: usize,
        item: T,
        wakeups: &mut Wakeups,
    ) -> Option<T> {
        let rows = item.rows() as u64;
        inner.flow.rows_in += rows;
        if !inner.channels[channel].open || inner.aborted {
            inner.flow.rows_dropped += rows;
            return Some(item);
        }
        inner.starved -= usize::from(inner.channels[channel].queue.is_empty());
        inner.bytes += inner.channels[channel].queue.push(item);
        inner.flow.peak_bytes = inner.flow.peak_bytes.max(inner.bytes);
        self.gates.source(channel).set_ready_alone(wakeups);
        None
    }

    /// The answer to sink `instance` after it added something.
    fn room(&self, inner: &mut Inner<T>, instance: usize, wakeups: &mut Wakeups) -> Give {
        if inner.sources_left == 0 || inner.aborted {
            return Give::Closed;
        }
        if self.is_full(inner) {
            let gate = self.gates.sink(instance);
            gate.block();
            if !std::mem::replace(&mut inner.waits[instance], true) {
                inner.waiting.push_back(instance);
            }
            return Give::Full(gate.clone());
        }
        // It waits no longer, if it did: its place among those that do is passed over.
        inner.waits[instance] = false;
        self.wake_sink(inner, wakeups);
        Give::Accepted
    }

    fn is_full(&self, inner: &Inner<T>) -> bool {
        self.budget.must_wait_unless(inner.bytes, inner.starved > 0)
    }

    /// Wakes the sink that has waited longest, if there is room. That one wakes the next when it has found room,
    /// or leaves: so all are woken while there is room, and few in vain, however many wait.
    fn wake_sink(&self, inner: &mut Inner<T>, wakeups: &mut Wakeups) {
        while !self.is_full(inner)
            && let Some(sink) = inner.waiting.pop_front()
        {
            if std::mem::take(&mut inner.waits[sink]) {
                self.gates.sink(sink).set_ready_alone(wakeups);
                return;
            }
        }
    }
}

impl<T: Payload> ExchangeSink<T> {
    /// Pushes `item` to `channel`.
    pub fn push(&mut self, channel: usize, item: T) -> Give {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        let rejected = self.state.add(&mut inner, channel, item, &mut wakeups);
        let answer = self.state.room(&mut inner, self.instance, &mut wakeups);
        drop(inner);
        drop(rejected);
        answer
    }

    /// Pushes `item` to the open channel that holds the fewest bytes (channel 0 if the exchange
    /// passes everything to one).
    pub fn push_any(&mut self, item: T) -> Give {
        if self.state.kind == ExchangeKind::PassToOne {
            return self.push(0, item);
        }
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        let count = inner.channels.len();
        let start = self.cursor;
        let channel = (0..count)
            .map(|step| (start + step) % count)
            .filter(|&channel| inner.channels[channel].open)
            .min_by_key(|&channel| inner.channels[channel].queue.bytes())
            .unwrap_or(start);
        self.cursor = (channel + 1) % count;
        let rejected = self.state.add(&mut inner, channel, item, &mut wakeups);
        let answer = self.state.room(&mut inner, self.instance, &mut wakeups);
        drop(inner);
        drop(rejected);
        answer
    }

    /// Pushes a clone of `item` to every channel. Each clone is charged.
    pub fn push_all(&mut self, item: &T) -> Give
    where
        T: Clone,
    {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        let mut rejected = Vec::new();
        for channel in 0..inner.channels.len() {
            rejected.extend(self.state.add(&mut inner, channel, item.clone(), &mut wakeups));
        }
        let answer = self.state.room(&mut inner, self.instance, &mut wakeups);
        drop(inner);
        drop(rejected);
        answer
    }

    /// Whether there is room, without pushing: what a sink asks after it was woken.
    pub fn room(&mut self) -> Give {
        let mut wakeups = Wakeups::new();
        self.state.room(&mut self.state.inner.lock(), self.instance, &mut wakeups)
    }

    /// Says that this sink's input ended. After the last sink, sources finish once they read all.
    ///
    /// It takes the sink, so that it cannot be said twice:
    /// ```compile_fail
    /// # use gatework_shared_state::{Budget, Payload, exchange::{self, ExchangeKind}};
    /// # struct Rows;
    /// # impl Payload for Rows {
    /// #     fn rows(&self) -> usize { 1 }
    /// #     fn bytes(&self) -> usize { 1 }
    /// # }
    /// let (mut sinks, _sources) =
    ///     exchange::new::<Rows>("exchange", ExchangeKind::Hash, 1, 1, Budget::new(1));
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
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sinks_left -= 1;
        let was_aborted = inner.aborted;
        inner.aborted |= !finished;
        // Once: of a cancelled query, all sinks leave.
        if !was_aborted && (inner.aborted || inner.sinks_left == 0) {
            self.state.gates.open_for_ever(&mut wakeups);
        }
        // It may have been woken for room that it does not need any more.
        inner.waits[self.instance] = false;
        self.state.wake_sink(&mut inner, &mut wakeups);
    }

    /// Ready once no source is left.
    pub fn closed(&self) -> &Gate {
        &self.state.closed
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.state.gates.sources().len()
    }

    /// How the exchange routes.
    pub fn kind(&self) -> ExchangeKind {
        self.state.kind
    }

    /// Rows so far.
    pub fn flow(&self) -> Flow {
        self.state.inner.lock().flow
    }
}

impl<T: Payload> Drop for ExchangeSink<T> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<T: Payload> ExchangeSource<T> {
    /// The oldest item of this source's channel.
    pub fn take(&mut self) -> Take<T> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.aborted {
            return Take::Aborted;
        }
        if let Some((item, bytes)) = inner.channels[self.instance].queue.pop() {
            inner.flow.rows_out += item.rows() as u64;
            inner.bytes -= bytes;
            inner.starved += usize::from(inner.channels[self.instance].queue.is_empty());
            self.state.wake_sink(&mut inner, &mut wakeups);
            return Take::Item(item);
        }
        let alone = self.state.kind == ExchangeKind::PassToOne && self.instance > 0;
        if inner.sinks_left == 0 || alone {
            return Take::Finished;
        }
        let gate = self.state.gates.source(self.instance);
        gate.block();
        Take::Blocked(gate.clone())
    }

    /// The gate that is ready when there is something to take, or nothing ever will be.
    pub fn gate(&self) -> &Gate {
        self.state.gates.source(self.instance)
    }

    /// Rows so far.
    pub fn flow(&self) -> Flow {
        self.state.inner.lock().flow
    }
}

impl<T: Payload> Drop for ExchangeSource<T> {
    fn drop(&mut self) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.sources_left -= 1;
        let channel = &mut inner.channels[self.instance];
        let was_open = std::mem::replace(&mut channel.open, false);
        let unread = channel.queue.take();
        inner.starved -= usize::from(was_open && unread.is_empty());
        inner.flow.rows_dropped += unread.rows() as u64;
        inner.bytes -= unread.bytes();
        self.state.wake_sink(&mut inner, &mut wakeups);
        // Sinks that waited for room that a closed exchange will never make are let go as well.
        if inner.sources_left == 0 {
            self.state.closed.set_always_ready_later(&mut wakeups);
            for gate in self.state.gates.sinks() {
                gate.set_always_ready_later(&mut wakeups);
            }
        }
        drop(inner);
        drop(unread);
    }
}
