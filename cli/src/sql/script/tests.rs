//! Where statements end, and what is a command.

use super::{Part, Text, is_complete, parts};

fn statements(sql: &str, first_line: usize) -> Part {
    Part::Statements(Text { sql: sql.to_owned(), first_line })
}

fn command(line: &str) -> Part {
    Part::Command(line.to_owned())
}

#[test]
fn a_statement_ends_with_the_line_of_its_semicolon() {
    assert_eq!(
        parts("SELECT 1; SELECT\n2;\n\\timing on\nSELECT 3"),
        [
            statements("SELECT 1; SELECT\n2;\n", 1),
            command("\\timing on"),
            statements("SELECT 3", 4),
        ]
    );
    assert_eq!(parts("\n \n"), []);
    assert_eq!(
        parts("\n\nSELECT 1;\n.tables\n"),
        [statements("\n\nSELECT 1;\n", 1), command(".tables")]
    );
}

#[test]
fn a_command_stands_where_a_statement_could_begin() {
    assert_eq!(
        parts("SELECT a\n.5 + 1;\n.5"),
        [statements("SELECT a\n.5 + 1;\n", 1), statements(".5", 3)]
    );
    assert_eq!(parts("SELECT '\n\\d\n';"), [statements("SELECT '\n\\d\n';", 1)]);
    assert_eq!(parts("-- mine\n/* and */ \n\\d\nexit;\n--end"), [command("\\d"), command("exit;")]);
}

#[test]
fn quotes_and_comments_hide_semicolons() {
    for complete in [
        "",
        "  ",
        "SELECT 1;",
        "SELECT 1; -- done",
        "SELECT 1; /* done; */ ",
        "SELECT ';';",
        "SELECT $$a;b$$;",
        "SELECT $tag$ $$ ; $tag$;",
        "SELECT 'it''s';",
        "SELECT E'it\\'s';",
        "SELECT file'\\';",
        "-- a comment",
        "-- a comment\n\\d t",
        "\\d t",
        ".tables",
        "quit",
        "EXIT;",
    ] {
        assert!(is_complete(complete), "{complete}");
    }
    for open in [
        "SELECT 1",
        "SELECT ';",
        "SELECT \";",
        "SELECT 1 -- ;",
        "SELECT /* ; ",
        "SELECT /* /* */ ;",
        "SELECT $$ ;",
        "SELECT $tag$ $$;",
        "SELECT 'it''s;",
        "SELECT e'it\\';",
        "/* a comment",
    ] {
        assert!(!is_complete(open), "{open}");
    }
    assert!(is_complete("SELECT $1;"));
}
