//! Signals that end the command.
//!
//! The main thread listens for signals while the command runs on another thread, so a busy command
//! is interrupted as well.

use std::fs;
use std::future::poll_fn;
use std::task::Poll;

use futures::FutureExt;
use tokio::signal::unix::{self, SignalKind};

use crate::error::Error;

/// A signal that ends the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGHUP: the terminal was closed.
    HangUp,
    /// SIGINT, sent by Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// Its number, which is the same on every Unix.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// The message to the user.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::HangUp => "ended by SIGHUP",
            Self::Interrupt => "cancelled by Ctrl-C",
            Self::Terminate => "ended by SIGTERM",
        }
    }

    fn kind(self) -> SignalKind {
        SignalKind::from_raw(i32::from(self.number()))
    }

    /// Whether the process was started to ignore the signal, as `nohup` does with SIGHUP. SIGINT is
    /// never ignored, although a shell without job control starts background processes with SIGINT
    /// ignored.
    fn is_ignored(self) -> bool {
        let status = || fs::read_to_string("/proc/self/status");
        self == Self::HangUp && status().is_ok_and(|status| ignores(&status, self.number()))
    }
}

/// Whether the set of ignored signals of a `/proc/PID/status` has the signal.
fn ignores(status: &str, number: u8) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (number - 1) & 1 == 1)
}

/// A listener for some signals.
pub(crate) struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Listens to `wanted` from now on, without ignored signals. Called in the context of a
    /// runtime.
    pub(crate) fn listen(wanted: &[Signal]) -> Result<Self, Error> {
        let heard = wanted.iter().copied().filter(|signal| !signal.is_ignored());
        let streams = heard.map(|signal| Ok((signal, unix::signal(signal.kind())?)));
        let streams = streams.collect::<std::io::Result<_>>();
        let failed = |error| Error::failed(format!("cannot listen for signals: {error}"));
        Ok(Self { streams: streams.map_err(failed)? })
    }

    /// Forgets the signals that have arrived.
    pub(crate) fn forget(&mut self) {
        for (_, stream) in &mut self.streams {
            while stream.recv().now_or_never().flatten().is_some() {}
        }
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::ignores;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t00ff\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores(status, 15) && !ignores("", 1));
    }
}
