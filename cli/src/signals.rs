//! Signals that end the command.
//!
//! The main thread listens to them while the command runs on another, so a command that is busy is
//! interrupted as well.

use std::fs;
use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{self, SignalKind};

use crate::error::Error;

/// A signal that ends the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGHUP: the terminal is gone.
    HangUp,
    /// SIGINT, which Ctrl-C sends.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// Its number, the same on every Unix.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// What the user is told.
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

    /// Whether the process was started to ignore it, as `nohup` does with SIGHUP. A shell without
    /// job control starts what it puts into the background deaf to SIGINT, which is to be heard
    /// anyway.
    fn is_ignored(self) -> bool {
        let status = || fs::read_to_string("/proc/self/status");
        self == Self::HangUp && status().is_ok_and(|status| ignores(&status, self.number()))
    }
}

/// Reads the set of ignored signals in a `/proc/PID/status`.
fn ignores(status: &str, number: u8) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (number - 1) & 1 == 1)
}

/// A listener to some signals.
pub(crate) struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Listens to `wanted` from now on, but for those that the process is to ignore. To be called
    /// in the context of a runtime.
    pub(crate) fn listen(wanted: &[Signal]) -> Result<Self, Error> {
        let heard = wanted.iter().copied().filter(|signal| !signal.is_ignored());
        let streams = heard.map(|signal| Ok((signal, unix::signal(signal.kind())?)));
        let streams = streams.collect::<std::io::Result<_>>();
        let failed = |error| Error::failed(format!("cannot listen for signals: {error}"));
        Ok(Self { streams: streams.map_err(failed)? })
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
