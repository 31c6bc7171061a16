//! The nodes that stages run on.

use gatework_runtime::{Error, Executor, Result};

/// Nodes of this process: separate executors, or several nodes on one executor.
#[derive(Debug, Clone)]
pub struct Nodes {
    executors: Vec<Executor>,
}

impl Nodes {
    /// Creates one node per executor. Executors that share memory should [share an
    /// arbitrator](gatework_runtime::ExecutorBuilder::share_arbitrator_with).
    ///
    /// # Errors
    /// If `executors` is empty.
    pub fn new(executors: Vec<Executor>) -> Result<Self> {
        match executors.is_empty() {
            true => Err(Error::InvalidConfiguration("stages need at least one node".into())),
            false => Ok(Self { executors }),
        }
    }

    /// Creates `nodes` nodes with `threads` threads each.
    ///
    /// # Errors
    /// If either number is 0, or threads cannot be started.
    pub fn in_process(nodes: usize, threads: usize) -> Result<Self> {
        let mut executors: Vec<Executor> = Vec::new();
        for _ in 0..nodes {
            let builder = Executor::builder().threads(threads);
            let builder = match executors.first() {
                Some(first) => builder.share_arbitrator_with(first),
                None => builder,
            };
            executors.push(builder.build()?);
        }
        Self::new(executors)
    }

    /// Creates `nodes` nodes that share the threads of one executor.
    ///
    /// # Errors
    /// If `nodes` is 0.
    pub fn sharing_executor(executor: &Executor, nodes: usize) -> Result<Self> {
        Self::new(vec![executor.clone(); nodes])
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.executors.len()
    }

    /// The executors, by node.
    pub fn executors(&self) -> &[Executor] {
        &self.executors
    }
}
