//! Outputs of a stage's task, and the clients that read them, while a third thread links them.

use std::sync::Arc;

use gatework_shared_state::{
    BufferLimit, Payload, PopResult, PushResult,
    output::{ExchangeClient, OutputBuffer, OutputBuffers, OutputKind, OutputWriter},
};
use shuttle::thread;

use crate::{
    stream::{Plan, Reach, SinkEnd, SourceEnd, run_beside},
    support::{Ending, Item, below, check_all},
};

/// A page: its copies count as one item.
#[derive(Clone)]
struct Page(Arc<Item>);

impl Payload for Page {
    fn rows(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

struct Writer {
    writer: OutputWriter<Page>,
    kind: OutputKind,
    readers: usize,
}

impl SinkEnd for Writer {
    fn push(&mut self, item: Item) -> PushResult {
        let partition = match self.kind {
            OutputKind::Partitioned => item.id().1 % self.readers,
            OutputKind::Broadcast | OutputKind::Arbitrary => 0,
        };
        self.writer.push(partition, Page(Arc::new(item)))
    }

    fn poll_capacity(&mut self) -> Option<PushResult> {
        Some(self.writer.poll_capacity())
    }

    fn finish(self) {
        self.writer.finish();
    }
}

/// Closed when it is dropped, as by the reading task.
struct Reader(ExchangeClient<Page>);

impl SourceEnd for Reader {
    fn take(&mut self) -> PopResult<Item> {
        match self.0.take() {
            PopResult::Item(Page(item)) => PopResult::Item(Item::clone(&item)),
            PopResult::Blocked(gate) => PopResult::Blocked(gate),
            PopResult::Finished => PopResult::Finished,
            PopResult::Aborted => PopResult::Aborted,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Adds the readers to the output, and the output to the readers, one by one.
fn link(output: OutputBuffer<Page>, kind: OutputKind, clients: Vec<ExchangeClient<Page>>) {
    let mut known = match kind {
        OutputKind::Partitioned => OutputBuffers::with_partitions(clients.len()),
        OutputKind::Broadcast | OutputKind::Arbitrary => OutputBuffers::new(kind),
    };
    for (id, client) in clients.iter().enumerate() {
        if kind != OutputKind::Partitioned {
            let partition = if kind == OutputKind::Arbitrary { id } else { 0 };
            known = known.with_buffer(id, partition).unwrap();
            output.set_buffers(&known).unwrap();
        }
        client.add_location(0, output.clone(), id).unwrap();
        client.set_no_more_locations();
    }
    output.set_buffers(&known.with_no_more_buffers()).unwrap();
}

fn model(ending: Ending, kind: OutputKind, reach: Reach) {
    let (writers, readers) = (1 + below(2), 1 + below(2));
    let mut plan = Plan::new(ending, reach, writers, readers);
    let first = match kind {
        OutputKind::Partitioned => OutputBuffers::with_partitions(readers),
        OutputKind::Broadcast | OutputKind::Arbitrary => OutputBuffers::new(kind),
    };
    let limit = BufferLimit::new(plan.limit_bytes);
    let (output, ends) = OutputBuffer::new("output", first, limit, writers).unwrap();
    // A reader's page in hand is a copy.
    plan.limit_bytes += readers * plan.item_bytes;
    let clients: Vec<_> = (0..readers).map(|_| ExchangeClient::new("client")).collect();
    let (linked, others) = (output.clone(), clients.clone());
    let linker = thread::spawn(move || link(linked, kind, others));
    let sinks = ends.into_iter().map(|writer| Writer { writer, kind, readers }).collect();
    let sources = clients.into_iter().map(Reader).collect();
    run_beside(plan, sinks, sources, || linker.join().unwrap());
    assert_eq!(output.bytes(), 0);
}

#[test]
fn a_partitioned_output() {
    check_all(|ending| model(ending, OutputKind::Partitioned, Reach::Routed));
}

#[test]
fn a_broadcast_output_whose_readers_come_late() {
    check_all(|ending| model(ending, OutputKind::Broadcast, Reach::All));
}

#[test]
fn an_arbitrary_output_whose_readers_come_late() {
    check_all(|ending| model(ending, OutputKind::Arbitrary, Reach::Any));
}
