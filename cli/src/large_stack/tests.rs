//! Work on a thread of its own: its result, its stack, its end.

use std::collections::HashSet;
use std::future::{pending, ready};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{end_after_work, run};
use crate::error::Error;

/// Recurses too deeply for a stack of the default size.
fn deep(levels: usize) -> usize {
    let frame = std::hint::black_box([levels; 128]);
    match levels {
        0 => frame[0],
        _ => deep(levels - 1) + usize::from(frame[127] == levels),
    }
}

#[tokio::test]
async fn work_has_a_large_stack() {
    let levels = 100_000;
    let work = async move { Ok(deep(levels)) };
    assert_eq!(run("it", None, work).await.unwrap(), levels);
}

/// The thread of some work.
async fn thread_of(deep: bool) -> thread::ThreadId {
    let work = async move {
        if deep {
            end_after_work();
        }
        Ok(thread::current().id())
    };
    run("it", None, work).await.unwrap()
}

/// Work one after the other is done by the threads that other tests of the process leave, or by
/// one of its own.
#[tokio::test]
async fn threads_work_again_unless_their_stack_was_used() {
    let mut seen = HashSet::new();
    for _ in 0..100 {
        seen.insert(thread_of(false).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(seen.len() < 50, "{} threads for 100 pieces of work", seen.len());
    for _ in 0..10 {
        let ended = thread_of(true).await;
        for _ in 0..10 {
            assert_ne!(thread_of(false).await, ended);
        }
    }
}

#[tokio::test]
async fn an_error_is_passed_on() {
    let failed = run::<()>("it", None, ready(Err(Error::failed("no")))).await.unwrap_err();
    assert_eq!(failed.sentence().unwrap(), "error: no");
}

#[tokio::test]
async fn a_panic_is_an_error() {
    let work = async {
        assert_eq!(1, 2, "on\npurpose");
        Ok(())
    };
    let said = run("opening 't'", None, work).await.unwrap_err().sentence().unwrap();
    assert!(
        said.contains("opening 't' failed because of a bug") && said.contains("on purpose"),
        "{said}"
    );
}

#[tokio::test]
async fn a_thread_that_is_kept_busy_does_not_outlast_the_limit() {
    let (_never, nothing) = mpsc::channel::<()>();
    let busy = async move {
        // Blocks its thread until the test ends.
        let _closed = nothing.recv();
        Ok(())
    };
    let late = run("the work", Some(Duration::from_millis(1)), busy).await.unwrap_err();
    let sentence = late.sentence().unwrap();
    assert!(sentence.contains("the work was ended after 1ms, its time limit"), "{sentence}");
}

#[tokio::test]
async fn work_that_is_dropped_ends() {
    struct DropNotifier(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for DropNotifier {
        fn drop(&mut self) {
            let _gone = self.0.take().unwrap().send(());
        }
    }
    let (sender, dropped) = tokio::sync::oneshot::channel();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let notifier = DropNotifier(Some(sender));
    let work = async move {
        let _notifier = notifier;
        begin.send(()).unwrap();
        pending::<Result<(), Error>>().await
    };
    tokio::select! {
        _ = run("it", None, work) => unreachable!("the work has no end"),
        begun = begun => begun.unwrap(),
    }
    dropped.await.unwrap();
}
