//! A cluster within one process.

use std::{io, sync::Arc};

use datafusion::{error::Result, execution::runtime_env::RuntimeEnv};
use gatework_runtime::Executor;
use gatework_sql::Settings;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};
use url::Url;

use super::{
    auth::{ClusterAuth, external},
    connections::Connections,
    locations::AllowedLocations,
    session::WorkerList,
    worker::{WorkerOptions, service, worker},
};

/// Bytes that a pipe between two ends buffers.
const PIPE_BYTES: usize = 1 << 20;

/// Workers of this process, reached through in-memory pipes. Plans and rows are serialized as
/// between machines. For tests, and for inspecting how a query is distributed. Dropping this value
/// ends the workers.
///
/// ```
/// use std::sync::Arc;
/// use datafusion::{execution::session_state::SessionStateBuilder, prelude::SessionContext};
/// use gatework_stages::cluster::{ClusterOptions, ClusterSession, InProcessCluster};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let executor = gatework_runtime::Executor::builder().threads(1).build()?;
/// let cluster = InProcessCluster::start(vec![executor.clone(); 3], Arc::default())?;
/// let options = ClusterOptions { connections: cluster.connections(), ..Default::default() };
/// let state = SessionStateBuilder::new()
///     .with_default_features()
///     .with_gatework_workers(&executor, cluster.workers(), &options)
///     .build();
/// SessionContext::new_with_state(state).sql("SELECT 6 * 7").await?.collect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct InProcessCluster {
    workers: WorkerList,
    connections: Connections,
    /// The servers end when this sender is dropped.
    _shutdown: watch::Sender<()>,
}

/// Connections keep their servers alive.
impl Drop for InProcessCluster {
    fn drop(&mut self) {
        self.connections.clear();
    }
}

impl InProcessCluster {
    /// Starts one worker per executor. All workers use the memory, the disk and the object stores
    /// of `runtime`. Their servers run on the current tokio runtime.
    ///
    /// # Errors
    /// If a server cannot be created.
    pub fn start(executors: Vec<Executor>, runtime: Arc<RuntimeEnv>) -> Result<Self> {
        let (mut listeners, mut incoming) = (Vec::new(), Vec::new());
        for number in 0..executors.len() {
            let (listener, called) = mpsc::unbounded_channel();
            let url = Url::parse(&format!("http://worker-{number}")).map_err(external)?;
            listeners.push((url, listener));
            incoming.push(called);
        }
        let workers =
            WorkerList::from(listeners.iter().map(|(url, _)| url.clone()).collect::<Vec<_>>());
        let connections = Connections::in_process(move |url| dial(&listeners, url));
        let (shutdown, closed) = watch::channel(());
        for (executor, called) in executors.iter().zip(incoming) {
            let options = WorkerOptions {
                runtime: runtime.clone(),
                settings: Settings::default(),
                connections: connections.clone(),
                locations: AllowedLocations::allow_all(),
                io: None,
                codecs: Vec::new(),
            };
            let auth = ClusterAuth::in_process();
            let server = auth.server()?.add_service(service(worker(executor, options)?, &auth));
            let calls = UnboundedReceiverStream::new(called).map(Ok::<_, io::Error>);
            let mut closed = closed.clone();
            tokio::spawn(async move {
                let end = async {
                    // The sender is only ever dropped.
                    let _gone = closed.changed().await;
                };
                // The client of a failed call gets the error.
                let _ended = server.serve_with_incoming_shutdown(calls, end).await;
            });
        }
        Ok(Self { workers, connections, _shutdown: shutdown })
    }

    /// The workers.
    pub fn workers(&self) -> WorkerList {
        self.workers.clone()
    }

    /// Connections to the workers.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }
}

fn dial(
    listeners: &[(Url, mpsc::UnboundedSender<DuplexStream>)],
    url: &Url,
) -> io::Result<DuplexStream> {
    let listener = listeners.iter().find(|(known, _)| known == url);
    let Some((_, listener)) = listener else { return Err(io::ErrorKind::NotFound.into()) };
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    listener.send(far).map_err(|_gone| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    Ok(near)
}
