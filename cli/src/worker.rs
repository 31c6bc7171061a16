//! `gatework worker`: runs parts of the queries of others.

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{EngineArgs, WorkerArgs};
use crate::engine::Engine;
use crate::error::Error;
use crate::output::Sink;

/// Runs the command, until it is told to end.
pub(crate) async fn run(args: WorkerArgs) -> Result<(), Error> {
    let address = args.listen;
    if !address.ip().is_loopback() {
        return Err(Error::failed(format!(
            "--listen: a worker's connections are not encrypted, so it listens to this machine only: 127.0.0.1 or ::1, and not {}",
            address.ip()
        )));
    }
    let engine = EngineArgs { resources: args.resources, ..EngineArgs::default() };
    let engine = Engine::start(&engine)?;
    let failed =
        |error: std::io::Error| Error::failed(format!("cannot listen at {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let sink = Sink::stdout();
    sink.line(&format!("http://{address}"))?;
    sink.flush()?;
    let end = async move {
        terminated.recv().await;
    };
    let served = gatework::stages::cluster::serve(engine.worker(), listener, end).await;
    served.map_err(|error| Error::failed(format!("the worker has failed: {error}")))
}
