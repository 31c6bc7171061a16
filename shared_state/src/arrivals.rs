//! Things that are ready now and then, such as streams from other machines, N:N: whichever is ready is taken by
//! whichever task comes, looked at, and given back. So none waits for another to end, and one task can serve all.
//!
//! Each thing has a waker. It is to be polled with that: a wake-up makes the thing ready, or, if it comes while a task
//! looks at it, is kept until the thing is given back.
//!
//! Lock: `inner`. The gate flips under it; the things themselves are dropped after it.

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
    /// Open while one is ready, and when all have ended.
    gate: Gate,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    places: Vec<Place<T>>,
    /// In the order in which they became so.
    ready: VecDeque<usize>,
    left: usize,
}

enum Place<T> {
    Ready(T),
    Waiting(T),
    /// A task looks at it; and whether it was woken since.
    Taken(bool),
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
        let inner = self.state.inner.lock();
        write!(f, "{} of {} ready", inner.ready.len(), inner.left)
    }
}

impl<T> fmt::Debug for Arrival<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "number {}", self.number)
    }
}

impl<T: Send + 'static> Arrivals<T> {
    /// All of these are ready to be looked at.
    pub fn new(name: &str, things: impl IntoIterator<Item = T>) -> Self {
        let places: Vec<_> = things.into_iter().map(Place::Ready).collect();
        let inner = Inner { ready: (0..places.len()).collect(), left: places.len(), places };
        let gate = Dependency::ready(name.to_owned(), DependencyKind::External);
        Self { state: Arc::new(State { gate, inner: Mutex::new(inner) }) }
    }

    /// One that is ready.
    pub fn take(&self) -> Take<Arrival<T>> {
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        if inner.left == 0 {
            self.state.gate.set_always_ready_later(&mut wakeups);
            return Take::Finished;
        }
        let Some(number) = inner.ready.pop_front() else {
            self.state.gate.block();
            return Take::Blocked(self.state.gate.clone());
        };
        match std::mem::replace(&mut inner.places[number], Place::Taken(false)) {
            Place::Ready(thing) | Place::Waiting(thing) => {
                let state = self.state.clone();
                Take::Item(Arrival { state, number, thing: Some(thing) })
            }
            // The list has what is ready and nothing else.
            Place::Taken(_) | Place::Ended => Take::Aborted,
        }
    }
}

impl<T> State<T> {
    fn woken(&self, number: usize) {
        let mut wakeups = Wakeups::new();
        let mut inner = self.inner.lock();
        match &mut inner.places[number] {
            Place::Taken(woken) => *woken = true,
            place @ Place::Waiting(_) => {
                if let Place::Waiting(thing) = std::mem::replace(place, Place::Ended) {
                    *place = Place::Ready(thing);
                }
                inner.ready.push_back(number);
                self.gate.set_ready_later(&mut wakeups);
            }
            Place::Ready(_) | Place::Ended => {}
        }
    }
}

impl<T: Send + 'static> Arrival<T> {
    /// What it is polled with.
    pub fn waker(&self) -> Waker {
        let state = Arc::downgrade(&self.state);
        Waker::from(Arc::new(Woken { state, number: self.number }))
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
        let Some(thing) = self.thing.take() else { return };
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        let ready = ready || matches!(inner.places[self.number], Place::Taken(true));
        inner.places[self.number] = if ready { Place::Ready(thing) } else { Place::Waiting(thing) };
        if ready {
            inner.ready.push_back(self.number);
            self.state.gate.set_ready_later(&mut wakeups);
        }
    }
}

impl<T> Drop for Arrival<T> {
    fn drop(&mut self) {
        // Not under the lock: it may be long in going.
        let Some(thing) = self.thing.take() else { return };
        drop(thing);
        let mut wakeups = Wakeups::new();
        let mut inner = self.state.inner.lock();
        inner.places[self.number] = Place::Ended;
        inner.left -= 1;
        if inner.left == 0 {
            self.state.gate.set_always_ready_later(&mut wakeups);
        }
    }
}

/// A thing does not hold what it is in.
struct Woken<T> {
    state: Weak<State<T>>,
    number: usize,
}

impl<T: Send + 'static> Wake for Woken<T> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(state) = self.state.upgrade() {
            state.woken(self.number);
        }
    }
}
