//! Rows that one query writes for another query's tasks equal the rows that these read, for each
//! routing.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion_physical_expr::expressions::Column;
use gatework_runtime::{
    Result,
    pipeline::{BufferedBatch, Chaos, Graph, GraphHandle, QueryContext, QueryOptions},
};
use gatework_shared_state::{
    BufferLimit,
    output::{ExchangeClient, OutputBuffer, OutputBuffers, OutputKind, OutputState},
};

use super::TaskOutputSink;
use crate::{
    exchange_source::RemoteExchangeSource,
    local_exchange::Routing,
    test_support::{
        EXECUTOR, FailingScan, ints, result_of, run_with, scan, sorted_rows, table, wait_idle,
    },
};

const READERS: usize = 3;

fn input() -> RecordBatch {
    let keys = (0..200).map(|row| (row % 9 != 0).then_some(row % 7));
    table([("key", ints(keys)), ("row", ints((0..200).map(Some)))])
}

fn buffers(kind: OutputKind) -> OutputBuffers {
    if kind == OutputKind::Partitioned {
        return OutputBuffers::with_partitions(READERS);
    }
    let none = OutputBuffers::new(kind);
    let all = (0..READERS).fold(none, |known, id| known.with_buffer(id, 0).unwrap());
    all.with_no_more_buffers()
}

fn routing(kind: OutputKind) -> (Routing, usize) {
    match kind {
        OutputKind::Partitioned => (Routing::Hash(vec![Arc::new(Column::new("key", 0))]), READERS),
        OutputKind::Broadcast => (Routing::Broadcast, 1),
        OutputKind::Arbitrary => (Routing::PassToOne, 1),
    }
}

/// Starts a query of `tasks` tasks that writes an output.
fn written(
    kind: OutputKind,
    tasks: usize,
    fails: bool,
    chaos: &Arc<Chaos>,
) -> (OutputBuffer<BufferedBatch>, GraphHandle) {
    let options = QueryOptions { chaos: Some(chaos.clone()), ..QueryOptions::default() };
    let query = QueryContext::new(&EXECUTOR, options);
    let (output, writers) =
        OutputBuffer::new("test", buffers(kind), BufferLimit::new(100), tasks).unwrap();
    let (routing, partitions) = routing(kind);
    let sink = Arc::new(TaskOutputSink::new(writers, kind, routing, partitions).unwrap());
    let mut graph = Graph::new();
    if fails {
        graph.add_pipeline("writer", tasks, Arc::new(FailingScan), vec![], sink).unwrap();
    } else {
        graph.add_pipeline("writer", tasks, scan(&input(), 7), vec![], sink).unwrap();
    }
    (output, graph.start(&query).unwrap())
}

/// Reads, with two tasks, buffer `id` of each of `outputs`.
fn read(
    outputs: &[OutputBuffer<BufferedBatch>],
    id: usize,
    chaos: &Arc<Chaos>,
) -> Result<Vec<RecordBatch>> {
    let client = ExchangeClient::new("test");
    for (location, output) in (0..).zip(outputs) {
        client.add_location(location, output.clone(), id).unwrap();
    }
    client.set_no_more_locations();
    let options = QueryOptions { chaos: Some(chaos.clone()), ..QueryOptions::default() };
    let source = Arc::new(RemoteExchangeSource::new(client, input().schema()));
    Ok(run_with(options, |graph| result_of(graph, 2, 2, source, vec![]))?.concat())
}

#[test]
fn rows_written_are_rows_read() {
    for seed in 0..20 {
        for kind in [OutputKind::Partitioned, OutputKind::Broadcast, OutputKind::Arbitrary] {
            let chaos = Arc::new(
                Chaos::new(seed).block_every(3).spurious_wakeups_every(4).split_batches(5),
            );
            let writers: Vec<_> = (1..3).map(|tasks| written(kind, tasks, false, &chaos)).collect();
            let outputs: Vec<_> = writers.iter().map(|(output, _)| output.clone()).collect();
            let readers: Vec<_> = (0..READERS)
                .map(|id| {
                    let (outputs, chaos) = (outputs.clone(), chaos.clone());
                    std::thread::spawn(move || read(&outputs, id, &chaos).unwrap())
                })
                .collect();
            let rows: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            let copies = if kind == OutputKind::Broadcast { READERS } else { 1 };
            let expected = vec![input(); 2 * copies];
            assert_eq!(sorted_rows(&rows.concat()), sorted_rows(&expected), "{kind:?}, {seed}");
            for (output, running) in writers {
                wait_idle(running.query());
                assert_eq!((output.state(), output.bytes()), (OutputState::Finished, 0));
            }
            assert!(chaos.counts().blocks() > 0);
        }
    }
}

#[test]
fn a_writer_that_fails_is_no_end_of_rows() {
    let chaos = Arc::new(Chaos::new(1));
    let good = written(OutputKind::Partitioned, 1, false, &chaos);
    let bad = written(OutputKind::Partitioned, 2, true, &chaos);
    let error = read(&[good.0.clone(), bad.0.clone()], 0, &chaos).unwrap_err();
    assert_eq!(error.to_string(), "a producer ended without finishing");
    assert_eq!(bad.0.state(), OutputState::Failed);
    // Its other readers never start.
    good.0.destroy();
    wait_idle(good.1.query());
    wait_idle(bad.1.query());
    assert_eq!(bad.1.query().error().unwrap().to_string(), "the scan failed");
}

#[test]
fn readers_that_leave_end_their_writers() {
    let chaos = Arc::new(Chaos::new(1));
    let (output, running) = written(OutputKind::Partitioned, 2, false, &chaos);
    (0..READERS).for_each(|id| output.abort(id));
    wait_idle(running.query());
    assert!(running.query().error().is_none());
}
