//! Sort, N:N: every sink publishes its sorted runs, sources claim key ranges and merge all runs
//! within theirs. With one range the merge is one source's work and the order is total.
//!
//! Runs are charged to the query's memory by the sinks that sort them. They stay until the last
//! claimed range has been merged, because every range reads every run.

use std::sync::Arc;

use crate::{Claim, Gate, rendezvous::Rendezvous};

#[derive(Debug)]
struct Runs<R> {
    collecting: Vec<R>,
    /// Made from `collecting` by the first claim.
    published: Option<Arc<[R]>>,
    next: usize,
    ranges: usize,
}

impl<R> Default for Runs<R> {
    fn default() -> Self {
        Self { collecting: Vec::new(), published: None, next: 0, ranges: 0 }
    }
}

/// The right of one sink task to publish its runs. Dropping it unpublished aborts the state.
#[derive(Debug)]
pub struct SortSink<R> {
    state: Arc<Rendezvous<Runs<R>>>,
    published: bool,
}

/// The right of one source task to claim ranges.
#[derive(Debug)]
pub struct SortSource<R> {
    state: Arc<Rendezvous<Runs<R>>>,
    instance: usize,
}

/// A state that `sinks` tasks publish runs to and `sources` tasks claim `ranges` from.
///
/// # Panics
/// If any of the three is 0.
pub fn new<R>(
    name: &str,
    sinks: usize,
    sources: usize,
    ranges: usize,
) -> (Vec<SortSink<R>>, Vec<SortSource<R>>) {
    assert!(ranges > 0, "a sort has at least one range");
    let runs = Runs { ranges, ..Runs::default() };
    let state = Arc::new(Rendezvous::new(name, sinks, sources, runs));
    (
        (0..sinks).map(|_| SortSink { state: state.clone(), published: false }).collect(),
        (0..sources).map(|instance| SortSource { state: state.clone(), instance }).collect(),
    )
}

impl<R> SortSink<R> {
    /// Publishes this task's runs, each of them sorted.
    pub fn publish(mut self, runs: Vec<R>) {
        self.published = true;
        self.state.publish(|all| all.collecting.extend(runs));
    }

    /// Ready once no source is left.
    pub fn closed(&self) -> &Gate {
        self.state.closed()
    }
}

impl<R> Drop for SortSink<R> {
    fn drop(&mut self) {
        if !self.published {
            self.state.abort();
        }
    }
}

impl<R> SortSource<R> {
    /// The next range (its number) and all runs.
    pub fn claim(&self) -> Claim<(usize, Arc<[R]>)> {
        self.state.claim(self.instance, |runs| {
            if runs.next == runs.ranges {
                return None;
            }
            let range = runs.next;
            runs.next += 1;
            let all = match runs.published.take() {
                Some(all) => all,
                None => std::mem::take(&mut runs.collecting).into(),
            };
            if runs.next < runs.ranges {
                runs.published = Some(all.clone());
            }
            Some((range, all))
        })
    }
}

impl<R> Drop for SortSource<R> {
    fn drop(&mut self) {
        self.state.leave();
    }
}
