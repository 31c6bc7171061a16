//! The shell: reads statements and commands from a terminal, and runs them until the user leaves.
//!
//! Lines are read on a thread of their own, and statements run in the future of the command. Ctrl-C
//! at the prompt discards the line; while a statement runs, it drops the statement's future, which
//! cancels the query.

mod catalog;
mod completion;
mod editor;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::SessionContext;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::select;

use crate::args::SqlArgs;
use crate::error::Error;
use crate::signals::{Signal, Signals};
use crate::sql::client::{Client, Flow};
use catalog::Catalog;
use editor::{Editor, Line};

/// Name of the init file in the home folder.
const INIT: &str = ".gateworkrc";
/// Name of the history in the home folder.
const HISTORY: &str = ".gatework_history";

/// Runs the shell.
pub(crate) async fn run(mut client: Client, args: &SqlArgs) -> Result<(), Error> {
    let _terminal = SavedTerminal::of_stdin();
    let mut interrupts = Signals::listen(&[Signal::Interrupt])?;
    println(&format!("gatework {}, \\? for help", env!("CARGO_PKG_VERSION")));
    client.be_interactive();
    if let Some(path) = init_file(args) {
        match until_interrupt(&mut interrupts, client.run_file(&path)).await {
            Ok(Flow::Quit) => return client.flush(),
            Ok(Flow::Continue) => {}
            Err(error) => report(&error),
        }
    }
    let catalog = Arc::new(Mutex::new(Catalog::default()));
    let history = env::home_dir().map(|home| home.join(HISTORY));
    let mut editor = Editor::start(catalog.clone(), history)?;
    // The first line takes longer to type.
    tokio::spawn(warm_up(client.context().clone()));
    loop {
        let known = Catalog::of(client.context()).await;
        *catalog.lock().unwrap_or_else(PoisonError::into_inner) = known;
        let text = match editor.next().await? {
            Line::Text(text) => text,
            Line::Discarded => continue,
            Line::End => return client.flush(),
        };
        match until_interrupt(&mut interrupts, client.run_line(&text)).await {
            Ok(Flow::Quit) => return client.flush(),
            Ok(Flow::Continue) => {}
            Err(error) => report(&error),
        }
    }
}

/// Runs a query that nobody waits for, so that the first query of the user finds the pages of the
/// program in memory and the threads of the engine started.
async fn warm_up(session: SessionContext) {
    let sql = "SELECT text, sum(number) AS total FROM (VALUES (1, 'a'), (2, 'b')) AS t(number, \
               text) WHERE number > 0 GROUP BY text ORDER BY total LIMIT 10";
    if let Ok(query) = session.sql(sql).await {
        // An error returns with the user's query.
        let _rows = query.collect().await;
    }
}

/// Runs statements until they end or Ctrl-C drops them.
async fn until_interrupt(
    interrupts: &mut Signals,
    statements: impl Future<Output = Result<Flow, Error>>,
) -> Result<Flow, Error> {
    interrupts.forget();
    select! {
        biased;
        flow = statements => flow,
        signal = interrupts.next() => Err(Error::Ended(signal)),
    }
}

/// The init file: that of the arguments, or the one in the home folder if there is one.
fn init_file(args: &SqlArgs) -> Option<PathBuf> {
    if args.no_init {
        return None;
    }
    let of_home = || env::home_dir().map(|home| home.join(INIT)).filter(|path| path.exists());
    args.init.clone().or_else(of_home)
}

/// Prints an error; the shell goes on.
fn report(error: &Error) {
    if let Some(sentence) = error.sentence() {
        // The message is lost if standard error is closed.
        let _ = writeln!(io::stderr(), "{sentence}");
    }
}

fn println(line: &str) {
    // The prompt reports a closed standard output.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Modes of the terminal, restored when the shell ends, also by a signal while a line is read.
struct SavedTerminal(Option<Termios>);

impl SavedTerminal {
    fn of_stdin() -> Self {
        Self(termios::tcgetattr(io::stdin()).ok())
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            // A terminal that is gone needs no modes.
            let _gone = termios::tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}
