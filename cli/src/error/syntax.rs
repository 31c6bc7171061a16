//! Where in its text SQL is wrong.

use unicode_width::UnicodeWidthStr;

use super::one_line;
use crate::sql::script::Text;

/// Maximum characters of the line that is shown.
const WIDTH: usize = 100;

/// Describes a parser's error. Shows the line with a caret below the place, if the error has one.
pub(super) fn explain(error: &str, text: &Text) -> String {
    let error = one_line(error);
    let error = error.trim_start_matches("sql parser error: ");
    let (reason, place) = match error.rsplit_once(" at Line: ") {
        Some((reason, place)) => (reason, parse_place(place)),
        None => (error, None),
    };
    let place = place.or_else(|| error.ends_with("found: EOF").then(|| end(&text.sql)));
    let Some(place) = place else {
        return format!("the SQL cannot be parsed: {error}");
    };
    let in_line = match text.first_line + place.0 - 1 {
        1 => String::new(),
        line => format!(", in line {line}"),
    };
    let reason = reason.replace("found: EOF", "but the statement ends");
    format!("the SQL cannot be parsed{in_line}: {reason}\n{}", point(text, place))
}

/// The line of a place, and a caret below the column. Lines and columns begin with 1.
pub(super) fn point(text: &Text, (line, column): (usize, usize)) -> String {
    let shown = text.sql.lines().nth(line - 1).unwrap_or_default();
    let (shown, column) = window(shown, column);
    let before: String = shown.chars().take(column - 1).collect();
    let caret = " ".repeat(before.width());
    format!("  {shown}\n  {caret}^")
}

/// Line and column of "1, Column: 8"; both begin with 1.
fn parse_place(place: &str) -> Option<(usize, usize)> {
    let (line, column) = place.split_once(", Column: ")?;
    let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
    (line > 0 && column > 0).then_some((line, column))
}

/// The place behind the last token.
fn end(sql: &str) -> (usize, usize) {
    let trimmed = sql.trim_end();
    let line = trimmed.lines().count().max(1);
    (line, trimmed.lines().last().unwrap_or_default().chars().count() + 1)
}

/// At most [`WIDTH`] characters of a line around a column, and the column among them.
fn window(line: &str, column: usize) -> (String, usize) {
    let fits = line.chars().count() <= WIDTH;
    let begin = if fits { 0 } else { (column - 1).saturating_sub(WIDTH / 2) };
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let shown = line.chars().skip(begin).take(WIDTH).map(printable).collect();
    (shown, column - begin)
}

#[cfg(test)]
mod tests {
    use super::explain;
    use crate::sql::script::Text;

    fn explained(error: &str, sql: &str, first_line: usize) -> String {
        explain(error, &Text { sql: sql.to_owned(), first_line })
    }

    #[test]
    fn a_caret_points_to_the_place() {
        assert_eq!(
            explained(
                "sql parser error: Expected: an expression, found: FROM at Line: 1, Column: 8",
                "SELECT FROM t",
                1
            ),
            "the SQL cannot be parsed: Expected: an expression, found: FROM\n  \
             SELECT FROM t\n         ^"
        );
    }

    #[test]
    fn lines_are_counted_in_the_file() {
        let error = "sql parser error: Expected: an expression, found: ; at Line: 2, Column: 1";
        assert_eq!(
            explained(error, "SELECT\n;", 5),
            "the SQL cannot be parsed, in line 6: Expected: an expression, found: ;\n  ;\n  ^"
        );
    }

    #[test]
    fn the_end_is_a_place_too() {
        assert_eq!(
            explained("sql parser error: Expected: an expression, found: EOF", "SELECT 1 +\n", 1),
            "the SQL cannot be parsed: Expected: an expression, but the statement ends\n  \
             SELECT 1 +\n            ^"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let sql = format!("{}x{}", "a".repeat(500), "b".repeat(500));
        let text = explained("sql parser error: no at Line: 1, Column: 501", &sql, 1);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1].chars().count(), 102);
        assert_eq!(lines[1].chars().nth(lines[2].len() - 1), Some('x'));
    }
}
