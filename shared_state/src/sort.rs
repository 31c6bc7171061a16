//! Sort, N:N: every producer publishes its sorted runs, consumers claim key ranges and merge all
//! runs within theirs. With one key range, a single consumer merges and the order is total. The
//! sort operator uses one; several serve pipelines that are built by hand.
//!
//! The producers that sort the runs reserve their memory in the query's pool. Runs stay until the
//! last claimed range has been merged, because every range reads every run.

use std::sync::Arc;

use crate::{ClaimResult, Gate, breaker::Breaker};

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
pub struct SortProducer<R> {
    state: Arc<Breaker<Runs<R>>>,
    published: bool,
}

/// The right of one consumer task to claim key ranges.
#[derive(Debug)]
pub struct SortConsumer<R> {
    state: Arc<Breaker<Runs<R>>>,
    task_index: usize,
}

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
    let state = Arc::new(Breaker::new(name, producers, consumers, runs));
    (
        (0..producers).map(|_| SortProducer { state: state.clone(), published: false }).collect(),
        (0..consumers)
            .map(|task_index| SortConsumer { state: state.clone(), task_index })
            .collect(),
    )
}

impl<R> SortProducer<R> {
    /// Publishes this task's runs, each of them sorted.
    pub fn publish(mut self, runs: Vec<R>) {
        self.published = true;
        self.state.publish(|all| all.collecting.extend(runs));
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        self.state.closed()
    }
}

impl<R> Drop for SortProducer<R> {
    fn drop(&mut self) {
        if !self.published {
            self.state.abort();
        }
    }
}

impl<R> SortConsumer<R> {
    /// Claims the next key range: its index and all runs.
    pub fn claim(&self) -> ClaimResult<(usize, Arc<[R]>)> {
        self.state.claim(self.task_index, |runs| {
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

impl<R> Drop for SortConsumer<R> {
    fn drop(&mut self) {
        self.state.consumer_dropped();
    }
}
