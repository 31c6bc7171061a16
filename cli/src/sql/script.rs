//! Cuts text into statements and commands of the shell, line by line.
//!
//! A command is a line that begins with `\` or `.` where a statement could begin. A statement ends
//! with the line whose last token is a semicolon. Several statements of one line stay together;
//! DataFusion's parser separates them.

/// A part of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A command with its arguments, such as `\d people`.
    Command(String),
    /// One or several statements.
    Statements(Text),
}

/// A piece of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) sql: String,
    /// Number of its first line in the script; the first line of a script is 1.
    pub(crate) first_line: usize,
}

/// Cuts a script into its parts. The last statement needs no semicolon.
pub(crate) fn parts(script: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = Text { sql: String::new(), first_line: 1 };
    let mut scanner = Scanner::default();
    for (index, line) in script.split_inclusive('\n').enumerate() {
        if scanner.is_between_statements() && is_command(line) {
            parts.push(Part::Command(line.trim().to_owned()));
            text = Text { sql: String::new(), first_line: index + 2 };
            continue;
        }
        text.sql.push_str(line);
        if scanner.push(line) {
            let next = Text { sql: String::new(), first_line: index + 2 };
            parts.push(Part::Statements(std::mem::replace(&mut text, next)));
            scanner = Scanner::default();
        }
    }
    if scanner.begun {
        parts.push(Part::Statements(text));
    }
    parts
}

impl Text {
    /// Number of the line with its first word, as far as no comment stands before it.
    pub(crate) fn line(&self) -> usize {
        let blank = self.sql.lines().take_while(|line| line.trim().is_empty()).count();
        self.first_line + blank
    }
}

/// Whether Enter runs the text instead of starting another line.
pub(crate) fn is_complete(text: &str) -> bool {
    let mut scanner = Scanner::default();
    let is_complete = text.split_inclusive('\n').any(|line| {
        let is_command = scanner.is_between_statements() && is_command(line);
        is_command || scanner.push(line)
    });
    is_complete || scanner.is_between_statements()
}

/// Whether a line at the beginning of a statement is a command of the shell.
fn is_command(line: &str) -> bool {
    if is_quit(line.trim()) {
        return true;
    }
    let mut characters = line.trim_start().chars();
    match characters.next() {
        Some('\\') => true,
        Some('.') => characters.next().is_some_and(|next| next.is_ascii_alphabetic()),
        _ => false,
    }
}

/// Whether a line is a word that ends the shell without being a command.
fn is_quit(line: &str) -> bool {
    ["quit", "exit"].contains(&line.trim_end_matches(';').to_ascii_lowercase().as_str())
}

/// Finds the ends of statements: semicolons outside of quotes and comments.
#[derive(Default)]
struct Scanner {
    within: Within,
    /// Whether there was a token.
    begun: bool,
    /// Whether the last token was a semicolon.
    ended: bool,
    /// The two characters before the next one.
    before: [char; 2],
}

#[derive(Default, Clone, PartialEq)]
enum Within {
    #[default]
    Statement,
    /// A string or a quoted name, until this character.
    Quotes(char),
    /// `E'…'`, in which a backslash escapes a quote.
    Escapes,
    /// `$tag$ … $tag$`, with the whole opening tag.
    Dollars(String),
    /// `/* … */`, with the number of open comments.
    Comments(usize),
}

impl Scanner {
    /// Whether a statement or a command could begin.
    fn is_between_statements(&self) -> bool {
        !self.begun && self.within == Within::Statement
    }

    /// Consumes text that ends with a line. Returns whether a statement ends with it.
    fn push(&mut self, text: &str) -> bool {
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let read = self.advance(rest, character);
            self.before = [self.before[1], character];
            rest = &rest[read..];
        }
        self.ended && self.within == Within::Statement
    }

    /// Consumes the next token, or a character of it. Returns the bytes read.
    fn advance(&mut self, rest: &str, character: char) -> usize {
        let width = character.len_utf8();
        match &mut self.within {
            Within::Statement => return self.begin(rest, character),
            Within::Quotes(end) if *end == character => self.within = Within::Statement,
            Within::Escapes if character == '\'' => self.within = Within::Statement,
            Within::Escapes if character == '\\' => {
                return width + rest[width..].chars().next().map_or(0, char::len_utf8);
            }
            Within::Dollars(tag) if rest.starts_with(tag.as_str()) => {
                let read = tag.len();
                self.within = Within::Statement;
                return read;
            }
            Within::Comments(open) if rest.starts_with("/*") => {
                *open += 1;
                return 2;
            }
            Within::Comments(open) if rest.starts_with("*/") => {
                *open -= 1;
                if *open == 0 {
                    self.within = Within::Statement;
                }
                return 2;
            }
            Within::Quotes(_) | Within::Escapes | Within::Dollars(_) | Within::Comments(_) => {}
        }
        width
    }

    /// Consumes the beginning of a token outside of quotes and comments.
    fn begin(&mut self, rest: &str, character: char) -> usize {
        if rest.starts_with("--") {
            return rest.find('\n').unwrap_or(rest.len());
        }
        if rest.starts_with("/*") {
            self.within = Within::Comments(1);
            return 2;
        }
        if character.is_whitespace() {
            return character.len_utf8();
        }
        self.begun = true;
        self.ended = character == ';';
        let [first, second] = self.before;
        match character {
            '\'' if "eE".contains(second) && !first.is_alphanumeric() && first != '_' => {
                self.within = Within::Escapes;
            }
            '\'' | '"' | '`' => self.within = Within::Quotes(character),
            '$' => {
                if let Some(tag) = dollar_tag(rest) {
                    self.within = Within::Dollars(tag.to_owned());
                    return tag.len();
                }
            }
            _ => {}
        }
        character.len_utf8()
    }
}

/// The tag `$…$` at the beginning of a text; `$1` is a parameter and no tag.
fn dollar_tag(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let end = name.find('$')?;
    let valid = |c: char| c.is_alphanumeric() || c == '_';
    let is_name = name[..end].chars().all(valid) && !name.starts_with(|c: char| c.is_numeric());
    is_name.then(|| &text[..end + 2])
}

#[cfg(test)]
mod tests;
