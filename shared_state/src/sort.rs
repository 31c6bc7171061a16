//! Sort, N:N: every producer publishes its sorted runs, consumers claim key ranges and merge all
//! runs within theirs. With one key range, a single consumer merges and the order is total. The
//! sort operator uses one; several serve pipelines that are built by hand.
//!
//! The producers that sort the runs reserve their memory in the query's pool. Runs stay until the
//! last claimed range has been merged, because every range reads every run.

use std::sync::Arc;

use crate::{
    ClaimResult, Gate,
    breaker::{self, BreakerConsumer, BreakerProducer},
};

#[derive(Debug)]
struct Runs<R> {
    collecting: Vec<R>,
    /// Made from `collecting` by the first claim.
    published: Option<Arc<[R]>>,
    next: usize,
    key_ranges: usize,
}

impl<R> Default for Runs<R> {
    fn default() -> Self {
        Self { collecting: Vec::new(), published: None, next: 0, key_ranges: 0 }
    }
}

/// The right of one producer task to publish its runs. Dropping it unpublished aborts the state.
#[derive(Debug)]
pub struct SortProducer<R>(BreakerProducer<Runs<R>>);

/// The right of one consumer task to claim key ranges.
#[derive(Debug)]
pub struct SortConsumer<R>(BreakerConsumer<Runs<R>>);

/// Creates a state for `producers` tasks that publish runs and `consumers` tasks that claim
/// `key_ranges` key ranges.
///
/// # Panics
/// If any of the three is 0.
pub fn new<R>(
    name: &str,
    producers: usize,
    consumers: usize,
    key_ranges: usize,
) -> (Vec<SortProducer<R>>, Vec<SortConsumer<R>>) {
    assert!(key_ranges > 0, "a sort has at least one key range");
    let runs = Runs { key_ranges, ..Runs::default() };
    let (producers, consumers) = breaker::new(name, producers, consumers, runs);
    (
        producers.into_iter().map(SortProducer).collect(),
        consumers.into_iter().map(SortConsumer).collect(),
    )
}

impl<R> SortProducer<R> {
    /// Publishes this task's runs, each of them sorted.
    pub fn publish(self, runs: Vec<R>) {
        self.0.publish(|all| all.collecting.extend(runs));
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<R> SortConsumer<R> {
    /// Claims the next key range: its index and all runs.
    pub fn claim(&self) -> ClaimResult<(usize, Arc<[R]>)> {
        self.0.claim(|runs| {
            if runs.next == runs.key_ranges {
                return None;
            }
            let range = runs.next;
            runs.next += 1;
            let all = match runs.published.take() {
                Some(all) => all,
                None => std::mem::take(&mut runs.collecting).into(),
            };
            if runs.next < runs.key_ranges {
                runs.published = Some(all.clone());
            }
            Some((range, all))
        })
    }
}
