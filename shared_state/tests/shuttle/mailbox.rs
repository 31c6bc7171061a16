//! The smallest shared state: a bounded queue per source over any of the four cardinalities.
//!
//! It shows how a state uses its gates, and, with a [`Fault`], how it must not.

use std::{collections::VecDeque, sync::Arc};

use gatework_shared_state::{
    Gate, ManyToMany, ManyToOne, OneToMany, OneToOne, Payload, PopResult, PushResult, StateLock,
    Wakeups,
};

use crate::{
    stream::{Reach, SinkEnd, SourceEnd},
    support::Item,
};

/// The gates of a cardinality, by task index.
pub(crate) trait Gates: Send + Sync + 'static {
    fn sinks(&self) -> &[Gate];
    fn sources(&self) -> &[Gate];
    fn set_always_ready_all(&self, wakeups: &mut Wakeups);
}

macro_rules! gates {
    ($($name:ident)*) => {$(
        impl Gates for $name {
            fn sinks(&self) -> &[Gate] {
                self.sinks()
            }
            fn sources(&self) -> &[Gate] {
                self.sources()
            }
            fn set_always_ready_all(&self, wakeups: &mut Wakeups) {
                self.set_always_ready_all(wakeups);
            }
        }
    )*};
}

gates!(OneToOne OneToMany ManyToOne ManyToMany);

/// A fault of a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// A source finds no item, releases the lock, and then blocks its gate.
    BlocksOutsideTheLock,
    /// A sink makes the source's gate ready, and then adds its item.
    OpensBeforeTheData,
    /// A source that finds no item leaves its gate ready.
    LeavesTheGateOpen,
    /// A source that makes room makes no sink's gate ready.
    RoomFreesNobody,
    /// The last sink to finish makes no gate ready.
    LastSinkOpensNothing,
    /// A sink that is dropped unfinished makes no gate ready.
    AbortOpensNothing,
    /// A sink that is dropped unfinished counts as finished.
    AbortLooksFinished,
    /// A source that is dropped makes no sink's gate ready.
    LeavingFreesNobody,
    /// A source that is dropped does not subtract the bytes of its unread items.
    LeavingKeepsBytes,
    /// The last sink to finish drops the unread items.
    FinishDropsTheRest,
    /// Sinks are never blocked.
    BudgetIgnored,
}

struct Inner {
    /// Items and their bytes; `None` once the source was dropped.
    queues: Vec<Option<VecDeque<Item>>>,
    bytes: usize,
    sinks_left: usize,
    aborted: bool,
}

struct Mailbox<G> {
    gates: G,
    reach: Reach,
    limit_bytes: usize,
    fault: Fault,
    inner: StateLock<Inner>,
}

pub(crate) struct MailSink<G: Gates> {
    state: Arc<Mailbox<G>>,
    task_index: usize,
    finished: bool,
}

pub(crate) struct MailSource<G: Gates> {
    state: Arc<Mailbox<G>>,
    task_index: usize,
}

/// A mailbox with a limit of `limit_bytes`, plus the item that exceeds it.
pub(crate) fn new<G: Gates>(
    gates: G,
    reach: Reach,
    limit_bytes: usize,
    fault: Fault,
) -> (Vec<MailSink<G>>, Vec<MailSource<G>>) {
    let (sinks, sources) = (gates.sinks().len(), gates.sources().len());
    let inner = Inner {
        queues: vec![Some(VecDeque::new()); sources],
        bytes: 0,
        sinks_left: sinks,
        aborted: false,
    };
    let state =
        Arc::new(Mailbox { gates, reach, limit_bytes, fault, inner: StateLock::new(inner) });
    let sink = |task_index| MailSink { state: state.clone(), task_index, finished: false };
    let source = |task_index| MailSource { state: state.clone(), task_index };
    ((0..sinks).map(sink).collect(), (0..sources).map(source).collect())
}

impl<G: Gates> Mailbox<G> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn release(&self, inner: &mut Inner, bytes: usize, wakeups: &mut Wakeups) {
        inner.bytes -= bytes;
        if inner.bytes < self.limit_bytes {
            self.gates.sinks().iter().for_each(|gate| gate.set_ready_deferred(wakeups));
        }
    }
}

impl<G: Gates> SinkEnd for MailSink<G> {
    fn push(&mut self, item: Item) -> PushResult {
        let state = self.state.clone();
        let sources = state.gates.sources();
        let targets: Vec<_> = match state.reach {
            Reach::Copied => (0..sources.len()).collect(),
            _ => vec![item.id().1 % sources.len()],
        };
        let early = state.has(Fault::OpensBeforeTheData);
        if early {
            targets.iter().for_each(|target| sources[*target].set_ready());
        }
        let mut guard = state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.aborted || inner.queues.iter().all(Option::is_none) {
            return PushResult::Closed;
        }
        for target in targets {
            if let Some(queue) = &mut inner.queues[target] {
                queue.push_back(item.clone());
                inner.bytes += item.bytes();
                if !early {
                    sources[target].set_ready_deferred(wakeups);
                }
            }
        }
        if inner.bytes < state.limit_bytes || state.has(Fault::BudgetIgnored) {
            return PushResult::Accepted;
        }
        let gate = &state.gates.sinks()[self.task_index];
        gate.block();
        PushResult::Backpressure(gate.clone())
    }

    fn finish(mut self) {
        self.leave(true);
    }
}

impl<G: Gates> MailSink<G> {
    fn leave(&mut self, finished: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        inner.sinks_left -= 1;
        inner.aborted |= !finished && !self.state.has(Fault::AbortLooksFinished);
        let last = inner.sinks_left == 0;
        if finished && last && self.state.has(Fault::FinishDropsTheRest) {
            inner.queues.iter_mut().flatten().for_each(VecDeque::clear);
        }
        let silent = if finished {
            self.state.has(Fault::LastSinkOpensNothing)
        } else {
            self.state.has(Fault::AbortOpensNothing)
        };
        if (last || inner.aborted) && !silent {
            self.state.gates.set_always_ready_all(wakeups);
        }
    }
}

impl<G: Gates> Drop for MailSink<G> {
    fn drop(&mut self) {
        self.leave(false);
    }
}

impl<G: Gates> SourceEnd for MailSource<G> {
    fn take(&mut self) -> PopResult<Item> {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        if inner.aborted {
            return PopResult::Aborted;
        }
        if let Some(item) = inner.queues[self.task_index].as_mut().and_then(VecDeque::pop_front) {
            if self.state.has(Fault::RoomFreesNobody) {
                inner.bytes -= item.bytes();
            } else {
                self.state.release(inner, item.bytes(), wakeups);
            }
            return PopResult::Item(item);
        }
        if inner.sinks_left == 0 {
            return PopResult::Finished;
        }
        let gate = &self.state.gates.sources()[self.task_index];
        if self.state.has(Fault::BlocksOutsideTheLock) {
            drop(guard);
        }
        if !self.state.has(Fault::LeavesTheGateOpen) {
            gate.block();
        }
        PopResult::Blocked(gate.clone())
    }
}

impl<G: Gates> Drop for MailSource<G> {
    fn drop(&mut self) {
        let mut guard = self.state.inner.lock();
        let (inner, wakeups) = guard.parts();
        let unread = inner.queues[self.task_index].take().unwrap_or_default();
        let bytes = unread.iter().map(Payload::bytes).sum();
        if self.state.has(Fault::LeavingFreesNobody) {
            inner.bytes -= bytes;
            return;
        }
        if !self.state.has(Fault::LeavingKeepsBytes) {
            self.state.release(inner, bytes, wakeups);
        }
        if inner.queues.iter().all(Option::is_none) {
            let sinks = self.state.gates.sinks();
            sinks.iter().for_each(|gate| gate.set_always_ready_deferred(wakeups));
        }
    }
}
