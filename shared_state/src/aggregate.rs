//! Aggregate, N:N: every producer publishes its pre-aggregated groups, in the same hash partitions.
//! Consumers claim a partition and merge the chunks of all producers for it. No exchange in front.
//!
//! A claim moves the chunks to the consumer, so memory is released partition by partition. The
//! producers that build the chunks reserve their memory in the query's pool; the state itself owns
//! only a list.
//!
//! ```
//! use gatework_shared_state::{ClaimResult, aggregate};
//! let (sinks, sources) = aggregate::new::<Vec<u32>>("sum", 2, 1, 2);
//! for (n, sink) in (1..).zip(sinks) {
//!     sink.publish(vec![vec![vec![n]], vec![vec![10 * n]]]);
//! }
//! let ClaimResult::Work((0, chunks)) = sources[0].claim() else { unreachable!() };
//! assert_eq!(chunks, [[1], [2]]);
//! ```

use crate::{
    ClaimResult, Gate,
    breaker::{self, BreakerConsumer, BreakerProducer},
};

#[derive(Debug)]
struct Partitions<P> {
    chunks: Vec<Vec<P>>,
    next: usize,
}

impl<P> Default for Partitions<P> {
    fn default() -> Self {
        Self { chunks: Vec::new(), next: 0 }
    }
}

/// The right of one producer task to publish its chunks. Dropping it unpublished aborts the state.
#[derive(Debug)]
pub struct AggregateProducer<P>(BreakerProducer<Partitions<P>>);

/// The right of one consumer task to claim partitions.
#[derive(Debug)]
pub struct AggregateConsumer<P>(BreakerConsumer<Partitions<P>>);

/// Creates a state for `producers` tasks that publish and `consumers` tasks that claim `partitions`
/// partitions.
///
/// # Panics
/// If any of the three is 0.
pub fn new<P>(
    name: &str,
    producers: usize,
    consumers: usize,
    partitions: usize,
) -> (Vec<AggregateProducer<P>>, Vec<AggregateConsumer<P>>) {
    assert!(partitions > 0, "an aggregate has at least one partition");
    let chunks = (0..partitions).map(|_| Vec::new()).collect();
    let (producers, consumers) =
        breaker::new(name, producers, consumers, Partitions { chunks, next: 0 });
    (
        producers.into_iter().map(AggregateProducer).collect(),
        consumers.into_iter().map(AggregateConsumer).collect(),
    )
}

impl<P> AggregateProducer<P> {
    /// Publishes the chunks of every partition: `chunks[p]` belongs to partition `p`.
    ///
    /// # Panics
    /// If `chunks` does not have one entry per partition.
    pub fn publish(self, chunks: Vec<Vec<P>>) {
        self.0.publish(|partitions| {
            assert_eq!(partitions.chunks.len(), chunks.len(), "one list of chunks per partition");
            for (partition, chunks) in partitions.chunks.iter_mut().zip(chunks) {
                partition.extend(chunks);
            }
        });
    }

    /// Returns the gate that is ready once no consumer is left.
    pub fn closed(&self) -> &Gate {
        self.0.closed()
    }
}

impl<P> AggregateConsumer<P> {
    /// Claims the next partition, with the chunks of all producers.
    pub fn claim(&self) -> ClaimResult<(usize, Vec<P>)> {
        self.0.claim(|partitions| {
            let partition = partitions.next;
            let chunks = std::mem::take(partitions.chunks.get_mut(partition)?);
            partitions.next += 1;
            Some((partition, chunks))
        })
    }

    /// Returns the gate that is ready when there is a partition to claim.
    pub fn gate(&self) -> &Gate {
        self.0.gate()
    }
}
