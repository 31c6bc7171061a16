//! Rules H and I of `stages/RULES.md`; their numbers are in the names.

#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    ExchangeClient, OutputBuffer, OutputBuffers, OutputKind, OutputState, OutputWriter, PageRead,
};
use crate::{BufferLimit, Dependency, DependencyKind, Gate, Payload, PopResult, PushResult};

/// A page with a size in bytes; counts its live copies.
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

struct Fixture {
    output: OutputBuffer<Item>,
    writer: Option<OutputWriter<Item>>,
    alive: Arc<AtomicUsize>,
    next: usize,
    gate: Gate,
}

fn gate() -> Gate {
    Dependency::blocked("reader", DependencyKind::Source)
}

impl Fixture {
    fn new(descriptor: &OutputBuffers, limit: usize) -> Self {
        let (output, mut writers) =
            OutputBuffer::new("test", descriptor.clone(), BufferLimit::new(limit), 1).unwrap();
        let (writer, alive) = (writers.pop(), Arc::default());
        Self { output, writer, alive, next: 0, gate: gate() }
    }

    fn push(&mut self, partition: usize, bytes: usize) -> PushResult {
        self.alive.fetch_add(1, Ordering::Relaxed);
        let item = Item { number: self.next, bytes, alive: self.alive.clone() };
        self.next += 1;
        self.writer.as_mut().unwrap().push(partition, item)
    }

    fn push_pages(&mut self, partition: usize, count: usize) {
        for _ in 0..count {
            self.push(partition, 10);
        }
    }

    fn no_more_pages(&mut self) {
        self.writer.take().unwrap().finish();
    }

    fn request(&self, id: usize, token: u64, max_bytes: usize) -> PageRead<Item> {
        self.gate.block();
        self.output.read(id, token, max_bytes, &self.gate).unwrap()
    }

    /// Returns the numbers of the pages from `token` on, and the next token.
    fn read(&self, id: usize, token: u64, max_bytes: usize) -> (Vec<usize>, u64) {
        match self.request(id, token, max_bytes) {
            PageRead::Pages { pages, next } => {
                (pages.iter().map(|page| page.number).collect(), next)
            }
            other => panic!("{other:?}"),
        }
    }

    fn is_pending(&self, id: usize, token: u64) -> bool {
        matches!(self.request(id, token, 100), PageRead::Pending)
    }

    fn is_complete(&self, id: usize, token: u64) -> bool {
        matches!(self.request(id, token, 100), PageRead::Complete)
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

fn partitioned(count: usize) -> OutputBuffers {
    OutputBuffers::with_partitions(count)
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
    let all = one.with_no_more_buffers();
    assert_eq!((all.version(), all.with_no_more_buffers()), (one.version() + 1, all.clone()));
    assert!(all.with_buffer(1, 0).is_err());
    assert_eq!(all.with_buffer(0, 0).unwrap(), all);
}

#[test]
fn h3_nothing_is_taken_back() {
    let none = OutputBuffers::new(OutputKind::Broadcast);
    let (one, other) = (none.with_buffer(0, 0).unwrap(), none.with_buffer(1, 0).unwrap());
    assert!(none.check_transition(&one).is_ok() && one.check_transition(&one).is_ok());
    // Another kind, an older version, the same version with other contents, a buffer removed or
    // changed.
    assert!(none.check_transition(&OutputBuffers::new(OutputKind::Arbitrary)).is_err());
    assert!(one.check_transition(&none).is_err());
    assert!(one.check_transition(&other).is_err());
    assert!(one.check_transition(&other.with_buffer(2, 0).unwrap()).is_err());
    let last = one.with_no_more_buffers();
    assert!(last.check_transition(&last).is_ok());
    let late = one.with_buffer(1, 0).unwrap().with_buffer(2, 0).unwrap();
    assert!(last.check_transition(&late).is_err());
}

#[test]
fn i1_a_read_acknowledges_what_comes_before() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    fixture.push_pages(0, 3);
    assert_eq!(fixture.read(0, 0, 1000), (vec![0, 1, 2], 3));
    // A page that was read is not acknowledged by that.
    assert_eq!((fixture.output.bytes(), fixture.alive()), (30, 3));
    assert_eq!(fixture.read(0, 0, 1000), (vec![0, 1, 2], 3));
    assert_eq!(fixture.read(0, 1, 1000), (vec![1, 2], 3));
    assert_eq!((fixture.output.bytes(), fixture.alive()), (20, 2));
    assert!(fixture.is_pending(0, 3));
    assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
    assert_eq!(fixture.output.stats().rows_out, 3, "a page that is read again is not more rows");
}

#[test]
fn i2_at_least_one_page_and_no_more_than_fit() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    fixture.push_pages(0, 3);
    assert_eq!(fixture.read(0, 0, 1), (vec![0], 1));
    assert_eq!(fixture.read(0, 0, 20), (vec![0, 1], 2));
    assert_eq!(fixture.read(0, 0, 29), (vec![0, 1], 2));
}

/// A gate stands for one pending read, so a newer read ends the older one by making its gate ready.
#[test]
fn i3_a_newer_question_answers_an_older_one() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    let (older, newer) = (gate(), gate());
    assert!(matches!(fixture.output.read(0, 0, 100, &older), Ok(PageRead::Pending)));
    assert!(!older.is_ready());
    assert!(matches!(fixture.output.read(0, 0, 100, &newer), Ok(PageRead::Pending)));
    assert!(older.is_ready() && !newer.is_ready());
    fixture.push_pages(0, 1);
    assert!(newer.is_ready());
}

#[test]
fn i4_an_old_place_is_answered_with_nothing_and_a_wrong_one_refused() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    fixture.push_pages(0, 2);
    assert_eq!(fixture.read(0, 1, 1000), (vec![1], 2));
    assert!(matches!(fixture.request(0, 0, 100), PageRead::TokenTooOld));
    assert!(fixture.output.read(0, 3, 100, &fixture.gate).is_err());
    assert_eq!(fixture.read(0, 1, 1000), (vec![1], 2), "a refused question changes nothing");
}

#[test]
fn i5_complete_does_not_close() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    fixture.push_pages(0, 1);
    fixture.no_more_pages();
    assert_eq!(fixture.read(0, 0, 100), (vec![0], 1));
    assert!(fixture.is_complete(0, 1) && fixture.is_complete(0, 1));
    assert_eq!(fixture.output.state(), OutputState::Flushing);
    fixture.output.abort(0);
    assert_eq!(fixture.output.state(), OutputState::Finished);
    assert!(fixture.output.finished_gate().is_ready());
}

#[test]
fn i6_after_the_end_there_is_nothing() {
    let mut fixture = Fixture::new(&partitioned(2), 1000);
    let pending = gate();
    assert!(matches!(fixture.output.read(0, 0, 100, &pending), Ok(PageRead::Pending)));
    fixture.push_pages(1, 2);
    fixture.output.abort(0);
    assert!(pending.is_ready());
    assert!(fixture.is_complete(0, 0));
    fixture.output.destroy();
    assert!(fixture.is_complete(1, 0));
    assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
    assert_eq!(fixture.output.stats().rows_dropped, 2);
}

#[test]
fn i7_pages_are_acknowledged_early() {
    let mut fixture = Fixture::new(&partitioned(1), 1000);
    fixture.push_pages(0, 2);
    fixture.output.acknowledge(0, 1).unwrap();
    assert_eq!(fixture.output.bytes(), 10);
    fixture.output.acknowledge(0, 1).unwrap();
    fixture.output.acknowledge(0, 0).unwrap();
    assert_eq!(fixture.output.bytes(), 10);
    assert!(fixture.output.acknowledge(0, 3).is_err());
    assert_eq!(fixture.read(0, 1, 100), (vec![1], 2));
}

#[test]
fn i8_what_comes_too_late_is_dropped() {
    let mut fixture = Fixture::new(&partitioned(2), 1000);
    fixture.output.abort(0);
    assert!(matches!(fixture.push(0, 10), PushResult::Accepted), "the other reader is there");
    assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
    fixture.output.abort(1);
    assert!(matches!(fixture.push(1, 10), PushResult::Closed));
    assert_eq!((fixture.output.stats().rows_dropped, fixture.alive()), (2, 0));
}

/// I-9, and memory of a broadcast table: a page in several buffers counts once, until the last
/// buffer releases it.
#[test]
fn i9_a_page_is_counted_once_and_freed_by_the_last() {
    let mut fixture = Fixture::new(&readers(OutputKind::Broadcast, 3).with_no_more_buffers(), 1000);
    fixture.push_pages(0, 1);
    assert_eq!((fixture.output.bytes(), fixture.alive()), (10, 1));
    for id in 0..3 {
        assert_eq!(fixture.output.bytes(), 10, "before reader {id}");
        assert_eq!(fixture.read(id, 0, 100), (vec![0], 1));
        fixture.output.acknowledge(id, 1).unwrap();
    }
    assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
}

/// As in Velox, unlike Presto: an output with exactly its limit is full, and has capacity as soon
/// as it is below.
#[test]
fn a_full_output_asks_its_writers_to_wait() {
    let mut fixture = Fixture::new(&partitioned(2), 20);
    assert!(matches!(fixture.push(0, 19), PushResult::Accepted));
    let PushResult::Backpressure(capacity) = fixture.push(1, 1) else { panic!("there is room") };
    assert!(fixture.output.is_overutilized() && !capacity.is_ready());
    assert_eq!(fixture.read(1, 0, 100), (vec![1], 1));
    assert!(!capacity.is_ready(), "a page that is not acknowledged counts");
    fixture.output.acknowledge(1, 1).unwrap();
    assert!(capacity.is_ready() && !fixture.output.is_overutilized());
    // A page beyond the limit is accepted; the end of the output releases the writer.
    let PushResult::Backpressure(capacity) = fixture.push(0, 1000) else { panic!("there is room") };
    fixture.output.destroy();
    assert!(capacity.is_ready());
    assert!(matches!(fixture.writer.as_mut().unwrap().poll_capacity(), PushResult::Closed));
}

#[test]
fn table_a_partitioned_output_is_given_all_buffers() {
    let unknown = OutputBuffers::new(OutputKind::Partitioned);
    assert!(OutputBuffer::<Item>::new("test", unknown, BufferLimit::new(1), 1).is_err());
    let fixture = Fixture::new(&partitioned(2), 100);
    assert!(fixture.output.read(2, 0, 100, &fixture.gate).is_err());
    assert_eq!(fixture.output.state(), OutputState::NoMoreBuffers);
}

#[test]
fn table_a_late_reader_of_a_broadcast_gets_all_pages() {
    let mut fixture = Fixture::new(&readers(OutputKind::Broadcast, 1), 1000);
    fixture.push_pages(0, 2);
    assert_eq!(fixture.read(0, 0, 100).0, [0, 1]);
    fixture.output.acknowledge(0, 2).unwrap();
    // I-14: pages are kept for readers that may be added.
    assert_eq!(fixture.output.bytes(), 20);
    fixture.output.set_buffers(&readers(OutputKind::Broadcast, 2).with_no_more_buffers()).unwrap();
    assert_eq!(fixture.read(1, 0, 100), (vec![0, 1], 2));
    fixture.output.acknowledge(1, 2).unwrap();
    assert_eq!(fixture.output.bytes(), 0);
}

#[test]
fn table_readers_of_an_arbitrary_output_share_its_pages() {
    let mut fixture = Fixture::new(&readers(OutputKind::Arbitrary, 1), 1000);
    fixture.push_pages(0, 2);
    assert_eq!(fixture.read(0, 0, 10), (vec![0], 1));
    fixture.output.set_buffers(&readers(OutputKind::Arbitrary, 2)).unwrap();
    assert_eq!(fixture.read(1, 0, 10), (vec![1], 1));
    assert!(fixture.is_pending(0, 1) && fixture.is_pending(1, 1));
    assert!(!fixture.output.is_overutilized() && !fixture.output.overutilized_gate().is_ready());
    fixture.push(0, 500);
    assert!(
        fixture.output.is_overutilized() && fixture.output.overutilized_gate().is_ready(),
        "half full"
    );
    assert_eq!(fixture.read(0, 1, 1000).0, [2]);
    fixture.output.acknowledge(0, 2).unwrap();
    assert!(!fixture.output.is_overutilized() && !fixture.output.overutilized_gate().is_ready());
    fixture.no_more_pages();
    assert!(fixture.output.is_overutilized() && fixture.output.overutilized_gate().is_ready());
}

#[test]
fn table_a_reader_may_come_before_it_is_declared() {
    let mut fixture = Fixture::new(&readers(OutputKind::Broadcast, 1), 1000);
    fixture.push_pages(0, 1);
    assert_eq!(fixture.read(7, 0, 100).0, [0]);
    let without = readers(OutputKind::Broadcast, 1).with_no_more_buffers();
    let error = fixture.output.set_buffers(&without).unwrap_err().to_string();
    assert!(error.contains("buffer 7 is read"), "{error}");
    let known = readers(OutputKind::Broadcast, 1).with_buffer(7, 0).unwrap().with_no_more_buffers();
    fixture.output.set_buffers(&known).unwrap();
    assert!(fixture.output.read(8, 0, 100, &fixture.gate).is_err());
}

#[test]
fn table_without_readers_only_an_arbitrary_output_goes_on() {
    let broadcast =
        Fixture::new(&OutputBuffers::new(OutputKind::Broadcast).with_no_more_buffers(), 100);
    assert_eq!(broadcast.output.state(), OutputState::Finished);
    // A stage that decides on another reader may wait for this end: the output ends when all its
    // pages were taken.
    let mut arbitrary = Fixture::new(&readers(OutputKind::Arbitrary, 1), 100);
    arbitrary.push_pages(0, 1);
    arbitrary.no_more_pages();
    assert_eq!(arbitrary.read(0, 0, 100), (vec![0], 1));
    assert!(arbitrary.is_complete(0, 1));
    arbitrary.output.abort(0);
    assert_eq!(arbitrary.output.state(), OutputState::Finished, "I-13");
}

#[test]
fn table_all_readers_gone_ends_it_early() {
    for kind in [OutputKind::Broadcast, OutputKind::Arbitrary] {
        let mut fixture = Fixture::new(&readers(kind, 2), 1000);
        fixture.push_pages(0, 2);
        fixture.output.abort(0);
        fixture.output.abort(1);
        assert_eq!(fixture.output.state(), OutputState::Open, "there may be others");
        assert!(!fixture.writer.as_ref().unwrap().closed().is_ready());
        fixture.output.set_buffers(&readers(kind, 2).with_no_more_buffers()).unwrap();
        assert_eq!(fixture.output.state(), OutputState::Finished);
        assert!(fixture.writer.as_ref().unwrap().closed().is_ready());
        assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
    }
}

#[test]
fn table_what_a_reader_leaves_is_lost_to_others_or_not() {
    let mut shared = Fixture::new(&readers(OutputKind::Arbitrary, 2).with_no_more_buffers(), 1000);
    shared.push_pages(0, 2);
    assert_eq!(shared.read(0, 0, 1000).0, [0, 1]);
    shared.output.abort(0);
    assert!(shared.is_pending(1, 0));
    let mut broadcast =
        Fixture::new(&readers(OutputKind::Broadcast, 2).with_no_more_buffers(), 1000);
    broadcast.push_pages(0, 1);
    broadcast.output.abort(0);
    assert_eq!(broadcast.read(1, 0, 100).0, [0]);
}

/// Unlike in Presto, whose readers stay blocked, an error reaches the readers; it is never a clean
/// end.
#[test]
fn i10_a_failed_output_is_no_finished_one() {
    let mut fixture = Fixture::new(&partitioned(2), 10);
    let pending = gate();
    assert!(matches!(fixture.output.read(1, 0, 100, &pending), Ok(PageRead::Pending)));
    let PushResult::Backpressure(capacity) = fixture.push(0, 10) else { panic!("there is room") };
    drop(fixture.writer.take());
    assert_eq!(fixture.output.state(), OutputState::Failed);
    assert!(pending.is_ready() && capacity.is_ready() && fixture.output.finished_gate().is_ready());
    for id in 0..3 {
        assert!(matches!(fixture.request(id, 0, 100), PageRead::Failed), "buffer {id}");
    }
    assert_eq!((fixture.output.bytes(), fixture.alive()), (0, 0));
    fixture.output.destroy();
    assert_eq!(fixture.output.state(), OutputState::Failed, "the first end is the end");
    let finished = Fixture::new(&partitioned(1), 10);
    finished.output.destroy();
    finished.output.fail();
    assert_eq!(finished.output.state(), OutputState::Finished);
}

#[test]
fn i11_old_versions_and_late_ones_are_ignored() {
    let fixture = Fixture::new(&readers(OutputKind::Broadcast, 2), 100);
    fixture.output.set_buffers(&readers(OutputKind::Broadcast, 1)).unwrap();
    fixture.output.destroy();
    fixture.output.set_buffers(&OutputBuffers::new(OutputKind::Arbitrary)).unwrap();
    assert_eq!(fixture.output.state(), OutputState::Finished);
}

fn take(client: &ExchangeClient<Item>) -> usize {
    match client.take() {
        PopResult::Item(item) => item.number,
        other => panic!("{other:?}"),
    }
}

#[test]
fn m11_a_client_reads_all_outputs_and_ends_with_the_last() {
    let mut fixtures = [Fixture::new(&partitioned(1), 100), Fixture::new(&partitioned(1), 100)];
    let client = ExchangeClient::new("test");
    let PopResult::Blocked(gate) = client.take() else { panic!("there is nothing") };
    client.add_location(0, fixtures[0].output.clone(), 0).unwrap();
    assert!(gate.is_ready(), "there is somebody to ask");
    assert!(matches!(client.take(), PopResult::Blocked(_)));
    client.add_location(0, fixtures[1].output.clone(), 0).unwrap();
    assert_eq!(client.locations(), [0], "one that is known is ignored");
    client.add_location(1, fixtures[1].output.clone(), 0).unwrap();
    client.set_no_more_locations();
    assert!(client.add_location(2, fixtures[0].output.clone(), 0).is_err());
    assert!(matches!(client.take(), PopResult::Blocked(_)));
    fixtures[1].next = 100;
    fixtures[1].push_pages(0, 2);
    assert!(gate.is_ready());
    fixtures[0].push_pages(0, 1);
    let mut numbers = [take(&client), take(&client), take(&client)];
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 100, 101]);
    assert!(matches!(client.take(), PopResult::Blocked(_)));
    fixtures[0].no_more_pages();
    assert!(gate.is_ready() && matches!(client.take(), PopResult::Blocked(_)));
    // M-12: a client leaves an output that is complete.
    assert_eq!(fixtures[0].output.state(), OutputState::Finished);
    fixtures[1].no_more_pages();
    assert!(matches!(client.take(), PopResult::Finished));
    assert_eq!(client.rows(), 3);
}

#[test]
fn m11_a_failure_stays() {
    let mut fixture = Fixture::new(&partitioned(1), 100);
    let client = ExchangeClient::new("test");
    client.add_location(0, fixture.output.clone(), 0).unwrap();
    let PopResult::Blocked(gate) = client.take() else { panic!("there is nothing") };
    drop(fixture.writer.take());
    assert!(gate.is_ready());
    for _ in 0..2 {
        assert!(matches!(client.take(), PopResult::Aborted));
    }
}

#[test]
fn m11_a_closed_client_leaves_all_outputs() {
    let mut fixture = Fixture::new(&partitioned(1), 100);
    let client = ExchangeClient::new("test");
    client.add_location(0, fixture.output.clone(), 0).unwrap();
    fixture.push_pages(0, 1);
    client.close();
    assert_eq!(fixture.output.state(), OutputState::Finished);
    let late = Fixture::new(&partitioned(1), 100);
    client.add_location(1, late.output.clone(), 0).unwrap();
    assert_eq!(late.output.state(), OutputState::Finished);
    assert!(matches!(client.take(), PopResult::Finished));
}

/// A caller that reads outputs side by side gets a client for each, when all are known.
#[test]
fn a_client_is_split_by_location() {
    let mut fixtures = [Fixture::new(&partitioned(1), 100), Fixture::new(&partitioned(1), 100)];
    let client = ExchangeClient::new("test");
    let PopResult::Blocked(gate) = client.split_by_location("part") else {
        panic!("there is nothing")
    };
    for (id, fixture) in (0..).zip(&fixtures) {
        client.add_location(id, fixture.output.clone(), 0).unwrap();
    }
    assert!(
        gate.is_ready() && matches!(client.split_by_location("part"), PopResult::Blocked(_)),
        "others may come"
    );
    client.set_no_more_locations();
    let PopResult::Item(clients) = client.split_by_location("part") else {
        panic!("all are known")
    };
    fixtures[1].push_pages(0, 2);
    fixtures[0].no_more_pages();
    assert!(matches!(clients[0].take(), PopResult::Finished));
    assert_eq!((take(&clients[1]), take(&clients[1])), (0, 1));
    assert!(matches!(clients[1].take(), PopResult::Blocked(_)));
    clients[1].close();
    assert_eq!(fixtures[1].output.state(), OutputState::Finished);
    assert!(matches!(client.take(), PopResult::Finished), "it has none left");
    client.close();
    assert!(matches!(client.split_by_location("part"), PopResult::Finished));
}
