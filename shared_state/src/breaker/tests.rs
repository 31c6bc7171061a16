//! Contributions that are not published: after a panic, an abort, and the end of all consumers.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use super::new;
use crate::ClaimResult;

#[test]
fn a_publication_that_panics_aborts() {
    let (mut producers, consumers) = new("breaker", 2, 1, Vec::new());
    let first = producers.remove(0);
    let publish = AssertUnwindSafe(|| {
        first.publish(|numbers| {
            numbers.push(1);
            panic::resume_unwind(Box::new(()));
        });
    });
    assert!(panic::catch_unwind(publish).is_err());
    assert!(consumers[0].gate().is_ready());
    producers.remove(0).publish(|_| panic!("published after an abort"));
    assert!(matches!(consumers[0].claim(Vec::pop), ClaimResult::Aborted));
}

#[test]
fn without_consumers_nothing_is_kept() {
    let (mut producers, mut consumers) = new("breaker", 2, 2, Vec::new());
    let item = Arc::new(());
    let published = item.clone();
    producers.remove(0).publish(|items| items.push(published));
    consumers.remove(0);
    assert!(!producers[0].closed().is_ready() && Arc::strong_count(&item) == 2);
    consumers.remove(0);
    assert!(producers[0].closed().is_ready() && Arc::strong_count(&item) == 1);
    producers.remove(0).publish(|_| panic!("published without a consumer"));
}
