//! Detects how a CSV or JSON file is written, from a sample of its beginning.
//!
//! The delimiter is the candidate that cuts the most records into the same number of values, and of
//! those the one with the most values. The first record is the header, unless its values have the
//! types of the values below.

use csv::{ByteRecord, ReaderBuilder};

/// Delimiters, in the order of preference.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Minimum share of the records that have the same number of values.
const MIN_REGULAR: f64 = 0.9;

/// How a CSV file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) delimiter: u8,
    pub(super) has_header: bool,
}

impl Dialect {
    /// Detects the dialect. `delimiter` is that of the file's name, if the name says so; `whole`
    /// tells whether the sample is the whole file, and not cut within a record.
    pub(super) fn detect(sample: &[u8], whole: bool, delimiter: Option<u8>) -> Self {
        let read = |delimiter| records(sample, whole, delimiter);
        let (delimiter, records) = match delimiter {
            Some(delimiter) => (delimiter, read(delimiter)),
            None => {
                let candidates = DELIMITERS.map(|delimiter| (delimiter, read(delimiter)));
                // `max_by_key` takes the last of equal ones.
                let best = candidates.into_iter().rev().max_by_key(|(_, records)| width(records));
                best.unwrap_or((b',', Vec::new()))
            }
        };
        Self { delimiter, has_header: has_header(&records) }
    }

    /// What a reader of the file should know; none if the file is as expected.
    pub(super) fn note(self, expected_delimiter: u8) -> Option<String> {
        let mut parts = Vec::new();
        if self.delimiter != expected_delimiter {
            let name = match self.delimiter {
                b'\t' => "tabs".to_owned(),
                other => format!("'{}'", char::from(other)),
            };
            parts.push(format!("values are separated by {name}"));
        }
        if !self.has_header {
            parts.push("there is no header, columns are named column_1, column_2, …".to_owned());
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The records of a sample, without one that the sample may cut.
fn records(sample: &[u8], whole: bool, delimiter: u8) -> Vec<ByteRecord> {
    let mut reader = ReaderBuilder::new();
    let reader = reader.delimiter(delimiter).has_headers(false).flexible(true);
    let mut records: Vec<_> = reader.from_reader(sample).byte_records().flatten().collect();
    if !whole {
        records.pop();
    }
    records
}

/// The number of values of most records, or 1 if the records are not regular.
fn width(records: &[ByteRecord]) -> usize {
    let Some(first) = records.first() else { return 1 };
    let regular = records.iter().filter(|record| record.len() == first.len()).count();
    match regular as f64 >= records.len() as f64 * MIN_REGULAR {
        true => first.len(),
        false => 1,
    }
}

/// What a value could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Empty,
    Number,
    Boolean,
    /// Digits with separators, such as dates and times.
    Time,
    Text,
}

impl Kind {
    fn of(value: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(value) else { return Self::Text };
        let text = text.trim();
        if text.is_empty() {
            return Self::Empty;
        }
        // "inf" and "nan" are names rather than numbers.
        if text.parse::<f64>().is_ok() && !text.contains(|c: char| c.is_alphabetic() && c != 'e') {
            return Self::Number;
        }
        if ["true", "false"].contains(&text.to_ascii_lowercase().as_str()) {
            return Self::Boolean;
        }
        let digits = text.chars().filter(char::is_ascii_digit).count();
        let is_part = |c: char| c.is_ascii_digit() || "-:.+ TZ/".contains(c);
        match digits >= 4 && text.chars().all(is_part) {
            true => Self::Time,
            false => Self::Text,
        }
    }
}

/// Whether the first record is a header: all columns are text, or a value of the record has another
/// type than the column below.
fn has_header(records: &[ByteRecord]) -> bool {
    let Some((first, rest)) = records.split_first() else { return true };
    let firsts: Vec<_> = first.iter().map(Kind::of).collect();
    if rest.is_empty() {
        return firsts.iter().all(|&kind| kind == Kind::Text);
    }
    let mut typed = false;
    for (column, &kind) in firsts.iter().enumerate() {
        let below = column_kind(rest, column);
        if kind == Kind::Text && !matches!(below, Kind::Text | Kind::Empty) {
            return true;
        }
        typed |= kind != Kind::Text && kind != Kind::Empty && kind == below;
    }
    !typed
}

/// The kind of all values of a column that are not empty.
fn column_kind(records: &[ByteRecord], column: usize) -> Kind {
    let kinds = records.iter().filter_map(|record| record.get(column)).map(Kind::of);
    let mut kinds = kinds.filter(|&kind| kind != Kind::Empty);
    let Some(first) = kinds.next() else { return Kind::Empty };
    if kinds.all(|kind| kind == first) { first } else { Kind::Text }
}

/// Whether the content of a JSON file is one array, and not one object per line.
pub(super) fn is_json_array(sample: &[u8]) -> bool {
    sample
        .strip_prefix(b"\xEF\xBB\xBF")
        .unwrap_or(sample)
        .iter()
        .find(|byte| !byte.is_ascii_whitespace())
        == Some(&b'[')
}

#[cfg(test)]
mod tests {
    use super::{Dialect, is_json_array};

    fn detect(sample: &str) -> (char, bool) {
        let Dialect { delimiter, has_header } = Dialect::detect(sample.as_bytes(), true, None);
        (delimiter.into(), has_header)
    }

    #[test]
    fn delimiters_are_detected() {
        assert_eq!(detect("a,b\n1,2\n"), (',', true));
        assert_eq!(detect("a;b\n1,5;2,5\n3;4,5\n"), (';', true));
        assert_eq!(detect("a\tb\nx, y\tz\n"), ('\t', true));
        assert_eq!(detect("a|b|c\n1|2|3\n"), ('|', true));
        assert_eq!(detect("name\nx\ny\n"), (',', true));
        assert_eq!(detect("a,b\n\"x;y\",\"1\n2\"\n"), (',', true));
        assert_eq!(detect(""), (',', true));
    }

    #[test]
    fn a_header_has_other_types_than_its_columns() {
        assert_eq!(detect("1,ann\n2,bob\n"), (',', false));
        assert_eq!(detect("id,name\n1,ann\n"), (',', true));
        assert_eq!(detect("ann,berlin\nbob,paris\n"), (',', true));
        assert_eq!(detect("2024-01-01,x\n2024-01-02,y\n"), (',', false));
        assert_eq!(detect("day,2024,2025\nmonday,1,2\n"), (',', false));
        assert_eq!(detect("key,2024,2025\n7,1,2\n"), (',', true));
        assert_eq!(detect("1,2,3\n"), (',', false));
        assert_eq!(detect("id,name\n"), (',', true));
        assert_eq!(detect("id,\n,x\n"), (',', true));
        assert_eq!(detect("inf,nan\n1,2\n"), (',', true));
        assert_eq!(detect("ann,true\nbob,false\n"), (',', false));
        assert_eq!(detect("name,member\nbob,false\n"), (',', true));
    }

    #[test]
    fn the_record_that_the_sample_cuts_does_not_count() {
        let dialect = Dialect::detect(b"a;b\n1;2\n3", false, None);
        assert_eq!(dialect, Dialect { delimiter: b';', has_header: true });
    }

    #[test]
    fn only_surprises_are_noted() {
        let note = |delimiter, has_header| Dialect { delimiter, has_header }.note(b',');
        assert_eq!(note(b',', true), None);
        assert_eq!(note(b';', true).unwrap(), "values are separated by ';'");
        let both = note(b'\t', false).unwrap();
        assert!(both.starts_with("values are separated by tabs; there is no header"), "{both}");
    }

    #[test]
    fn arrays_begin_with_a_bracket() {
        assert!(is_json_array(b" \n[{\"a\":1}]"));
        assert!(!is_json_array(b"{\"a\":[1]}") && !is_json_array(b""));
    }
}
