//! Buggy shared states, each caught by the mode that is made for it: one breaker, with one fault at
//! a time.

use std::{collections::VecDeque, sync::Arc};

use gatework_runtime::{
    Error, Result,
    pipeline::{
        Batch, DriverContext, FinishResult, LocalSink, LocalSource, PerTask, SinkResult,
        SourceResult,
    },
};
use gatework_shared_state::{Dependency, DependencyKind, Gate, ManyToOne, StateLock};

use crate::harness::{Case, Harness, HarnessFailure, Mode, numbers};

/// A fault of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A dropped source tells nobody: sinks wait for room forever.
    LeavesSinksWaiting,
    /// There is no `closed` gate: sinks without backpressure read their input to its end.
    ReadsToTheEnd,
    /// A dropped sink counts as finished.
    DropIsFinish,
    /// The source blocks its gate after it has released the lock.
    BlocksAfterUnlock,
    /// The state holds itself.
    HoldsItself,
    /// A sink makes the source's gate ready while it holds the lock.
    WakesUnderLock,
    /// A sink changes another state, which wakes the source, while it holds the lock.
    WakesUnderOuterLock,
}

struct Contents {
    batches: VecDeque<Batch>,
    sinks_left: usize,
    aborted: bool,
    source_dropped: bool,
    /// The state itself, in a state that holds itself.
    itself: Option<Arc<Channel>>,
}

/// A channel from several sinks to one source, with room for one batch.
struct Channel {
    gates: ManyToOne,
    closed: Gate,
    contents: StateLock<Contents>,
    fault: Fault,
}

/// Batches from which on sinks wait.
const ROOM: usize = 1;

struct ChannelSink {
    channel: Arc<Channel>,
    task_index: usize,
    finished: bool,
}

impl ChannelSink {
    fn end(&mut self, finished: bool) {
        let finished = finished || self.channel.fault == Fault::DropIsFinish;
        let mut contents = self.channel.contents.lock();
        contents.sinks_left -= 1;
        contents.aborted |= !finished;
        if contents.sinks_left == 0 || contents.aborted {
            contents.set_always_ready(self.channel.gates.source());
        }
    }
}

impl LocalSink for ChannelSink {
    fn sink(&mut self, batch: Option<Batch>, _task: &DriverContext) -> Result<SinkResult> {
        let channel = &self.channel;
        let mut contents = channel.contents.lock();
        if contents.source_dropped {
            return Ok(match channel.fault {
                Fault::ReadsToTheEnd => SinkResult::NeedInput,
                _ => SinkResult::Finished,
            });
        }
        if let Some(batch) = batch {
            contents.batches.push_back(batch);
            match channel.fault {
                Fault::WakesUnderLock => channel.gates.source().set_ready(),
                Fault::WakesUnderOuterLock => {
                    StateLock::new(()).lock().set_ready(channel.gates.source());
                }
                _ => contents.set_ready(channel.gates.source()),
            }
        }
        if contents.batches.len() >= ROOM && channel.fault != Fault::ReadsToTheEnd {
            let gate = channel.gates.sink(self.task_index);
            gate.block();
            return Ok(SinkResult::Blocked(gate.clone().into()));
        }
        Ok(SinkResult::NeedInput)
    }

    fn finish(&mut self, _task: &DriverContext) -> Result<FinishResult> {
        self.finished = true;
        self.end(true);
        Ok(FinishResult::Done)
    }

    fn closed(&self) -> Option<Gate> {
        match self.channel.fault {
            Fault::LeavesSinksWaiting | Fault::ReadsToTheEnd => None,
            _ => Some(self.channel.closed.clone()),
        }
    }
}

impl Drop for ChannelSink {
    fn drop(&mut self) {
        if !self.finished {
            self.end(false);
        }
    }
}

struct ChannelSource(Arc<Channel>);

impl LocalSource for ChannelSource {
    fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
        let channel = &self.0;
        let mut contents = channel.contents.lock();
        if contents.aborted {
            return Err(Error::ProducerAborted);
        }
        if let Some(batch) = contents.batches.pop_front() {
            for gate in channel.gates.sinks() {
                contents.set_ready(gate);
            }
            return Ok(SourceResult::Batch(batch));
        }
        if contents.sinks_left == 0 {
            return Ok(SourceResult::Finished);
        }
        let gate = channel.gates.source();
        match channel.fault {
            Fault::BlocksAfterUnlock => {
                drop(contents);
                gate.block();
            }
            _ => gate.block(),
        }
        Ok(SourceResult::Blocked(gate.clone().into()))
    }
}

impl Drop for ChannelSource {
    fn drop(&mut self) {
        let channel = &self.0;
        let mut contents = channel.contents.lock();
        contents.source_dropped = true;
        if channel.fault == Fault::LeavesSinksWaiting {
            return;
        }
        contents.set_always_ready(&channel.closed);
        for gate in channel.gates.sinks() {
            contents.set_always_ready(gate);
        }
    }
}

fn channel(case: &Case, fault: Fault) -> (PerTask<ChannelSink>, PerTask<ChannelSource>, usize) {
    let sinks = case.num_tasks();
    // The wake-ups under a lock are counted by gate, for all tests of the process.
    let name = match fault {
        Fault::WakesUnderLock => "waking channel",
        Fault::WakesUnderOuterLock => "nested channel",
        _ => "channel",
    };
    let channel = Arc::new(Channel {
        gates: ManyToOne::new(name, sinks),
        closed: Dependency::blocked("channel closed", DependencyKind::ConsumersGone),
        contents: StateLock::new(Contents {
            batches: VecDeque::new(),
            sinks_left: sinks,
            aborted: false,
            source_dropped: false,
            itself: None,
        }),
        fault,
    });
    if fault == Fault::HoldsItself {
        channel.contents.lock().itself = Some(channel.clone());
    }
    let sink = |task_index| ChannelSink { channel: channel.clone(), task_index, finished: false };
    let sinks = PerTask::new("channel sink", (0..sinks).map(sink));
    (sinks, PerTask::new("channel source", [ChannelSource(channel)]), 1)
}

fn find(fault: Fault, modes: &[Mode]) -> Option<HarnessFailure> {
    let rows = numbers(0..60, 4);
    Harness::breaker(move |case| channel(case, fault))
        .input(rows.clone())
        .expect_rows(&rows)
        .seeds(0..20)
        .run(modes)
        .err()
}

#[test]
fn a_right_channel() {
    assert_eq!(find(Fault::None, Mode::without_memory()), None);
}

#[test]
fn a_source_that_leaves_its_sinks_waiting() {
    let finding = find(Fault::LeavesSinksWaiting, &[Mode::EarlyEnd]).expect("sinks wait forever");
    assert_eq!(finding.mode, Mode::EarlyEnd, "{finding}");
    assert!(finding.message.contains("channel sink"), "{finding}");
}

#[test]
fn a_sink_that_reads_its_input_to_the_end() {
    let finding = find(Fault::ReadsToTheEnd, &[Mode::EarlyEnd]).expect("the input is read on");
    assert!(finding.message.contains("more input, although nobody needs it"), "{finding}");
}

#[test]
fn a_sink_whose_drop_counts_as_its_end() {
    let modes = [Mode::Plain, Mode::Error, Mode::Panic];
    assert_eq!(find(Fault::DropIsFinish, &modes), None, "the query's error covers it");
    let finding = find(Fault::DropIsFinish, &[Mode::DroppedTask]).expect("rows are missing");
    assert!(finding.message.contains("as if they were complete"), "{finding}");
}

#[test]
fn a_wake_up_lost_between_unlock_and_block() {
    let finding = find(Fault::BlocksAfterUnlock, &[Mode::Blocking]).expect("a lost wake-up");
    assert!(finding.message.contains("channel source"), "{finding}");
}

#[test]
fn a_state_that_holds_itself() {
    let finding = find(Fault::HoldsItself, &[Mode::Plain]).expect("the state is alive");
    assert!(finding.message.contains("a cycle of `Arc`s"), "{finding}");
    assert!(finding.message.contains("'channel source'"), "{finding}");
}

#[test]
fn a_wake_up_under_the_lock() {
    let finding = find(Fault::WakesUnderLock, &[Mode::Seeded]).expect("woken under the lock");
    assert!(finding.message.contains("'waking channel source' has woken"), "{finding}");
}

#[test]
fn a_wake_up_under_an_outer_lock() {
    let finding = find(Fault::WakesUnderOuterLock, &[Mode::Seeded]).expect("woken under a lock");
    assert!(finding.message.contains("'nested channel source' has woken"), "{finding}");
}
