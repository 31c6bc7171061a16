//! Progress on standard error, drawn only if that is a terminal.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);

/// A line that shows that something is going on, and for how long.
pub(crate) fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new_spinner()
        .with_style(style("{spinner} {msg} {elapsed}"))
        .with_message(message);
    bar.enable_steady_tick(TICK);
    bar
}

/// A bar that fills up to `parts`.
pub(crate) fn bar(parts: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new(parts)
        .with_style(style("{msg} [{bar:40}] {percent}% {elapsed}"))
        .with_message(message);
    bar.enable_steady_tick(TICK);
    bar
}

/// `1,234 rows`.
pub(crate) fn rows(count: u64) -> String {
    format!("{} row{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// A template with a mistake falls back to indicatif's own; a test sees to it that ours have none.
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
