//! Helpers of the models: the bounds of a check, a parker that a `Waker` unparks, and the check
//! that must fail.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Once},
    task::{Wake, Waker},
};

use gatework_shared_state::Gate;
use loom::{
    sync::{Condvar, Mutex},
    thread::JoinHandle,
};

/// Checks all executions of `model` with at most two preemptions.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` may set more.
    builder.preemption_bound.get_or_insert(2);
    builder.check(model);
}

/// Checks that loom finds a failing execution of `model` whose message contains one of `why`.
pub(crate) fn must_fail(why: &[&str], model: impl Fn() + Send + Sync + 'static) {
    thread_local! {
        static MUTED: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !MUTED.get() {
                report(info);
            }
        }));
    });
    MUTED.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| check(model)));
    MUTED.set(false);
    let Err(payload) = outcome else { panic!("the model does not see the fault") };
    let message = payload.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
    let expected = why.iter().any(|why| message.contains(why));
    assert!(expected, "it failed for another reason: {message}");
}

/// Waits until `gate` is ready.
pub(crate) fn wait(gate: &Gate) {
    let (parker, waker) = Parker::new();
    while !gate.poll_ready(&waker) {
        parker.park();
    }
}

/// Joins threads without results.
pub(crate) fn join_all(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Blocks a loom thread until its waker is called. An earlier call is remembered.
#[derive(Debug)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let parker = Arc::new(Self { woken: Mutex::new(false), changed: Condvar::new() });
        let waker = Waker::from(parker.clone());
        (parker, waker)
    }

    pub(crate) fn park(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !std::mem::take(&mut *woken) {
            woken = self.changed.wait(woken).unwrap();
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}
