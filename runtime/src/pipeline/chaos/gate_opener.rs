//! The foreign thread that opens gates: neither a worker nor the reader of the result.
//!
//! It starts with the first gate and ends when the last query that uses the chaos is gone. Nobody
//! joins it, because whoever drops the chaos may be the thread itself, through a waker it held.

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
    /// To the thread; `None` if the system refused one.
    gates: OnceLock<Option<Sender<Gate>>>,
}

impl GateOpener {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, gates: OnceLock::new() }
    }

    /// A gate that the thread has been told to open.
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
            // Without a thread to open it, a shut gate would hang the query.
            gate.set_ready();
        }
        gate
    }
}

/// Opens what has come together meanwhile, in random order.
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
