//! Progress on standard error, drawn only on a terminal.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressFinish, ProgressStyle};

/// Interval of a spinner's animation.
const TICK: Duration = Duration::from_millis(120);

/// A line with a spinner and the elapsed time.
pub(crate) fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new_spinner()
        .with_finish(ProgressFinish::AndClear)
        .with_style(style("{spinner} {msg} {elapsed}"))
        .with_message(message);
    bar.enable_steady_tick(TICK);
    bar
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
