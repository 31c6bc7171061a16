//! Shows a result that exceeds the screen in `less`.
//!
//! The output waits in memory until it is longer or wider than the screen. Then `less` starts and
//! reads the rest as it arrives; a shorter result is printed as it is.

use std::io::{self, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::output::Destination;

/// The program, and its arguments: cut long lines, and pass colours through.
const LESS: (&str, &[&str]) = ("less", &["-S", "-R"]);

/// Process of `less`; 0 if there is none.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Ends `less`, which restores the modes of the terminal. Writes to it then fail, and a wait for
/// it ends.
pub(crate) fn stop() {
    let process = RUNNING.load(Ordering::Relaxed);
    if let (Ok(process), true) = (i32::try_from(process), process > 0) {
        // It may have ended by itself.
        let _ended = signal::kill(Pid::from_raw(process), Signal::SIGTERM);
    }
}

/// A writer to the terminal, through `less` if need be.
pub(super) struct Pager {
    columns: usize,
    rows: usize,
    /// Lines written so far, and characters of the last one.
    lines: usize,
    characters: usize,
    state: State,
}

enum State {
    /// The output fits so far.
    Fits(Vec<u8>),
    Less(Child, ChildStdin),
    /// There is no `less`.
    Terminal,
    Ended,
}

impl Pager {
    /// A pager for the terminal of standard output, if its size is known.
    pub(super) fn of_terminal() -> Option<Self> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        (size.ws_col > 0 && size.ws_row > 1).then(|| Self {
            columns: size.ws_col.into(),
            // The prompt needs a line.
            rows: usize::from(size.ws_row) - 1,
            lines: 0,
            characters: 0,
            state: State::Fits(Vec::new()),
        })
    }

    /// Whether the output fits the screen with these bytes.
    fn fits(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            match byte {
                b'\n' => (self.lines, self.characters) = (self.lines + 1, 0),
                // The further bytes of a character.
                0x80..=0xBF => {}
                _ => self.characters += 1,
            }
            if self.lines >= self.rows || self.characters > self.columns {
                return false;
            }
        }
        true
    }

    /// Starts `less`, or writes to the terminal if there is none.
    fn start(&mut self, waiting: &[u8]) -> io::Result<()> {
        let (program, arguments) = LESS;
        let child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            self.state = State::Terminal;
            return io::stdout().write_all(waiting);
        };
        let Some(mut stdin) = child.stdin.take() else {
            return Err(io::Error::other("less has no standard input"));
        };
        RUNNING.store(child.id(), Ordering::Relaxed);
        let written = stdin.write_all(waiting);
        self.state = State::Less(child, stdin);
        written
    }
}

impl Write for Pager {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.state {
            State::Less(_, stdin) => return stdin.write(bytes),
            State::Terminal | State::Ended => return io::stdout().write(bytes),
            State::Fits(_) => {}
        }
        let fits = self.fits(bytes);
        if let State::Fits(waiting) = &mut self.state {
            waiting.extend_from_slice(bytes);
            if !fits {
                let waiting = std::mem::take(waiting);
                self.start(&waiting)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Less(_, stdin) => stdin.flush(),
            State::Terminal => io::stdout().flush(),
            State::Fits(_) | State::Ended => Ok(()),
        }
    }
}

impl Destination for Pager {
    /// Prints a short output, or waits until the user has left `less`.
    fn end(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Fits(waiting) => {
                io::stdout().write_all(&waiting)?;
                io::stdout().flush()
            }
            State::Less(mut child, stdin) => {
                drop(stdin);
                let waited = child.wait();
                RUNNING.store(0, Ordering::Relaxed);
                waited.map(|_| ())
            }
            State::Terminal => io::stdout().flush(),
            State::Ended => Ok(()),
        }
    }
}

impl Drop for Pager {
    /// Waits for `less` also after a failed or cancelled query, since the shell reads the same
    /// terminal. [`stop`] ends the wait.
    fn drop(&mut self) {
        // The query's own error is reported.
        let _failed = self.end();
    }
}
