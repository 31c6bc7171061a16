//! Which buffers an output has, in versions: the number of readers may not be known when the first row is
//! written. (Presto's `OutputBuffers`.)

use std::{collections::BTreeMap, fmt};

/// The number of a buffer: that of the task that reads it.
pub type BufferId = usize;

/// How an output gives its pages to its buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Each page to the buffer it was made for. All buffers are known before the first page.
    Partitioned,
    /// Each page to every buffer, also to those that come later.
    Broadcast,
    /// Each page to one buffer: that of the reader who asks first.
    Arbitrary,
}

/// What cannot be done with an output: a fault of whoever links stages, not of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub(super) String);

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProtocolError {}

/// The buffers that are known of, each with its partition, and whether there will be others.
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
    /// No buffers, and there will be some.
    pub fn new(kind: OutputKind) -> Self {
        Self { kind, version: 0, no_more_buffers: false, partitions: BTreeMap::new() }
    }

    /// All buffers of a partitioned output: as many as there are partitions.
    pub fn with_partitions(count: usize) -> Self {
        let partitions = (0..count).map(|partition| (partition, partition)).collect();
        Self { kind: OutputKind::Partitioned, version: 1, no_more_buffers: true, partitions }
    }

    /// How pages are given to buffers.
    pub fn kind(&self) -> OutputKind {
        self.kind
    }

    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether there will be no others.
    pub fn no_more_buffers(&self) -> bool {
        self.no_more_buffers
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Those there are.
    pub fn ids(&self) -> impl Iterator<Item = BufferId> {
        self.partitions.keys().copied()
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: BufferId) -> bool {
        self.partitions.contains_key(&id)
    }

    /// With one more; the same, if it is one of them.
    ///
    /// # Errors
    /// If it is there for another partition, or there are to be no more.
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

    /// The same, and there will be no others.
    #[must_use]
    pub fn with_no_more_buffers(&self) -> Self {
        match self.no_more_buffers {
            true => self.clone(),
            false => Self { no_more_buffers: true, version: self.version + 1, ..self.clone() },
        }
    }

    /// Whether `newer` may follow: nothing that was said is taken back.
    ///
    /// # Errors
    /// If it may not.
    pub fn check_transition(&self, newer: &Self) -> Result<(), ProtocolError> {
        let fault = |what: &str| Err(ProtocolError(format!("{what}: {self:?} and then {newer:?}")));
        if self.kind != newer.kind {
            return fault("an output changes its kind");
        }
        if newer.version < self.version {
            return fault("an output goes back to an older version");
        }
        if (self.no_more_buffers || newer.version == self.version) && self != newer {
            return fault("a version of an output says two things");
        }
        let kept = |(id, partition)| newer.partitions.get(id) == Some(partition);
        match self.partitions.iter().all(kept) {
            true => Ok(()),
            false => fault("an output loses a buffer"),
        }
    }
}
