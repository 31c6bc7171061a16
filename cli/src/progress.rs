//! Progress on standard error, drawn only on a terminal.

use std::borrow::Cow;
use std::io::{IsTerminal, stdout};
use std::pin::pin;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressFinish, ProgressStyle};
use tokio::time::{Instant, timeout_at};

/// Interval of a spinner's animation.
const TICK: Duration = Duration::from_millis(120);
/// Time after which a query has a spinner.
const DELAY: Duration = Duration::from_millis(200);

/// A line with a spinner and the elapsed time.
pub(crate) fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new_spinner()
        .with_finish(ProgressFinish::AndClear)
        .with_style(style("{spinner} {msg} {elapsed}"))
        .with_message(message);
    bar.enable_steady_tick(TICK);
    bar
}

/// A spinner that appears when a query has run for [`DELAY`]: starting it for each short query
/// would take longer than the query.
pub(crate) struct LateSpinner {
    message: &'static str,
    due: Instant,
    shown: Option<ProgressBar>,
}

impl LateSpinner {
    pub(crate) fn new(message: &'static str) -> Self {
        Self { message, due: Instant::now() + DELAY, shown: None }
    }

    /// Waits for `work`, and shows the spinner once it is due.
    pub(crate) async fn watch<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if self.shown.is_none() {
            if let Ok(done) = timeout_at(self.due, &mut work).await {
                return done;
            }
            self.shown = Some(spinner(self.message));
        }
        work.await
    }

    /// Shows a number of rows. Hides the spinner if results go to a terminal too, since both would
    /// overlap.
    pub(crate) fn show_rows(&self, count: u64) {
        let Some(spinner) = &self.shown else { return };
        match stdout().is_terminal() {
            true => spinner.finish_and_clear(),
            false => spinner.set_message(rows(count)),
        }
    }

    /// Hides the spinner.
    pub(crate) fn clear(self) {
        if let Some(spinner) = self.shown {
            spinner.finish_and_clear();
        }
    }
}

/// A progress bar of `parts` parts.
pub(crate) fn bar(parts: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new(parts)
        .with_finish(ProgressFinish::AndClear)
        .with_style(style("{msg} [{bar:40}] {percent}% {elapsed}"))
        .with_message(message);
    bar.enable_steady_tick(TICK);
    bar
}

/// Such as `1,234 rows`.
pub(crate) fn rows(count: u64) -> String {
    format!("{} row{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// Falls back to indicatif's default for an invalid template; a test checks that all templates are
/// valid.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    #[test]
    fn templates_are_valid() {
        for template in ["{spinner} {msg} {elapsed}", "{msg} [{bar:40}] {percent}% {elapsed}"] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
        assert_eq!(super::rows(1), "1 row");
        assert_eq!(super::rows(12_345), "12,345 rows");
    }
}
