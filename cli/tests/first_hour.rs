//! What a newcomer types within the first hour, with the exact answers.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::{TempDir, tempdir};

/// A folder with small files of each format.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (name, content) in [
        ("people.csv", "id,name\n1,ann\n2,bob\n"),
        ("semicolons.csv", "id;price\n1;2,50\n2;3,75\n"),
        ("bare.csv", "1,ann\n2,bob\n"),
        ("tabs.tsv", "id\tname\n1,5\tann\n"),
        ("array.json", "[{\"id\": 1, \"tags\": [\"a\"]},\n {\"id\": 2, \"tags\": []}]\n"),
        ("lines.json", "{\"id\": 1}\n{\"id\": 2}\n"),
        ("query.sql", "SELECT 1 AS a;\n\\f csv\nSELECT 2 AS b, 3 AS c;\n"),
        ("wrong.sql", "SELECT 1 AS a;\n\nSELECT 2 +\n  ) FROM people;\n"),
        ("loop.sql", "\\i loop.sql\n"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    fs::create_dir(folder.path().join("logs")).unwrap();
    fs::write(folder.path().join("logs/a.csv"), "n\n1\n").unwrap();
    fs::write(folder.path().join("logs/b.csv"), "n\n2\n").unwrap();
    folder
}

/// Runs the command in `folder`, with `stdin`. Returns its exit code and output.
fn run(folder: &Path, arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gatework"))
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may have ended.
    let _ended = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Checks the whole standard output and error of a command that succeeds.
#[track_caller]
fn answers(folder: &TempDir, arguments: &[&str], stdout: &str, stderr: &str) {
    let actual = run(folder.path(), arguments, "");
    assert_eq!(actual, (0, stdout.to_owned(), stderr.to_owned()), "{arguments:?}");
}

/// Checks the whole standard error of a command that fails.
#[track_caller]
fn refuses(folder: &TempDir, arguments: &[&str], stderr: &str) {
    let (code, _, actual) = run(folder.path(), arguments, "");
    assert_eq!((code, actual.as_str()), (1, stderr), "{arguments:?}");
}

#[test]
fn files_of_a_pattern_have_partition_columns() {
    let folder = folder();
    for (name, content) in [("1/a", "n\n1\n"), ("2/a", "n\n2\n"), ("2/_b", "n\n9\n")] {
        let path = folder.path().join("hive").join(format!("day={name}.csv"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for pattern in ["hive/*/*.csv", "./hive/day=*/a.csv", "hive/*/a.*"] {
        let sql = format!("SELECT * FROM '{pattern}' WHERE day = '2'");
        answers(&folder, &[&sql, "--format", "csv"], "n,day\n2,2\n", "");
    }
    // Some of the partitions, and a folder that is not known.
    for pattern in ["hive/day=2/*.csv", "hi*/day=2/*.csv"] {
        let sql = format!("FROM '{pattern}'");
        answers(&folder, &[&sql, "--format", "csv"], "n\n2\n", "");
    }
}

const PEOPLE: &str = "\
+----+------+
| id | name |
+----+------+
|  1 | ann  |
|  2 | bob  |
+----+------+
";

#[test]
fn a_file_is_a_table() {
    let folder = folder();
    answers(&folder, &["FROM 'people.csv'"], PEOPLE, "");
    answers(&folder, &["SELECT * FROM 'people.csv' AS p WHERE p.id < 9"], PEOPLE, "");
    answers(&folder, &["SELECT * FROM './people.csv'"], PEOPLE, "");
    let csv = ["--format", "csv"];
    let query = |sql| [&[sql][..], &csv].concat();
    answers(&folder, &query("SELECT sum(n) AS n FROM 'logs/*.csv'"), "n\n3\n", "");
    answers(&folder, &query("SELECT sum(n) AS n FROM 'logs'"), "n\n3\n", "");
    answers(&folder, &query("SELECT sum(n) AS n FROM logs"), "n\n3\n", "");
    answers(&folder, &query("SELECT id FROM 'array.json' ORDER BY id"), "id\n1\n2\n", "");
    answers(&folder, &query("SELECT id FROM 'lines.json' ORDER BY id"), "id\n1\n2\n", "");
    answers(&folder, &query("COPY (SELECT 7 AS n) TO 'new.parquet'"), "count\n1\n", "");
    answers(&folder, &query("FROM 'new.parquet'"), "n\n7\n", "");
    let join = "SELECT p.name FROM 'people.csv' p JOIN 'lines.json' l USING (id) WHERE p.id = 2";
    answers(&folder, &query(join), "name\nbob\n", "");
    refuses(&folder, &["FROM 'nobody.csv'"], "error: there is no file or folder 'nobody.csv'\n");
    refuses(
        &folder,
        &["FROM people.csv"],
        "error: there is no table 'people.csv'; to read the file, quote it: FROM 'people.csv'\n  \
         FROM people.csv\n       ^\n",
    );
    refuses(
        &folder,
        &["FROM people"],
        "error: there is no table 'people'; name one with --table people=PATH\n  \
         FROM people\n       ^\n",
    );
    refuses(
        &folder,
        &["SELECT * FROM read_csv('people.csv', delim=';')"],
        "error: there is no table function 'read_csv'; write FROM 'FILE' instead\n",
    );
}

#[test]
fn a_file_is_a_table_wherever_a_query_stands() {
    let folder = folder();
    let csv = |sql| [sql, "--format", "csv"];
    for sql in [
        "CREATE TABLE t AS FROM 'people.csv'; FROM t ORDER BY id",
        "CREATE VIEW t AS FROM 'people.csv'; FROM t ORDER BY id",
        "WITH t AS (FROM 'people.csv') SELECT * FROM t ORDER BY id",
        "SELECT * FROM (FROM 'people.csv') ORDER BY id",
        "SELECT * FROM 'people.csv' WHERE EXISTS (FROM 'people.csv') ORDER BY id",
        "FROM 'people.csv' WHERE id < 5 ORDER BY id",
        "FROM read_csv('people.csv') ORDER BY id",
        "WITH t AS (SELECT * FROM READ_CSV_AUTO('people.csv')) SELECT * FROM t ORDER BY id",
    ] {
        answers(&folder, &csv(sql), "id,name\n1,ann\n2,bob\n", "");
    }
    let copy = "COPY (FROM 'people.csv') TO 'copy.csv'; SELECT count(name) AS n FROM 'copy.csv'";
    answers(&folder, &csv(copy), "count\n2\nn\n2\n", "");
    let url = format!("SELECT sum(n) AS n FROM 'file://{}/logs'", folder.path().display());
    answers(&folder, &csv(&url), "n\n3\n", "");
    let more = "COPY (FROM 'people.csv') TO 'p.parquet'; SELECT count(*) AS n \
                FROM read_parquet('p.parquet') p JOIN read_json('lines.json') j ON p.id = j.id";
    answers(&folder, &csv(more), "count\n2\nn\n2\n", "");
    // Names of files are free for tables, and no table that could be dropped.
    let sql = "CREATE TABLE logs AS VALUES (7); FROM logs";
    answers(&folder, &csv(sql), "column1\n7\n", "");
    refuses(&folder, &["DROP TABLE 'people.csv'"], "error: Table 'people.csv' doesn't exist.\n");
}

#[test]
fn json_arrays_are_tables() {
    let folder = folder();
    let csv = |sql| [sql, "--format", "csv"];
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("pretty.json", "[\n  {\n    \"b\": 1,\n    \"a\": {\"y\": 2, \"x\": 3}\n  }\n]\n");
    answers(&folder, &csv("SELECT b, a['x'] AS x FROM 'pretty.json'"), "b,x\n1,3\n", "");
    // In the order of the file.
    let whole = "{\"b\":1,\"a\":{\"y\":2,\"x\":3}}\n";
    answers(&folder, &["FROM 'pretty.json'", "--format", "json"], whole, "");
    answers(&folder, &csv("SELECT * EXCLUDE (a) FROM 'pretty.json'"), "b\n1\n", "");
    // Larger than the ranges that other files are divided into.
    let objects: Vec<_> =
        (0..300_000).map(|id| format!("{{\"id\": {id}, \"text\": \"a text\"}}")).collect();
    write("large.json", &format!("[{}]", objects.join(",\n")));
    let sql = "SELECT count(*) AS n, max(id) AS m FROM 'large.json'";
    answers(&folder, &csv(sql), "n,m\n300000,299999\n", "");
}

#[test]
fn scripts_may_come_from_other_editors() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "mark.sql",
        "\u{FEFF}-- settings\r\n\\f csv\r\n/* done */\r\nSELECT 1 AS a;\r\nexit\r\nSELECT 2;\r\n",
    );
    answers(&folder, &["-f", "mark.sql"], "a\n1\n", "");
    write("late.sql", "\nSELECT 1;\n\nSELECT *\nFROM nothing;\n");
    refuses(
        &folder,
        &["-f", "late.sql", "--format", "csv"],
        "error: late.sql: line 4: there is no table 'nothing'; name one with --table \
         nothing=PATH\n  FROM nothing;\n       ^\n",
    );
}

#[test]
fn the_dialect_of_a_file_is_found_and_said() {
    let folder = folder();
    let csv = |sql| [sql, "--format", "csv"];
    answers(
        &folder,
        &csv("SELECT price FROM 'semicolons.csv' WHERE id = 2"),
        "price\n\"3,75\"\n",
        "note: 'semicolons.csv': values are separated by ';'\n",
    );
    answers(
        &folder,
        &csv("SELECT column_2 FROM 'bare.csv' WHERE column_1 = 1"),
        "column_2\nann\n",
        "note: 'bare.csv': there is no header, columns are named column_1, column_2, …\n",
    );
    answers(&folder, &csv("FROM 'tabs.tsv'"), "id,name\n\"1,5\",ann\n", "");
    let note = "note: 'bare.csv': there is no header, columns are named column_1, column_2, …\n";
    let table = ["SELECT count(*) AS n FROM t", "-t", "t=bare.csv", "--format", "csv"];
    answers(&folder, &table, "n\n2\n", note);
}

#[test]
fn statements_come_from_arguments_files_and_standard_input() {
    let folder = folder();
    let one = "+---+\n| a |\n+---+\n| 1 |\n+---+\n";
    answers(&folder, &["-c", "SELECT 1 AS a"], one, "");
    answers(&folder, &["sql", "SELECT 1 AS a"], one, "");
    answers(&folder, &["-f", "query.sql"], &format!("{one}b,c\n2,3\n"), "");
    answers(&folder, &["-c", "\\i query.sql"], &format!("{one}b,c\n2,3\n"), "");
    let csv = "a\n1\nb\n2\n";
    answers(&folder, &["SELECT 1 AS a", "-c", "SELECT 2 AS b", "--format", "csv"], csv, "");
    for arguments in [&["-"][..], &[], &["sql"], &["-f", "-"]] {
        let (code, stdout, stderr) = run(folder.path(), arguments, "SELECT 1 AS a;\n");
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, one, ""), "{arguments:?}");
    }
    answers(
        &folder,
        &["--init", "query.sql", "SELECT 9 AS a"],
        &format!("{one}b,c\n2,3\na\n9\n"),
        "",
    );
    refuses(
        &folder,
        &["-f", "nothing.sql"],
        "error: 'nothing.sql' cannot be read: No such file or directory (os error 2)\n",
    );
    refuses(
        &folder,
        &["-f", "wrong.sql"],
        "error: wrong.sql: the SQL cannot be parsed, in line 4: Expected: an expression, found: \
         )\n    ) FROM people;\n    ^\n",
    );
    let (code, _, stderr) = run(folder.path(), &["-f", "loop.sql"], "");
    assert_eq!(code, 1);
    assert!(stderr.ends_with("'loop.sql' includes itself, or is nested too deeply\n"), "{stderr}");
}

#[test]
fn plans_are_lines() {
    let folder = folder();
    let plan = "logical_plan\n  Projection: Int64(1)\n    EmptyRelation: rows=1\n\n\
                physical_plan\n  [gatework] ProjectionExec: expr=[1 as Int64(1)]\n    \
                [gatework] PlaceholderRowExec\n";
    answers(&folder, &["EXPLAIN SELECT 1"], plan, "");
    let (_, stdout, _) = run(folder.path(), &["EXPLAIN ANALYZE FROM 'people.csv'"], "");
    let scan = stdout.lines().find(|line| line.contains("DataSourceExec")).unwrap_or_default();
    assert!(scan.contains("metrics=[output_rows=2, "), "{stdout}");
    for arguments in [["--explain", "SELECT 1"], ["SELECT 1", "--explain"]] {
        let (code, stdout, stderr) = run(folder.path(), &arguments, "");
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains("PlaceholderRowExec"), "{stdout}");
        assert!(stdout.ends_with("fallbacks: none\n"), "{stdout}");
    }
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let folder = folder();
    for (sql, error) in [
        (
            "SELEC 1",
            "the SQL cannot be parsed: Expected: an SQL statement, found: SELEC\n  SELEC 1\n  ^",
        ),
        (
            "SELECT 1 +",
            "the SQL cannot be parsed: Expected: an expression, but the statement ends\n  \
             SELECT 1 +\n            ^",
        ),
        (
            "SELECT 'a",
            "the SQL cannot be parsed: Unterminated string literal\n  SELECT 'a\n         ^",
        ),
        (
            "SELECT coutn(id) FROM 'people.csv'",
            "there is no function 'coutn'; did you mean 'count'?\n  \
             SELECT coutn(id) FROM 'people.csv'\n         ^",
        ),
        (
            "SELECT sum(name) FROM 'people.csv'",
            "there is no function sum(Utf8), only sum(Decimal), sum(UInt64), sum(Int64), \
             sum(Float64), sum(Duration), sum(Interval); CAST the arguments",
        ),
        (
            "SELECT concat() FROM 'people.csv'",
            "concat() is not possible: concat does not support zero arguments",
        ),
        (
            "SELECT nam FROM 'people.csv'",
            "there is no column nam. Did you mean '\"people.csv\".name'? Valid fields are \
             \"people.csv\".id, \"people.csv\".name.\n  \
             SELECT nam FROM 'people.csv'\n         ^",
        ),
        (
            "SET gatework.speed = 1",
            "there is no setting gatework.speed; known settings: time_slice, result_buffer_bytes, \
             exchange_buffer_bytes, max_tasks_per_pipeline, resource_group, timeout, \
             share_subplans, reorder_joins",
        ),
        (
            "SET gatework.timeout = 'soon'",
            "'soon' is no value of gatework.timeout, which is a duration such as 10ms, 90s or 5min",
        ),
        ("\\nonsense", "there is no command '\\nonsense'; \\? lists them"),
        (
            ".mode xml",
            "there is no format 'xml'; known formats: table, csv, tsv, json, markdown, vertical, \
             arrow",
        ),
    ] {
        refuses(&folder, &[sql], &format!("error: {error}\n"));
    }
    let (code, _, stderr) = run(folder.path(), &["SELECT 1", "--memory-limit", "512"], "");
    assert_eq!(code, 2);
    assert!(stderr.contains("the unit is missing; write 512MiB, 512GiB or 512B"), "{stderr}");
}

#[test]
fn a_note_is_printed_once() {
    let folder = folder();
    let sql = "SELECT s.id FROM s JOIN 'semicolons.csv' t ON s.id = t.id WHERE s.id = 2";
    answers(
        &folder,
        &["-t", "s=semicolons.csv", "--format", "csv", sql],
        "id\n2\n",
        "note: 'semicolons.csv': values are separated by ';'\n",
    );
}

#[test]
fn columns_are_summarized() {
    let folder = folder();
    let summary = "describe,id,name\ncount,2.0,2\nnull_count,0.0,0\nmean,1.5,null\n\
                   std,0.7071067811865476,null\nmin,1.0,ann\nmax,2.0,bob\nmedian,1.5,null\n";
    for sql in ["SUMMARIZE 'people.csv'", "summarize SELECT * FROM 'people.csv';"] {
        answers(&folder, &[sql, "--format", "csv"], summary, "");
    }
    let two = "summarize SELECT 1 AS a; SELECT 2 AS b";
    let first = "describe,a\ncount,1.0\nnull_count,0.0\nmean,1.0\nstd,\nmin,1.0\nmax,1.0\n\
                 median,1.0\nb\n2\n";
    answers(&folder, &[two, "--format", "csv"], first, "");
    refuses(
        &folder,
        &["SUMMARIZE people"],
        "error: there is no table 'people'; name one with --table people=PATH\n  \
         SELECT * FROM people\n                ^\n",
    );
}

#[test]
fn settings_and_tables_are_listed() {
    let folder = folder();
    let table = ["-t", "people=people.csv", "--format", "csv"];
    let query = |sql| [&[sql][..], &table].concat();
    answers(&folder, &query("\\d"), "schema,name,type\npublic,people,BASE TABLE\n", "");
    let columns = "column_name,data_type,is_nullable\nid,Int64,YES\nname,Utf8,YES\n";
    answers(&folder, &query("\\d people"), columns, "");
    answers(&folder, &query(".schema people.csv"), columns, "");
    let (_, stdout, _) = run(folder.path(), &query("SHOW TABLES"), "");
    assert_eq!(stdout.lines().nth(1), Some("datafusion,public,people,BASE TABLE"));
    let shown = "name,value\ngatework.timeout,1m 30s\n";
    answers(&folder, &query("SET gatework.timeout = '90s'; SHOW gatework.timeout"), shown, "");
    let reset = "SET gatework.timeout = '90s'; RESET gatework.timeout; SHOW gatework.timeout";
    let started = [&query(reset)[..], &["--timeout", "2min"]].concat();
    answers(&folder, &started, "name,value\ngatework.timeout,2m\n", "");
    let (_, stdout, _) = run(folder.path(), &query("SHOW ALL"), "");
    assert!(stdout.contains("gatework.time_slice,10ms\n"), "{stdout}");
    refuses(
        &folder,
        &["SET gatework.timeout = '50ms'; \
             SELECT count(*) FROM generate_series(1, 1000000000) a, generate_series(1, 9) b"],
        "error: the query was ended after 50ms, its time limit; raise the limit or reduce the \
         query's work\n",
    );
}

#[test]
fn results_have_the_formats_of_other_shells() {
    let folder = folder();
    let sql = "SELECT id, name || '|' AS name FROM 'people.csv' WHERE id = 2";
    for (format, result) in [
        ("tsv", "id\tname\n2\tbob|\n"),
        ("markdown", "| id | name  |\n|---:|-------|\n|  2 | bob\\| |\n"),
        ("vertical", "-- row 1\nid   = 2\nname = bob|\n"),
    ] {
        answers(&folder, &[sql, "--format", format], result, "");
        answers(&folder, &[&format!(".mode {format}"), sql], result, "");
    }
    let wide = "SELECT '日本' AS t UNION ALL SELECT 'abcd' ORDER BY t";
    answers(&folder, &[wide], "+------+\n| t    |\n+------+\n| abcd |\n| 日本 |\n+------+\n", "");
}

#[test]
fn completions_and_the_man_page_are_printed() {
    let folder = folder();
    let (code, stdout, _) = run(folder.path(), &["completions", "bash"], "");
    assert!(code == 0 && stdout.contains("complete -F _gatework"), "{stdout}");
    let (code, stdout, _) = run(folder.path(), &["man"], "");
    assert!(code == 0 && stdout.contains(".TH gatework 1") && stdout.contains("Exit codes"));
    let (code, stdout, _) = run(folder.path(), &["--help"], "");
    assert!(code == 0 && stdout.contains("Exit codes: 0 done; 1 failed"), "{stdout}");
}
