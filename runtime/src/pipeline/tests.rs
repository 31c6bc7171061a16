//! Tests of the pipeline layer with small operators: how rows flow, and every way a query ends.

mod checked;
mod driver;
mod ends;
mod groups;
mod many;
mod memory;
mod operators;
mod queries;
mod scope;
mod stalls;
mod streams;

use std::sync::Arc;

use gatework_shared_state::{
    BufferLimit, aggregate, exchange, exchange::LocalExchangeKind, result,
};

use self::{
    checked::{Checks, Fault},
    operators::{
        from_exchange, from_sum, hoard, multiples, numbers, repeat, to_exchange, to_result, to_sum,
        values,
    },
};
use super::{
    Graph, GraphHandle, Operator, QueryContext, QueryOptions, RowStream, Sink, Source, WaitEdge,
};
use crate::{Error, Executor, Result, hang_guard::Guard};

fn executor(threads: usize) -> Executor {
    Executor::builder().threads(threads).build().unwrap()
}

/// Creates a query whose dump is printed if the test hangs.
fn query(guard: &Guard, executor: &Executor) -> Arc<QueryContext> {
    query_with(guard, executor, QueryOptions::default())
}

fn query_with(guard: &Guard, executor: &Executor, options: QueryOptions) -> Arc<QueryContext> {
    let query = QueryContext::new(executor, options);
    let weak = Arc::downgrade(&query);
    guard.watch(move || weak.upgrade().map_or_else(String::new, |query| query.dump()));
    query
}

/// Starts one pipeline into a result of `partitions` partitions with a limit of one byte each.
fn start_one(
    query: &Arc<QueryContext>,
    checks: &Arc<Checks>,
    num_tasks: usize,
    source: Arc<dyn Source>,
    operators: Vec<Arc<dyn Operator>>,
    partitions: usize,
) -> Vec<RowStream> {
    let (producers, readers) = result::new("result", num_tasks, partitions, BufferLimit::new(1));
    let mut graph = Graph::new();
    let operators = operators.into_iter().map(|operator| checks.operator(operator)).collect();
    let (source, sink) = (checks.source(source), checks.sink(to_result(producers)));
    graph.add_pipeline("only", num_tasks, source, operators, sink).unwrap();
    RowStream::of_query(&graph.start(query).unwrap(), readers)
}

/// Starts one pipeline of one task into any sink.
fn start_into(
    query: &Arc<QueryContext>,
    source: Arc<dyn Source>,
    operators: Vec<Arc<dyn Operator>>,
    sink: Arc<dyn Sink>,
) -> GraphHandle {
    let mut graph = Graph::new();
    graph.add_pipeline("only", 1, source, operators, sink).unwrap();
    graph.start(query).unwrap()
}

/// Returns all rows of a stream, sorted.
fn rows(stream: RowStream) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    for batch in stream.into_blocking_iter() {
        all.extend(values(&batch?));
    }
    all.sort_unstable();
    Ok(all)
}

/// Asserts that the query has no live task and no reserved byte left.
fn assert_gone(query: &QueryContext, checks: &Checks) {
    assert_eq!(query.live_tasks(), 0, "{checks:?}: {}", query.dump());
    assert_eq!(query.reserved_bytes(), 0, "{checks:?}");
    checks.assert_kept();
}

/// Starts three pipelines of two tasks each: numbers, repeated, through an exchange, filtered,
/// summed up by an aggregate, hoarded, into a result of one partition. Buffers hold one byte.
fn start_three(query: &Arc<QueryContext>, checks: &Arc<Checks>) -> Result<RowStream> {
    let budget = BufferLimit::new(1);
    let (exchange_producers, exchange_consumers) =
        exchange::new("shuffle", LocalExchangeKind::Hash, 2, 2, budget.clone());
    let (sum_producers, sum_consumers) = aggregate::new("sum", 2, 2, 2);
    let (result_producers, readers) = result::new("result", 2, 1, BufferLimit::new(1));
    let mut graph = Graph::new();
    let scan = graph.add_pipeline(
        "scan",
        2,
        checks.source(numbers(6, 2)),
        vec![checks.operator(repeat(2))],
        checks.sink(to_exchange(exchange_producers)),
    )?;
    let sum = graph.add_pipeline(
        "sum",
        2,
        checks.source(from_exchange(exchange_consumers)),
        vec![checks.operator(multiples(3)), checks.closable()],
        checks.sink(to_sum(sum_producers)),
    )?;
    let emit = graph.add_pipeline(
        "emit",
        2,
        checks.source(from_sum(sum_consumers)),
        vec![checks.operator(hoard()), checks.operator(repeat(1))],
        checks.sink(to_result(result_producers)),
    )?;
    graph.add_edge(WaitEdge::Buffer { producer: scan, consumer: sum, budget, ordered: false });
    graph.add_edge(WaitEdge::Breaker { producer: sum, consumer: emit });
    let running = graph.start(query)?;
    Ok(RowStream::of_query(&running, readers).remove(0))
}

/// The rows of `start_three`: 0 and 3 from two tasks, twice; the channels' sums are 0 and 12.
const OF_THREE: [i64; 2] = [0, 12];

fn no_fault() -> Arc<Checks> {
    Checks::new(Fault::None)
}

fn is_cancelled(error: &Error) -> bool {
    matches!(error, Error::Cancelled { .. })
}
