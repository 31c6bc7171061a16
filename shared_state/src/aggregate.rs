//! Aggregate, N:N: every sink publishes its pre-aggregated groups cut into the same units (hash
//! partitions), sources claim a unit and merge what all sinks had for it. No exchange in front.
//!
//! The parts are moved to whoever claims them, so memory is given back unit by unit. Their bytes are
//! charged to the query's memory by the sinks that build them; the state itself holds only a list.
//!
//! ```
//! use gatework_shared_state::{Claim, aggregate};
//! let (sinks, sources) = aggregate::new::<Vec<u32>>("sum", 2, 1, 2);
//! for (n, sink) in (1..).zip(sinks) {
//!     sink.publish(vec![vec![vec![n]], vec![vec![10 * n]]]);
//! }
//! let Claim::Unit((0, parts)) = sources[0].claim() else { unreachable!() };
//! assert_eq!(parts, [[1], [2]]);
//! ```

use std::sync::Arc;

use crate::{Claim, Gate, rendezvous::Rendezvous};

#[derive(Debug)]
struct Units<P> {
    parts: Vec<Vec<P>>,
    next: usize,
}

impl<P> Default for Units<P> {
    fn default() -> Self {
        Self { parts: Vec::new(), next: 0 }
    }
}

/// The right of one sink task to publish its parts. Dropping it unpublished aborts the state.
#[derive(Debug)]
pub struct AggregateSink<P> {
    state: Arc<Rendezvous<Units<P>>>,
    published: bool,
}

/// The right of one source task to claim units.
#[derive(Debug)]
pub struct AggregateSource<P> {
    state: Arc<Rendezvous<Units<P>>>,
    instance: usize,
}

/// A state that `sinks` tasks publish to and `sources` tasks claim `units` from.
///
/// # Panics
/// If any of the three is 0.
pub fn new<P>(
    name: &str,
    sinks: usize,
    sources: usize,
    units: usize,
) -> (Vec<AggregateSink<P>>, Vec<AggregateSource<P>>) {
    assert!(units > 0, "an aggregate has at least one unit");
    let parts = (0..units).map(|_| Vec::new()).collect();
    let state = Arc::new(Rendezvous::new(name, sinks, sources, Units { parts, next: 0 }));
    (
        (0..sinks).map(|_| AggregateSink { state: state.clone(), published: false }).collect(),
        (0..sources).map(|instance| AggregateSource { state: state.clone(), instance }).collect(),
    )
}

impl<P> AggregateSink<P> {
    /// Publishes the parts of every unit: `parts[u]` belongs to unit `u`.
    ///
    /// # Panics
    /// If `parts` does not have one entry per unit.
    pub fn publish(mut self, parts: Vec<Vec<P>>) {
        self.published = true;
        self.state.publish(|units| {
            assert_eq!(units.parts.len(), parts.len(), "one list of parts per unit");
            for (unit, parts) in units.parts.iter_mut().zip(parts) {
                unit.extend(parts);
            }
        });
    }

    /// Ready once no source is left.
    pub fn closed(&self) -> &Gate {
        self.state.closed()
    }
}

impl<P> Drop for AggregateSink<P> {
    fn drop(&mut self) {
        if !self.published {
            self.state.abort();
        }
    }
}

impl<P> AggregateSource<P> {
    /// The next unit, with the parts of all sinks.
    pub fn claim(&self) -> Claim<(usize, Vec<P>)> {
        self.state.claim(self.instance, |units| {
            let unit = units.next;
            let parts = std::mem::take(units.parts.get_mut(unit)?);
            units.next += 1;
            Some((unit, parts))
        })
    }

    /// The gate that opens when there is something to claim.
    pub fn gate(&self) -> &Gate {
        self.state.gates().source(self.instance)
    }
}

impl<P> Drop for AggregateSource<P> {
    fn drop(&mut self) {
        self.state.leave();
    }
}
