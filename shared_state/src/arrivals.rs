//! Things that are ready now and then, such as streams from other machines, N:N: whichever is ready is taken by
//! whichever task comes, looked at, and given back. So none waits for another to end, and one task can serve all.
//!
//! Each thing has a waker. It is to be polled with that: a wake-up makes the thing ready, or, if it comes while a task
//! looks at it, is kept until the thing is given back.
//!
//! Locks: `inner`, and that of a thing under it. The gate flips under `inner`; the things themselves are dropped after it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
    task::{Wake, Waker},
};

use crate::{Dependency, DependencyKind, Gate, Take, Wakeups, sync::Mutex};

/// Things of which some are ready. Clones are the same.
pub struct Arrivals<T> {
    state: Arc<State<T>>,
}

struct State<T> {
    signals: Arc<Signals>,
    /// Each is taken while a task looks at it, and when it has ended.
    things: Vec<Mutex<Option<T>>>,
}

/// What wakers know. They hold none of the things: one that goes may wait for whoever is waking.
struct Signals {
    /// Open while one is ready, and when all have ended.
    gate: Gate,
    inner: Mutex<Inner>,
}

struct Inner {
    places: Vec<Place>,
    /// In the order in which they became so.
    ready: VecDeque<usize>,
    left: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Waiting,
    Taken,
    /// It was woken while a task looks at it.
    TakenAndWoken,
    Ended,
}

/// One that a task looks at. Dropped without having been given back, it has ended.
pub struct Arrival<T> {
    state: Arc<State<T>>,
    number: usize,
    thing: Option<T>,
}

impl<T> Clone for Arrivals<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<T> fmt::Debug for Arrivals<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.state.signals.inner.lock();
        write!(f, "{} of {} ready", inner.ready.len(), inner.left)
    }
}

impl<T> fmt::Debug for Arrival<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "number {}", self.number)
    }
}

impl<T> Arrivals<T> {
    /// All of these are ready to be looked at.
    pub fn new(name: &str, things: impl IntoIterator<Item = T>) -> Self {
        let things: Vec<_> = things.into_iter().map(|thing| Mutex::new(Some(thing))).collect();
        let count = things.len();
        let inner =
            Inner { places: vec![Place::Ready; count], ready: (0..count).collect(), left: count };
        let gate = Dependency::ready(name.to_owned(), DependencyKind::External);
        let signals = Arc::new(Signals { gate, inner: Mutex::new(inner) });
        Self { state: Arc::new(State { signals, things }) }
    }

    /// One that is ready.
    pub fn take(&self) -> Take<Arrival<T>> {
        let mut wakeups = Wakeups::new();
        let State { signals, things } = self.state.as_ref();
        let mut inner = signals.inner.lock();
        if inner.left == 0 {
            signals.gate.set_always_ready_later(&mut wakeups);
            return Take::Finished;
        }
        let Some(number) = inner.ready.pop_front() else {
            signals.gate.block();
            return Take::Blocked(signals.gate.clone());
        };
        inner.places[number] = Place::Taken;
        let thing = things[number].lock().take();
        Take::Item(Arrival { state: self.state.clone(), number, thing })
    }

    /// Open while there may be one that is ready: for a task that has looked at many and gives way.
    pub fn gate(&self) -> Gate {
        self.state.signals.gate.clone()
    }
}

impl Signals {
    fn woken(&self, number: usize) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        match inner.places[number] {
            Place::Taken => inner.places[number] = Place::TakenAndWoken,
            Place::Waiting => {
                inner.places[number] = Place::Ready;
                inner.ready.push_back(number);
                self.gate.set_ready_later(&mut wakeups);
            }
            Place::Ready | Place::TakenAndWoken | Place::Ended => {}
        }
    }
}

impl<T> Arrival<T> {
    /// What it is polled with.
    pub fn waker(&self) -> Waker {
        let signals = Arc::downgrade(&self.state.signals);
        Waker::from(Arc::new(Woken { signals, number: self.number }))
    }

    /// The thing.
    pub fn thing(&mut self) -> Option<&mut T> {
        self.thing.as_mut()
    }

    /// Gives it back: there is more to be had at once.
    pub fn more(self) {
        self.back(true);
    }

    /// Gives it back: its waker will say when it is worth looking again.
    pub fn pending(self) {
        self.back(false);
    }

    fn back(mut self, ready: bool) {
        let State { signals, things } = self.state.as_ref();
        let Some(thing) = self.thing.take() else { return };
        let mut wakeups = Wakeups::new();
        let mut inner = signals.inner.lock();
        *things[self.number].lock() = Some(thing);
        if ready || inner.places[self.number] == Place::TakenAndWoken {
            inner.places[self.number] = Place::Ready;
            inner.ready.push_back(self.number);
            signals.gate.set_ready_later(&mut wakeups);
        } else {
            inner.places[self.number] = Place::Waiting;
        }
    }
}

impl<T> Drop for Arrival<T> {
    fn drop(&mut self) {
        // Not under the lock: it may be long in going.
        let Some(thing) = self.thing.take() else { return };
        drop(thing);
        let mut wakeups = Wakeups::new();
        let signals = &self.state.signals;
        let mut inner = signals.inner.lock();
        inner.places[self.number] = Place::Ended;
        inner.left -= 1;
        if inner.left == 0 {
            signals.gate.set_always_ready_later(&mut wakeups);
        }
    }
}

struct Woken {
    signals: Weak<Signals>,
    number: usize,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(signals) = self.signals.upgrade() {
            signals.woken(self.number);
        }
    }
}
