//! The thread that makes gates ready; it is neither a worker nor the reader of the result.
//!
//! The thread starts with the first gate and ends when the last query that uses the chaos is
//! dropped. It is never joined, because the thread itself may drop the chaos, through a waker that
//! it held.

use std::{
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use gatework_shared_state::{Dependency, DependencyKind, Gate};

use crate::scheduler::SplitMix64;

#[derive(Debug)]
pub(super) struct GateOpener {
    seed: u64,
    /// The channel to the thread; `None` if the thread could not be spawned.
    gates: OnceLock<Option<Sender<Gate>>>,
}

impl GateOpener {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, gates: OnceLock::new() }
    }

    /// Returns a blocked gate that the thread will make ready.
    pub(super) fn blocked_gate(&self, name: String) -> Gate {
        let gate = Dependency::blocked(name, DependencyKind::External);
        let sender = self.gates.get_or_init(|| {
            let (sender, receiver) = channel();
            let rng = SplitMix64::new(self.seed);
            let thread = thread::Builder::new().name("gatework-chaos".into());
            thread.spawn(move || open_all(&receiver, rng)).ok().map(|_detached| sender)
        });
        let sent = sender.as_ref().is_some_and(|sender| sender.send(gate.clone()).is_ok());
        if !sent {
            // Without the thread, a blocked gate would hang the query.
            gate.set_ready();
        }
        gate
    }
}

/// Makes all gates received so far ready, in random order.
fn open_all(receiver: &Receiver<Gate>, mut rng: SplitMix64) {
    while let Ok(first) = receiver.recv() {
        let mut gates = vec![first];
        gates.extend(receiver.try_iter());
        while !gates.is_empty() {
            let pick = rng.next_below(gates.len());
            gates.swap_remove(pick).set_ready();
        }
    }
}
