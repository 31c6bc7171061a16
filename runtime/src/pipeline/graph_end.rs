//! The end of a graph: waiting for it, and looking for what it left behind.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    thread,
};

use gatework_shared_state::Gate;

use super::{
    Graph, GraphHandle,
    stream::{Unpark, WAITED_FOR_ITSELF},
};
use crate::{Error, Result};

impl GraphHandle {
    /// Waits until no task of this graph is alive; for graphs without a result, such as one that
    /// ends in a sink of your own.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use gatework_runtime::{Executor, Result, pipeline::*};
    /// # #[derive(Debug)]
    /// # struct Nothing;
    /// # impl LocalSource for Nothing {
    /// #     fn next(&mut self, _: &DriverContext) -> Result<SourceResult> {
    /// #         Ok(SourceResult::Finished)
    /// #     }
    /// # }
    /// # impl LocalSink for Nothing {
    /// #     fn sink(&mut self, _: Option<Batch>, _: &DriverContext) -> Result<SinkResult> {
    /// #         Ok(SinkResult::NeedInput)
    /// #     }
    /// #     fn finish(&mut self, _: &DriverContext) -> Result<FinishResult> {
    /// #         Ok(FinishResult::Done)
    /// #     }
    /// # }
    /// let executor = Executor::builder().threads(1).build()?;
    /// let query = QueryContext::new(&executor, QueryOptions::default());
    /// let (source, sink) = (PerTask::new("source", [Nothing]), PerTask::new("sink", [Nothing]));
    /// let mut graph = Graph::new();
    /// graph.add_pipeline("pipeline", 1, Arc::new(source), vec![], Arc::new(sink))?;
    /// graph.start(&query)?.wait()?;
    /// # Ok::<(), gatework_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// The query's first error. [`Error::InvalidConfiguration`] on a worker of the query's
    /// executor, which could wait for itself.
    pub fn wait(&self) -> Result<()> {
        if self.query().is_worker_thread() {
            return Err(Error::InvalidConfiguration(WAITED_FOR_ITSELF.into()));
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        while !self.finished().poll_ready(&waker) {
            // An unpark before this call leaves a token, so no wake-up is lost.
            thread::park();
        }
        self.outcome()
    }

    /// Does what [`wait`](Self::wait) does, without blocking the thread.
    ///
    /// # Errors
    /// The query's first error.
    pub async fn join(&self) -> Result<()> {
        poll_fn(|context| match self.finished().poll_ready(context.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        self.outcome()
    }

    fn outcome(&self) -> Result<()> {
        self.query().error().map_or(Ok(()), Err)
    }
}

/// Tells which sources, operators and sinks of a graph are still alive. Holds none of them.
///
/// After the end of a query all are dropped. One that is alive is held by something that it holds
/// itself, or by the application.
pub struct GraphWatch(Vec<(String, IsAlive)>);

/// Returns whether a part of a graph is alive.
type IsAlive = Box<dyn Fn() -> bool + Send>;

impl fmt::Debug for GraphWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alive: {:?}", self.alive())
    }
}

impl GraphWatch {
    /// Returns the names of the parts that are alive.
    pub fn alive(&self) -> Vec<&str> {
        let alive = self.0.iter().filter(|(_, is_alive)| is_alive());
        alive.map(|(name, _)| name.as_str()).collect()
    }
}

impl Graph {
    /// Returns a watch on the graph's sources, operators and sinks.
    pub fn watch(&self) -> GraphWatch {
        fn part<T: ?Sized + Send + Sync + 'static>(part: &Arc<T>) -> IsAlive {
            let part = Arc::downgrade(part);
            Box::new(move || part.strong_count() > 0)
        }
        let mut parts = Vec::new();
        for pipeline in self.pipelines() {
            parts.push((pipeline.source.name().to_owned(), part(&pipeline.source)));
            for operator in &pipeline.operators {
                parts.push((operator.name().to_owned(), part(operator)));
            }
            parts.push((pipeline.sink.name().to_owned(), part(&pipeline.sink)));
        }
        GraphWatch(parts)
    }
}

impl GraphHandle {
    /// Returns the gates that the graph's tasks have waited for, each once per task.
    pub fn gates(&self) -> Vec<Gate> {
        let mut gates = Vec::new();
        self.for_each_gate(|gate| gates.push(gate.clone()));
        gates
    }
}
