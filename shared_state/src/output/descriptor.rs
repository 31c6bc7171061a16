//! The set of an output's buffers, in versions: the number of readers may be unknown when the first
//! row is written. (Presto's `OutputBuffers`.)

use std::{collections::BTreeMap, fmt};

/// The id of a buffer: the number of the task that reads it.
pub type BufferId = usize;

/// How an output distributes its pages to its buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Each page to the buffer of its partition. All buffers are known before the first page.
    Partitioned,
    /// Each page to every buffer, including buffers that are added later.
    Broadcast,
    /// Each page to one buffer: that of the first reader to ask.
    Arbitrary,
}

/// A violation of the output protocol: a fault of the code that links stages, not of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub(super) String);

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProtocolError {}

/// The known buffers, each with its partition, and whether more will be added.
///
/// ```
/// use gatework_shared_state::output::{OutputBuffers, OutputKind};
/// # fn main() -> Result<(), gatework_shared_state::output::ProtocolError> {
/// let none = OutputBuffers::new(OutputKind::Broadcast);
/// let two = none.with_buffer(0, 0)?.with_buffer(1, 0)?.with_no_more_buffers();
/// assert_eq!((two.version(), two.len()), (3, 2));
/// assert!(none.check_transition(&two).is_ok());
/// assert!(two.with_buffer(2, 0).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputBuffers {
    kind: OutputKind,
    version: u64,
    no_more_buffers: bool,
    partitions: BTreeMap<BufferId, usize>,
}

impl OutputBuffers {
    /// Creates an empty set to which buffers will be added.
    pub fn new(kind: OutputKind) -> Self {
        Self { kind, version: 0, no_more_buffers: false, partitions: BTreeMap::new() }
    }

    /// Creates the final set of a partitioned output: one buffer per partition.
    pub fn with_partitions(count: usize) -> Self {
        let partitions = (0..count).map(|partition| (partition, partition)).collect();
        Self { kind: OutputKind::Partitioned, version: 1, no_more_buffers: true, partitions }
    }

    /// Returns how pages are distributed to buffers.
    pub fn kind(&self) -> OutputKind {
        self.kind
    }

    /// Returns the version, which grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns whether no more buffers will be added.
    pub fn no_more_buffers(&self) -> bool {
        self.no_more_buffers
    }

    /// Returns the number of buffers.
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Returns whether there is no buffer yet.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Returns the ids of the buffers.
    pub fn ids(&self) -> impl Iterator<Item = BufferId> {
        self.partitions.keys().copied()
    }

    /// Returns whether buffer `id` is known.
    pub fn contains(&self, id: BufferId) -> bool {
        self.partitions.contains_key(&id)
    }

    /// Returns the set with buffer `id` added, or an unchanged copy if the buffer is known.
    ///
    /// # Errors
    /// If the buffer is known for another partition, or no more buffers may be added.
    pub fn with_buffer(&self, id: BufferId, partition: usize) -> Result<Self, ProtocolError> {
        match self.partitions.get(&id) {
            Some(known) if *known == partition => return Ok(self.clone()),
            Some(known) => {
                return Err(ProtocolError(format!(
                    "buffer {id} is for partition {known}, not {partition}"
                )));
            }
            None if self.no_more_buffers => {
                return Err(ProtocolError(format!("buffer {id} comes after the last one")));
            }
            None => {}
        }
        let mut more = self.clone();
        more.partitions.insert(id, partition);
        more.version += 1;
        Ok(more)
    }

    /// Returns the set, marked as final.
    #[must_use]
    pub fn with_no_more_buffers(&self) -> Self {
        match self.no_more_buffers {
            true => self.clone(),
            false => Self { no_more_buffers: true, version: self.version + 1, ..self.clone() },
        }
    }

    /// Checks that `newer` may follow this version: it must not revoke anything.
    ///
    /// # Errors
    /// If `newer` may not follow.
    pub fn check_transition(&self, newer: &Self) -> Result<(), ProtocolError> {
        let fault = |what: &str| Err(ProtocolError(format!("{what}: {self:?}, then {newer:?}")));
        if self.kind != newer.kind {
            return fault("the kind of an output cannot change");
        }
        if newer.version < self.version {
            return fault("the version of an output cannot decrease");
        }
        if (self.no_more_buffers || newer.version == self.version) && self != newer {
            return fault("one version of an output has two contents");
        }
        let kept = |(id, partition)| newer.partitions.get(id) == Some(partition);
        match self.partitions.iter().all(kept) {
            true => Ok(()),
            false => fault("a buffer of an output cannot be removed or changed"),
        }
    }
}
