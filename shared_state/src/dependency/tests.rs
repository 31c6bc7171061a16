//! Gates at which very many tasks wait, repeatedly.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use super::{Dependency, DependencyKind};

struct CountingWaker(Arc<AtomicUsize>);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tasks that watch a gate register there whenever they block at another one.
#[test]
fn a_waker_that_comes_again_costs_the_same_however_many_wait() {
    const ROUNDS: usize = 20;
    for tasks in [10, 100, 1000, 1023, 1024, 1025, 5000] {
        let gate = Dependency::blocked("closed", DependencyKind::ConsumersGone);
        let woken = Arc::new(AtomicUsize::new(0));
        let wakers: Vec<_> =
            (0..tasks).map(|_| Waker::from(Arc::new(CountingWaker(woken.clone())))).collect();
        for _ in 0..ROUNDS {
            assert!(wakers.iter().all(|waker| !gate.poll_ready(waker)));
        }
        let examined = gate.waiting.lock().examined;
        assert!(examined <= 4 * ROUNDS * tasks, "{examined} for {tasks} tasks");
        gate.set_ready();
        assert_eq!(woken.load(Ordering::Relaxed), tasks, "each is woken once");
    }
}
