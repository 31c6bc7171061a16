//! Reads lines from the terminal, with history, completion and several lines per statement.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Helper};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::unbounded_channel;

use super::catalog::Catalog;
use super::completion::{self, Completion};
use crate::error::Error;
use crate::sql::script;

const PROMPT: &str = "gatework> ";

/// Maximum number of entries in the history.
const MAX_HISTORY: usize = 10_000;

/// What the user entered.
pub(super) enum Line {
    /// A command, or statements up to a semicolon.
    Text(String),
    /// Ctrl-C at the prompt.
    Discarded,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// A line editor on a thread of its own, which ends with it or with the process.
pub(super) struct Editor {
    wanted: mpsc::Sender<()>,
    lines: UnboundedReceiver<Result<Line, Error>>,
}

impl Editor {
    /// Starts the editor. `history` is read now, and extended by each line.
    pub(super) fn start(
        catalog: Arc<Mutex<Catalog>>,
        history: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let (wanted, requests) = mpsc::channel();
        let (sender, lines) = unbounded_channel();
        let body = move || {
            let mut terminal = match Terminal::open(catalog, history) {
                Ok(terminal) => terminal,
                Err(error) => {
                    let _left = sender.send(Err(error));
                    return;
                }
            };
            while requests.recv().is_ok() && sender.send(terminal.read()).is_ok() {}
        };
        let started = thread::Builder::new().name("line editor".into()).spawn(body);
        started.map_err(|error| failed(&error))?;
        Ok(Self { wanted, lines })
    }

    /// Reads the next line.
    pub(super) async fn next(&mut self) -> Result<Line, Error> {
        // The thread has reported why it ended.
        let _ended = self.wanted.send(());
        self.lines.recv().await.unwrap_or(Ok(Line::End))
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("the terminal cannot be read: {error}"))
}

/// The editor's state on its thread.
struct Terminal {
    editor: rustyline::Editor<Assistant, FileHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    fn open(catalog: Arc<Mutex<Catalog>>, history: Option<PathBuf>) -> Result<Self, Error> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .completion_prompt_limit(200)
            .max_history_size(MAX_HISTORY)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(|error| failed(&error))?
            .auto_add_history(true)
            .build();
        let mut editor = rustyline::Editor::with_config(config).map_err(|error| failed(&error))?;
        editor.set_helper(Some(Assistant { catalog, files: FilenameCompleter::new() }));
        if let Some(path) = &history {
            // The first shell of a user has no history.
            let _missing = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    fn read(&mut self) -> Result<Line, Error> {
        match self.editor.readline(PROMPT) {
            Ok(text) => {
                if let Some(path) = &self.history {
                    // A home folder that cannot be written has no history.
                    let _read_only = self.editor.append_history(path);
                }
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Discarded),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Completes words, and decides when a statement is complete.
struct Assistant {
    catalog: Arc<Mutex<Catalog>>,
    files: FilenameCompleter,
}

impl Helper for Assistant {}
impl Highlighter for Assistant {}

impl Hinter for Assistant {
    type Hint = String;
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match script::is_complete(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        match completion::complete(line, position, &catalog) {
            Completion::Files => self.files.complete(line, position, context),
            Completion::Words { start, words } => {
                let pair = |word: String| Pair { display: word.clone(), replacement: word };
                Ok((start, words.into_iter().map(pair).collect()))
            }
        }
    }
}
