//! `gatework worker`: runs tasks of queries of other processes.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use gatework::stages::cluster::{self, AllowedLocations};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::allocator;
use crate::args::{EngineArgs, WorkerArgs};
use crate::engine::{Engine, cluster_auth, usage_error};
use crate::error::Error;
use crate::output::LineWriter;

/// Runs the command until SIGTERM.
pub(crate) async fn run(args: WorkerArgs) -> Result<(), Error> {
    let (address, auth) = (args.listen, cluster_auth(&args.auth)?);
    if !(address.ip().is_loopback() || auth.is_encrypted() || args.insecure) {
        return Err(Error::failed(format!(
            "--listen: every client that reaches {} could read the rows; encrypt connections with \
             --tls-cert, --tls-key and --tls-ca, or give --insecure",
            address.ip()
        )));
    }
    let locations = locations(&args)?;
    let engine = EngineArgs { resources: args.resources, ..EngineArgs::default() };
    let engine = Engine::start(&engine)?;
    let worker = engine.worker(auth.clone(), locations).map_err(|error| usage_error(&error))?;
    let failed =
        |error: std::io::Error| Error::failed(format!("cannot listen at {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let scheme = if auth.is_encrypted() { "https" } else { "http" };
    let out = LineWriter::stdout();
    out.line(&format!("{scheme}://{address}"))?;
    out.flush()?;
    let end = async move {
        terminated.recv().await;
    };
    let idle = Arc::new(Notify::new());
    tokio::spawn(purge_when_idle(idle.clone()));
    let served = cluster::serve(worker, &auth, listener, end, move || idle.notify_one()).await;
    served.map_err(|error| Error::failed(format!("the worker failed: {error}")))
}

/// How long threads may still be freeing memory of ended queries.
const PURGE_AFTER: Duration = Duration::from_millis(250);

/// Returns free pages to the system whenever the worker becomes `idle`: by itself, the allocator
/// does so only while it is used.
async fn purge_when_idle(idle: Arc<Notify>) {
    loop {
        idle.notified().await;
        tokio::time::sleep(PURGE_AFTER).await;
        // A failed purge only leaves the worker larger.
        let _purged = tokio::task::spawn_blocking(allocator::purge).await;
    }
}

fn locations(args: &WorkerArgs) -> Result<AllowedLocations, Error> {
    let mut locations = AllowedLocations::deny_all();
    for path in &args.allowed_paths {
        locations = locations
            .with_path(path)
            .map_err(|error| usage_error(&error).and("--allow-path needs an existing path"))?;
    }
    if args.allowed_paths.is_empty() {
        let what = "this worker may read no files: allow some with --allow-path";
        // The message is lost if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{what}");
    }
    Ok(locations)
}
