//! Rules H and I of `stages/RULES.md`; their numbers are in the names.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{ExchangeClient, Output, OutputBuffers, OutputKind, OutputState, OutputWriter, Read};
use crate::{Budget, Dependency, DependencyKind, Gate, Give, Payload, Take};

/// A page of so many bytes, which counts its copies while they live.
#[derive(Debug)]
struct Item {
    number: usize,
    bytes: usize,
    alive: Arc<AtomicUsize>,
}

impl Clone for Item {
    fn clone(&self) -> Self {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Self { alive: self.alive.clone(), ..*self }
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Payload for Item {
    fn rows(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

struct Bench {
    output: Output<Item>,
    writer: Option<OutputWriter<Item>>,
    alive: Arc<AtomicUsize>,
    next: usize,
    gate: Gate,
}

fn gate() -> Gate {
    Dependency::blocked("reader", DependencyKind::Source)
}

impl Bench {
    fn new(descriptor: &OutputBuffers, limit: usize) -> Self {
        let (output, mut writers) =
            Output::new("test", descriptor.clone(), Budget::new(limit), 1).unwrap();
        let (writer, alive) = (writers.pop(), Arc::default());
        Self { output, writer, alive, next: 0, gate: gate() }
    }

    fn push(&mut self, partition: usize, bytes: usize) -> Give {
        self.alive.fetch_add(1, Ordering::Relaxed);
        let item = Item { number: self.next, bytes, alive: self.alive.clone() };
        self.next += 1;
        self.writer.as_mut().unwrap().push(partition, item)
    }

    fn pages(&mut self, partition: usize, count: usize) {
        for _ in 0..count {
            self.push(partition, 10);
        }
    }

    fn no_more_pages(&mut self) {
        self.writer.take().unwrap().finish();
    }

    fn ask(&self, id: usize, token: u64, most: usize) -> Read<Item> {
        self.gate.block();
        self.output.read(id, token, most, &self.gate).unwrap()
    }

    /// The numbers of the pages from `token` on, and the next token.
    fn read(&self, id: usize, token: u64, most: usize) -> (Vec<usize>, u64) {
        match self.ask(id, token, most) {
            Read::Pages { pages, next } => (pages.iter().map(|page| page.number).collect(), next),
            other => panic!("{other:?}"),
        }
    }

    fn is_pending(&self, id: usize, token: u64) -> bool {
        matches!(self.ask(id, token, 100), Read::Pending)
    }

    fn is_complete(&self, id: usize, token: u64) -> bool {
        matches!(self.ask(id, token, 100), Read::Complete)
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

fn partitioned(count: usize) -> OutputBuffers {
    OutputBuffers::of_partitions(count)
}

fn readers(kind: OutputKind, count: usize) -> OutputBuffers {
    let none = OutputBuffers::new(kind);
    (0..count).fold(none, |known, id| {
        let partition = if kind == OutputKind::Arbitrary { id } else { 0 };
        known.with_buffer(id, partition).unwrap()
    })
}

#[test]
fn h2_what_is_said_twice_is_said_once() {
    let one = readers(OutputKind::Broadcast, 1);
    assert_eq!(one.with_buffer(0, 0).unwrap(), one);
    assert!(one.with_buffer(0, 1).is_err());
    assert_eq!(one.with_buffer(1, 0).unwrap().version(), one.version() + 1);
    let all = one.with_no_more();
    assert_eq!((all.version(), all.with_no_more()), (one.version() + 1, all.clone()));
    assert!(all.with_buffer(1, 0).is_err());
    assert_eq!(all.with_buffer(0, 0).unwrap(), all);
}

#[test]
fn h3_nothing_is_taken_back() {
    let none = OutputBuffers::new(OutputKind::Broadcast);
    let (one, other) = (none.with_buffer(0, 0).unwrap(), none.with_buffer(1, 0).unwrap());
    assert!(none.check_transition(&one).is_ok() && one.check_transition(&one).is_ok());
    // Another kind, an older version, the same version that says something else, a buffer lost or changed.
    assert!(none.check_transition(&OutputBuffers::new(OutputKind::Arbitrary)).is_err());
    assert!(one.check_transition(&none).is_err());
    assert!(one.check_transition(&other).is_err());
    assert!(one.check_transition(&other.with_buffer(2, 0).unwrap()).is_err());
    let last = one.with_no_more();
    assert!(last.check_transition(&last).is_ok());
    let late = one.with_buffer(1, 0).unwrap().with_buffer(2, 0).unwrap();
    assert!(last.check_transition(&late).is_err());
}

#[test]
fn i1_a_read_acknowledges_what_comes_before() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    bench.pages(0, 3);
    assert_eq!(bench.read(0, 0, 1000), (vec![0, 1, 2], 3));
    // Read is not acknowledged.
    assert_eq!((bench.output.bytes(), bench.alive()), (30, 3));
    assert_eq!(bench.read(0, 0, 1000), (vec![0, 1, 2], 3));
    assert_eq!(bench.read(0, 1, 1000), (vec![1, 2], 3));
    assert_eq!((bench.output.bytes(), bench.alive()), (20, 2));
    assert!(bench.is_pending(0, 3));
    assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
    assert_eq!(bench.output.flow().rows_out, 3, "a page that is read again is not more rows");
}

#[test]
fn i2_at_least_one_page_and_no_more_than_fit() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    bench.pages(0, 3);
    assert_eq!(bench.read(0, 0, 1), (vec![0], 1));
    assert_eq!(bench.read(0, 0, 20), (vec![0, 1], 2));
    assert_eq!(bench.read(0, 0, 29), (vec![0, 1], 2));
}

/// A gate stands for the pending question, so the older of two is told that it was answered by opening its own.
#[test]
fn i3_a_newer_question_answers_an_older_one() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    let (older, newer) = (gate(), gate());
    assert!(matches!(bench.output.read(0, 0, 100, &older), Ok(Read::Pending)));
    assert!(!older.is_ready());
    assert!(matches!(bench.output.read(0, 0, 100, &newer), Ok(Read::Pending)));
    assert!(older.is_ready() && !newer.is_ready());
    bench.pages(0, 1);
    assert!(newer.is_ready());
}

#[test]
fn i4_an_old_place_is_answered_with_nothing_and_a_wrong_one_refused() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    bench.pages(0, 2);
    assert_eq!(bench.read(0, 1, 1000), (vec![1], 2));
    assert!(matches!(bench.ask(0, 0, 100), Read::Stale));
    assert!(bench.output.read(0, 3, 100, &bench.gate).is_err());
    assert_eq!(bench.read(0, 1, 1000), (vec![1], 2), "a refused question changes nothing");
}

#[test]
fn i5_complete_does_not_close() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    bench.pages(0, 1);
    bench.no_more_pages();
    assert_eq!(bench.read(0, 0, 100), (vec![0], 1));
    assert!(bench.is_complete(0, 1) && bench.is_complete(0, 1));
    assert_eq!(bench.output.state(), OutputState::Flushing);
    bench.output.abort(0);
    assert_eq!(bench.output.state(), OutputState::Finished);
    assert!(bench.output.ended().is_ready());
}

#[test]
fn i6_after_the_end_there_is_nothing() {
    let mut bench = Bench::new(&partitioned(2), 1000);
    let pending = gate();
    assert!(matches!(bench.output.read(0, 0, 100, &pending), Ok(Read::Pending)));
    bench.pages(1, 2);
    bench.output.abort(0);
    assert!(pending.is_ready());
    assert!(bench.is_complete(0, 0));
    bench.output.destroy();
    assert!(bench.is_complete(1, 0));
    assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
    assert_eq!(bench.output.flow().rows_dropped, 2);
}

#[test]
fn i7_pages_are_acknowledged_early() {
    let mut bench = Bench::new(&partitioned(1), 1000);
    bench.pages(0, 2);
    bench.output.acknowledge(0, 1).unwrap();
    assert_eq!(bench.output.bytes(), 10);
    bench.output.acknowledge(0, 1).unwrap();
    bench.output.acknowledge(0, 0).unwrap();
    assert_eq!(bench.output.bytes(), 10);
    assert!(bench.output.acknowledge(0, 3).is_err());
    assert_eq!(bench.read(0, 1, 100), (vec![1], 2));
}

#[test]
fn i8_what_comes_too_late_is_dropped() {
    let mut bench = Bench::new(&partitioned(2), 1000);
    bench.output.abort(0);
    assert!(matches!(bench.push(0, 10), Give::Accepted), "the other reader is there");
    assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
    bench.output.abort(1);
    assert!(matches!(bench.push(1, 10), Give::Closed));
    assert_eq!((bench.output.flow().rows_dropped, bench.alive()), (2, 0));
}

/// I-9, and memory of the broadcast table: a page of several buffers counts once, until the last lets go.
#[test]
fn i9_a_page_is_counted_once_and_freed_by_the_last() {
    let mut bench = Bench::new(&readers(OutputKind::Broadcast, 3).with_no_more(), 1000);
    bench.pages(0, 1);
    assert_eq!((bench.output.bytes(), bench.alive()), (10, 1));
    for id in 0..3 {
        assert_eq!(bench.output.bytes(), 10, "before reader {id}");
        assert_eq!(bench.read(id, 0, 100), (vec![0], 1));
        bench.output.acknowledge(id, 1).unwrap();
    }
    assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
}

/// As in Velox, not in Presto: an output of exactly its budget is full, and has room as soon as it is below.
#[test]
fn a_full_output_asks_its_writers_to_wait() {
    let mut bench = Bench::new(&partitioned(2), 20);
    assert!(matches!(bench.push(0, 19), Give::Accepted));
    let Give::Full(room) = bench.push(1, 1) else { panic!("there is room") };
    assert!(bench.output.is_overutilized() && !room.is_ready());
    assert_eq!(bench.read(1, 0, 100), (vec![1], 1));
    assert!(!room.is_ready(), "a page that is not acknowledged counts");
    bench.output.acknowledge(1, 1).unwrap();
    assert!(room.is_ready() && !bench.output.is_overutilized());
    // A page beyond the budget is taken; what ends lets the writer go.
    let Give::Full(room) = bench.push(0, 1000) else { panic!("there is room") };
    bench.output.destroy();
    assert!(room.is_ready());
    assert!(matches!(bench.writer.as_mut().unwrap().room(), Give::Closed));
}

#[test]
fn table_a_partitioned_output_is_given_all_buffers() {
    let unknown = OutputBuffers::new(OutputKind::Partitioned);
    assert!(Output::<Item>::new("test", unknown, Budget::new(1), 1).is_err());
    let bench = Bench::new(&partitioned(2), 100);
    assert!(bench.output.read(2, 0, 100, &bench.gate).is_err());
    assert_eq!(bench.output.state(), OutputState::NoMoreBuffers);
}

#[test]
fn table_a_late_reader_of_a_broadcast_gets_all_pages() {
    let mut bench = Bench::new(&readers(OutputKind::Broadcast, 1), 1000);
    bench.pages(0, 2);
    assert_eq!(bench.read(0, 0, 100).0, [0, 1]);
    bench.output.acknowledge(0, 2).unwrap();
    // I-14: pages are kept for readers that may come.
    assert_eq!(bench.output.bytes(), 20);
    bench.output.set_buffers(&readers(OutputKind::Broadcast, 2).with_no_more()).unwrap();
    assert_eq!(bench.read(1, 0, 100), (vec![0, 1], 2));
    bench.output.acknowledge(1, 2).unwrap();
    assert_eq!(bench.output.bytes(), 0);
}

#[test]
fn table_readers_of_an_arbitrary_output_share_its_pages() {
    let mut bench = Bench::new(&readers(OutputKind::Arbitrary, 1), 1000);
    bench.pages(0, 2);
    assert_eq!(bench.read(0, 0, 10), (vec![0], 1));
    bench.output.set_buffers(&readers(OutputKind::Arbitrary, 2)).unwrap();
    assert_eq!(bench.read(1, 0, 10), (vec![1], 1));
    assert!(bench.is_pending(0, 1) && bench.is_pending(1, 1));
    assert!(!bench.output.is_overutilized() && !bench.output.overutilized().is_ready());
    bench.push(0, 500);
    assert!(bench.output.is_overutilized() && bench.output.overutilized().is_ready(), "half full");
    assert_eq!(bench.read(0, 1, 1000).0, [2]);
    bench.output.acknowledge(0, 2).unwrap();
    assert!(!bench.output.is_overutilized() && !bench.output.overutilized().is_ready());
    bench.no_more_pages();
    assert!(bench.output.is_overutilized() && bench.output.overutilized().is_ready());
}

#[test]
fn table_a_reader_may_come_before_it_is_declared() {
    let mut bench = Bench::new(&readers(OutputKind::Broadcast, 1), 1000);
    bench.pages(0, 1);
    assert_eq!(bench.read(7, 0, 100).0, [0]);
    let without = readers(OutputKind::Broadcast, 1).with_no_more();
    let error = bench.output.set_buffers(&without).unwrap_err().to_string();
    assert!(error.contains("buffer 7 is read"), "{error}");
    let known = readers(OutputKind::Broadcast, 1).with_buffer(7, 0).unwrap().with_no_more();
    bench.output.set_buffers(&known).unwrap();
    assert!(bench.output.read(8, 0, 100, &bench.gate).is_err());
}

#[test]
fn table_without_readers_only_an_arbitrary_output_goes_on() {
    let broadcast = Bench::new(&OutputBuffers::new(OutputKind::Broadcast).with_no_more(), 100);
    assert_eq!(broadcast.output.state(), OutputState::Finished);
    // Who decides on another reader may wait for the end of this one: pages that were all taken end it.
    let mut arbitrary = Bench::new(&readers(OutputKind::Arbitrary, 1), 100);
    arbitrary.pages(0, 1);
    arbitrary.no_more_pages();
    assert_eq!(arbitrary.read(0, 0, 100), (vec![0], 1));
    assert!(arbitrary.is_complete(0, 1));
    arbitrary.output.abort(0);
    assert_eq!(arbitrary.output.state(), OutputState::Finished, "I-13");
}

#[test]
fn table_all_readers_gone_ends_it_early() {
    for kind in [OutputKind::Broadcast, OutputKind::Arbitrary] {
        let mut bench = Bench::new(&readers(kind, 2), 1000);
        bench.pages(0, 2);
        bench.output.abort(0);
        bench.output.abort(1);
        assert_eq!(bench.output.state(), OutputState::Open, "there may be others");
        assert!(!bench.writer.as_ref().unwrap().closed().is_ready());
        bench.output.set_buffers(&readers(kind, 2).with_no_more()).unwrap();
        assert_eq!(bench.output.state(), OutputState::Finished);
        assert!(bench.writer.as_ref().unwrap().closed().is_ready());
        assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
    }
}

#[test]
fn table_what_a_reader_leaves_is_lost_to_others_or_not() {
    let mut shared = Bench::new(&readers(OutputKind::Arbitrary, 2).with_no_more(), 1000);
    shared.pages(0, 2);
    assert_eq!(shared.read(0, 0, 1000).0, [0, 1]);
    shared.output.abort(0);
    assert!(shared.is_pending(1, 0));
    let mut broadcast = Bench::new(&readers(OutputKind::Broadcast, 2).with_no_more(), 1000);
    broadcast.pages(0, 1);
    broadcast.output.abort(0);
    assert_eq!(broadcast.read(1, 0, 100).0, [0]);
}

/// Unlike in Presto, whose readers stay blocked, an error reaches them; it is never a clean end.
#[test]
fn i10_a_failed_output_is_no_finished_one() {
    let mut bench = Bench::new(&partitioned(2), 10);
    let pending = gate();
    assert!(matches!(bench.output.read(1, 0, 100, &pending), Ok(Read::Pending)));
    let Give::Full(room) = bench.push(0, 10) else { panic!("there is room") };
    drop(bench.writer.take());
    assert_eq!(bench.output.state(), OutputState::Failed);
    assert!(pending.is_ready() && room.is_ready() && bench.output.ended().is_ready());
    for id in 0..3 {
        assert!(matches!(bench.ask(id, 0, 100), Read::Failed), "buffer {id}");
    }
    assert_eq!((bench.output.bytes(), bench.alive()), (0, 0));
    bench.output.destroy();
    assert_eq!(bench.output.state(), OutputState::Failed, "the first end is the end");
    let finished = Bench::new(&partitioned(1), 10);
    finished.output.destroy();
    finished.output.fail();
    assert_eq!(finished.output.state(), OutputState::Finished);
}

#[test]
fn i11_old_versions_and_late_ones_are_ignored() {
    let bench = Bench::new(&readers(OutputKind::Broadcast, 2), 100);
    bench.output.set_buffers(&readers(OutputKind::Broadcast, 1)).unwrap();
    bench.output.destroy();
    bench.output.set_buffers(&OutputBuffers::new(OutputKind::Arbitrary)).unwrap();
    assert_eq!(bench.output.state(), OutputState::Finished);
}

fn take(client: &ExchangeClient<Item>) -> usize {
    match client.take() {
        Take::Item(item) => item.number,
        other => panic!("{other:?}"),
    }
}

#[test]
fn m11_a_client_reads_all_outputs_and_ends_with_the_last() {
    let mut benches = [Bench::new(&partitioned(1), 100), Bench::new(&partitioned(1), 100)];
    let client = ExchangeClient::new("test");
    let Take::Blocked(gate) = client.take() else { panic!("there is nothing") };
    client.add(0, benches[0].output.clone(), 0).unwrap();
    assert!(gate.is_ready(), "there is somebody to ask");
    assert!(matches!(client.take(), Take::Blocked(_)));
    client.add(0, benches[1].output.clone(), 0).unwrap();
    assert_eq!(client.locations(), [0], "one that is known is ignored");
    client.add(1, benches[1].output.clone(), 0).unwrap();
    client.no_more();
    assert!(client.add(2, benches[0].output.clone(), 0).is_err());
    assert!(matches!(client.take(), Take::Blocked(_)));
    benches[1].next = 100;
    benches[1].pages(0, 2);
    assert!(gate.is_ready());
    benches[0].pages(0, 1);
    let mut numbers = [take(&client), take(&client), take(&client)];
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 100, 101]);
    assert!(matches!(client.take(), Take::Blocked(_)));
    benches[0].no_more_pages();
    assert!(gate.is_ready() && matches!(client.take(), Take::Blocked(_)));
    // M-12: a client leaves an output that is complete.
    assert_eq!(benches[0].output.state(), OutputState::Finished);
    benches[1].no_more_pages();
    assert!(matches!(client.take(), Take::Finished));
    assert_eq!(client.rows(), 3);
}

#[test]
fn m11_a_failure_stays() {
    let mut bench = Bench::new(&partitioned(1), 100);
    let client = ExchangeClient::new("test");
    client.add(0, bench.output.clone(), 0).unwrap();
    let Take::Blocked(gate) = client.take() else { panic!("there is nothing") };
    drop(bench.writer.take());
    assert!(gate.is_ready());
    for _ in 0..2 {
        assert!(matches!(client.take(), Take::Aborted));
    }
}

#[test]
fn m11_a_closed_client_leaves_all_outputs() {
    let mut bench = Bench::new(&partitioned(1), 100);
    let client = ExchangeClient::new("test");
    client.add(0, bench.output.clone(), 0).unwrap();
    bench.pages(0, 1);
    client.close();
    assert_eq!(bench.output.state(), OutputState::Finished);
    let late = Bench::new(&partitioned(1), 100);
    client.add(1, late.output.clone(), 0).unwrap();
    assert_eq!(late.output.state(), OutputState::Finished);
    assert!(matches!(client.take(), Take::Finished));
}

/// One who reads outputs side by side gets a client for each, when all are known.
#[test]
fn a_client_comes_apart() {
    let mut benches = [Bench::new(&partitioned(1), 100), Bench::new(&partitioned(1), 100)];
    let client = ExchangeClient::new("test");
    let Take::Blocked(gate) = client.apart("part") else { panic!("there is nothing") };
    for (id, bench) in (0..).zip(&benches) {
        client.add(id, bench.output.clone(), 0).unwrap();
    }
    assert!(gate.is_ready() && matches!(client.apart("part"), Take::Blocked(_)), "others may come");
    client.no_more();
    let Take::Item(parts) = client.apart("part") else { panic!("all are known") };
    benches[1].pages(0, 2);
    benches[0].no_more_pages();
    assert!(matches!(parts[0].take(), Take::Finished));
    assert_eq!((take(&parts[1]), take(&parts[1])), (0, 1));
    assert!(matches!(parts[1].take(), Take::Blocked(_)));
    parts[1].close();
    assert_eq!(benches[1].output.state(), OutputState::Finished);
    assert!(matches!(client.take(), Take::Finished), "it has none left");
    client.close();
    assert!(matches!(client.apart("part"), Take::Finished));
}
