//! The shell in a real terminal: tmux types the keys and shows the screen.
//!
//! Ignored by default, since tmux may not be installed; `.ci/run` installs it and runs them.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

/// Maximum time until the screen shows what a test waits for.
const LIMIT: Duration = Duration::from_secs(60);

/// A terminal of 100 columns and 30 rows in which the shell runs.
struct Terminal {
    /// Home and working folder of the shell, with tmux's socket.
    home: TempDir,
}

impl Terminal {
    /// Starts a shell with a table `people`.
    fn start() -> Self {
        let home = tempdir().unwrap();
        let people = "id,name\n1,ann\n2,bob\n3,\n";
        fs::write(home.path().join("people.csv"), people).unwrap();
        let terminal = Self { home };
        terminal.start_shell();
        terminal
    }

    fn start_shell(&self) {
        let gatework = env!("CARGO_BIN_EXE_gatework");
        let home = self.home.path().display();
        let shell = format!("cd {home} && HOME={home} exec {gatework} --table people=people.csv");
        // A status line would take a row of the screen.
        self.tmux(&["new-session", "-d", "-x", "100", "-y", "30", &shell]);
        self.tmux(&["set", "-g", "status", "off"]);
        self.wait_for_last_line(PROMPT);
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let socket = self.home.path().join("tmux");
        let mut command = Command::new("tmux");
        command.arg("-S").arg(socket).args(["-f", "/dev/null"]).args(arguments);
        let output = command.output().expect("tmux is installed");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types text as it is.
    fn write(&self, text: &str) {
        // To tmux, a semicolon at the end of an argument separates commands.
        let escaped = match text.strip_suffix(';') {
            Some(text) => format!("{text}\\;"),
            None => text.to_owned(),
        };
        self.tmux(&["send-keys", "-l", &escaped]);
    }

    /// Presses keys, such as `Enter` or `C-c`.
    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a line and Enter.
    fn enter(&self, line: &str) {
        self.write(line);
        self.press(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen shows `text`, and returns the screen.
    #[track_caller]
    fn wait(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }

    /// Waits until the last line of the screen is `line`.
    #[track_caller]
    fn wait_for_last_line(&self, line: &str) -> String {
        let is_last = |screen: &str| screen.trim_end().lines().next_back() == Some(line);
        self.wait_until(line, is_last)
    }

    #[track_caller]
    fn wait_until(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if shows(&screen) {
                return screen;
            }
            assert!(started.elapsed() < LIMIT, "no '{what}' on the screen:\n{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn has_ended(&self) -> bool {
        self.tmux(&["list-sessions"]).is_empty()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// The prompt, without the blank behind it.
const PROMPT: &str = "gatework>";

#[test]
#[ignore = "needs tmux"]
fn statements_run_and_errors_do_not_end_the_shell() {
    let terminal = Terminal::start();
    terminal.enter("SELECT name FROM people WHERE id = 2;");
    let screen = terminal.wait("1 row\n");
    assert!(screen.contains("| bob  |"), "{screen}");
    terminal.enter("SELECT nam FROM people;");
    terminal.wait("error: there is no column nam. Did you mean 'people.name'?");
    terminal.enter("SELECT 1 + ) FROM people;");
    terminal.wait("found: )\n  SELECT 1 + ) FROM people;\n             ^");
    terminal.enter("\\timing");
    terminal.wait("timing: on");
    terminal.enter("SELECT count(*) AS n FROM 'people.csv';");
    terminal.wait("1 row in 0.");
    terminal.press(&["C-d"]);
    terminal.wait_until("the end", |_| terminal.has_ended());
}

#[test]
#[ignore = "needs tmux"]
fn a_statement_may_have_several_lines() {
    let terminal = Terminal::start();
    terminal.enter("SELECT 40");
    terminal.enter("  + 2 AS answer");
    assert!(!terminal.screen().contains("row"), "{}", terminal.screen());
    terminal.enter(";");
    let screen = terminal.wait("1 row");
    assert!(screen.contains("|     42 |"), "{screen}");
}

#[test]
#[ignore = "needs tmux"]
fn tables_columns_functions_and_files_are_completed() {
    let terminal = Terminal::start();
    terminal.write("SELECT coun");
    terminal.press(&["Tab"]);
    terminal.wait("SELECT count(");
    terminal.write("nam");
    terminal.press(&["Tab"]);
    terminal.wait("SELECT count(name");
    terminal.write(") FROM peo");
    terminal.press(&["Tab"]);
    terminal.wait_for_last_line("gatework> SELECT count(name) FROM people");
    terminal.enter(";");
    terminal.wait("1 row");
    terminal.write("SELECT * FROM 'peop");
    terminal.press(&["Tab"]);
    terminal.wait_for_last_line("gatework> SELECT * FROM 'people.csv");
    terminal.enter("' ORDER BY id;");
    terminal.wait("3 rows");
}

#[test]
#[ignore = "needs tmux"]
fn the_history_outlives_the_shell() {
    let terminal = Terminal::start();
    terminal.enter("SELECT 7 AS seven;");
    terminal.wait("1 row");
    terminal.enter("\\q");
    terminal.wait_until("the end", |_| terminal.has_ended());
    terminal.start_shell();
    terminal.press(&["Up", "Up"]);
    terminal.wait_for_last_line("gatework> SELECT 7 AS seven;");
    terminal.press(&["Enter"]);
    terminal.wait("1 row");
}

#[test]
#[ignore = "needs tmux"]
fn ctrl_c_cancels_the_query_and_not_the_shell() {
    let terminal = Terminal::start();
    terminal.enter("SELECT sum(value) FROM generate_series(1, 1000000000000);");
    terminal.wait("running");
    terminal.press(&["C-c"]);
    terminal.wait("cancelled by Ctrl-C");
    terminal.wait_for_last_line(PROMPT);
    terminal.write("not a statement");
    terminal.press(&["C-c"]);
    terminal.wait_for_last_line(PROMPT);
    terminal.enter("SELECT 1 AS alive;");
    terminal.wait("1 row");
}

#[test]
#[ignore = "needs tmux"]
fn a_result_that_exceeds_the_screen_is_paged() {
    let terminal = Terminal::start();
    terminal.enter("SELECT value FROM generate_series(1, 500) ORDER BY value;");
    // less shows the first page.
    let screen = terminal.wait("|    20 |");
    assert!(!screen.contains("| 500 |") && !screen.contains("500 rows"), "{screen}");
    terminal.press(&["q"]);
    terminal.wait_for_last_line(PROMPT);
    terminal.enter("SELECT repeat('wide ', 40) AS text;");
    terminal.wait("| wide wide");
    terminal.press(&["q"]);
    terminal.wait_for_last_line(PROMPT);
    terminal.enter("\\pager off");
    terminal.wait("pager: off");
    terminal.enter("SELECT value FROM generate_series(1, 500) ORDER BY value;");
    terminal.wait("500 rows");
}

#[test]
#[ignore = "needs tmux"]
fn the_init_file_runs_first() {
    let terminal = Terminal::start();
    let init = terminal.home.path().join(".gateworkrc");
    fs::write(init, "\\timing on\nCREATE VIEW v AS SELECT 5 AS five;\n").unwrap();
    terminal.enter("\\q");
    terminal.wait_until("the end", |_| terminal.has_ended());
    terminal.start_shell();
    terminal.enter("FROM v;");
    terminal.wait("1 row in 0.");
}

/// Results go to a file, and back to the screen.
#[test]
#[ignore = "needs tmux"]
fn results_go_to_a_file() {
    let terminal = Terminal::start();
    // Nothing that is typed ahead is lost.
    for line in ["\\f csv", "\\o result.csv", "SELECT id FROM people ORDER BY id;", "\\o"] {
        terminal.enter(line);
    }
    terminal.enter("SELECT 'back' AS screen;");
    terminal.wait("screen\nback");
    let written = fs::read_to_string(terminal.home.path().join("result.csv")).unwrap();
    assert_eq!(written, "id\n1\n2\n3\n");
}
