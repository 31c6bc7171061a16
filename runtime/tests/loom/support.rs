//! Shared by the models: the bounds of a check, a parker, and the check that must fail.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use loom::{
    sync::{Condvar, Mutex},
    thread::JoinHandle,
};

/// Checks all executions of `model` with at most two preemptions.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` may set a higher bound.
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
    let Err(payload) = outcome else { panic!("the model does not detect the fault") };
    let message = payload.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
    let expected = why.iter().any(|why| message.contains(why));
    assert!(expected, "the model failed for another reason: {message}");
}

/// Joins threads that return nothing.
pub(crate) fn join_all(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Blocks a loom thread until it is unparked. An earlier unpark is kept as a token.
#[derive(Debug)]
pub(crate) struct Parker {
    unparked: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    pub(crate) fn new() -> Self {
        Self { unparked: Mutex::new(false), changed: Condvar::new() }
    }

    pub(crate) fn park(&self) {
        let mut unparked = self.unparked.lock().unwrap();
        while !std::mem::take(&mut *unparked) {
            unparked = self.changed.wait(unparked).unwrap();
        }
    }

    /// Returns whether an unpark is kept for the next park.
    pub(crate) fn has_token(&self) -> bool {
        *self.unparked.lock().unwrap()
    }

    pub(crate) fn unpark(&self) {
        *self.unparked.lock().unwrap() = true;
        self.changed.notify_one();
    }
}
