//! The binary as a user runs it: its output, its errors, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a helper of a test that fails fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::{TempDir, tempdir};

fn gatework(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatework"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = gatework(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, sentence: &str) {
    let (actual, stdout, stderr) = run(arguments);
    assert!(stderr.contains(sentence), "{arguments:?} said: {stderr}{stdout}");
    assert_eq!(actual, code, "{arguments:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    if code == 1 {
        // The place in the SQL takes two lines more.
        let lines: Vec<_> = stderr.lines().collect();
        let points = lines.last().is_some_and(|line| line.trim() == "^");
        let more = if points { 2 } else { 0 };
        assert_eq!(lines.len(), 1 + more, "one sentence: {stderr}");
    }
}

/// Runs a command in `folder`. Returns its exit code and output.
fn run_in(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        gatework(arguments).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn csv() -> (TempDir, String) {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("t.csv"), "id,name\n1,x\n2,y\n3,\n").unwrap();
    let table = format!("t={}", folder.path().join("t.csv").display());
    (folder, table)
}

#[test]
fn results_in_every_format() {
    let (_folder, table) = csv();
    let sql = "SELECT id, name FROM t WHERE id > 1 ORDER BY id";
    let print = |format| run(&["sql", sql, "--table", &table, "--format", format]);
    assert_eq!(print("csv"), (0, "id,name\n2,y\n3,\n".to_owned(), String::new()));
    assert_eq!(print("json").1, "{\"id\":2,\"name\":\"y\"}\n{\"id\":3,\"name\":null}\n");
    assert_eq!(
        print("table").1,
        "+----+------+\n| id | name |\n+----+------+\n|  2 | y    |\n|  3 | NULL |\n+----+------+\n"
    );
    let arrow =
        gatework(&["sql", sql, "--table", &table, "--format", "arrow"]).output().unwrap().stdout;
    let read = arrow::ipc::reader::StreamReader::try_new(arrow.as_slice(), None).unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2);
}

#[test]
fn statements_run_in_one_session() {
    let (_folder, table) = csv();
    let sql = "CREATE VIEW v AS SELECT id FROM t; SELECT count(*) AS n FROM v; -- a ; in a comment";
    let (code, stdout, stderr) = run(&[
        "sql",
        sql,
        "SELECT ';' AS s, max(id) AS m FROM v",
        "--table",
        &table,
        "--format",
        "csv",
    ]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "n\n3\ns,m\n;,3\n", ""));
}

#[test]
fn explain_prints_the_plan_and_runs_nothing() {
    let (_folder, table) = csv();
    let (code, stdout, _) = run(&["sql", "SELECT id / 0 FROM t", "--table", &table, "--explain"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("fallbacks: "), "{stdout}");
    let sql = "SELECT name, sum(id / 0) FROM t GROUP BY name ORDER BY name";
    let (code, stdout, _) = run(&["sql", sql, "--table", &table, "--explain", "stages"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("Stage 0 [SINGLE, 1 task] gives the result\n"), "{stdout}");
}

#[test]
fn bad_sql_is_answered_with_a_sentence() {
    let (_folder, table) = csv();
    for (sql, sentence) in [
        ("SELECT * FROM u", "there is no table 'u'; known tables: t; add one with --table u=PATH"),
        ("SELECT nam FROM t", "there is no column nam. Did you mean 't.name'?"),
        ("SELECT coutn(id) FROM t", "there is no function 'coutn'; did you mean 'count'?"),
        ("SELECT id / 0 FROM t", "the query divides by zero"),
        (
            "SELECT CAST(repeat('9', 38) AS DECIMAL(38, 0)) * (id + 9) FROM t",
            "a number grows too large for its type",
        ),
        ("SELECT CAST(name AS INT) FROM t", "a value cannot be converted"),
        ("SELECT id + INTERVAL '1 day' FROM t", "error: "),
        ("SELECT frobnicate(id) FROM t", "there is no function 'frobnicate'; SHOW FUNCTIONS"),
    ] {
        fails(&["sql", sql, "--table", &table], 1, sentence);
    }
}

#[test]
fn bad_files_are_answered_with_a_sentence() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("text.parquet"), "PAR1 but no Parquet file").unwrap();
    fs::write(at("empty.csv"), "").unwrap();
    fs::write(at("notes.txt"), "hello").unwrap();
    fs::create_dir(at("folder")).unwrap();
    for (path, sentence) in [
        ("missing.parquet", "there is no file or folder"),
        ("text.parquet", "is not a whole Parquet file"),
        ("empty.csv", "is empty"),
        ("notes.txt", "the format of"),
        ("folder", "has no files to read"),
        ("*.gone", "no file matches"),
    ] {
        fails(&["sql", "SELECT 1", "--table", &format!("t={}", at(path))], 1, sentence);
    }
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, table) = csv();
    let path = folder.path().join("t.csv");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything, so there is nothing to test.
    if fs::File::open(&path).is_err() {
        fails(&["sql", "SELECT 1", "--table", &table], 1, "cannot be read: Permission denied");
    }
}

#[test]
fn paths_may_have_any_name() {
    let folder = tempdir().unwrap();
    let sub = folder.path().join("sub/~");
    fs::create_dir_all(&sub).unwrap();
    let select = "SELECT n FROM t";
    let names =
        ["x.csv", "a b.csv", "50%.csv", "a%20b.csv", "a#b.csv", "a?b.csv", "~c.csv", "ü.csv"];
    for name in names {
        fs::write(folder.path().join(name), "n\n1\n").unwrap();
        fs::write(sub.join(name), "n\n2\n").unwrap();
        for (path, value) in [
            (format!("../../{name}"), 1),
            (format!("./{name}"), 2),
            (name.to_owned(), 2),
            (format!("{}/../~/./{name}", sub.display()), 2),
        ] {
            let table = format!("t={path}");
            let (code, stdout, stderr) =
                run_in(&sub, &["sql", select, "--table", &table, "--format", "csv"]);
            let printed = format!("n\n{value}\n");
            assert_eq!((code, stdout, stderr.as_str()), (0, printed, ""), "{path}");
        }
    }
    for path in ["..", "../../sub/~", "."] {
        fs::write(sub.parent().unwrap().join("y.csv"), "n\n3\n").unwrap();
        let table = format!("t={path}");
        let (code, _, stderr) = run_in(&sub, &["sql", select, "--table", &table]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{path}");
    }
}

#[cfg(unix)]
#[test]
fn behind_a_link_the_folder_above_is_that_of_its_target() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("there/below")).unwrap();
    std::os::unix::fs::symlink(at("there/below"), at("link")).unwrap();
    fs::write(at("x.csv"), "n\n1\n").unwrap();
    fs::write(at("there/x.csv"), "n\n2\n").unwrap();
    let arguments = ["sql", "SELECT n FROM t", "--table", "t=link/../x.csv", "--format", "csv"];
    assert_eq!(run_in(folder.path(), &arguments), (0, "n\n2\n".to_owned(), String::new()));
}

#[test]
fn statements_name_files_by_relative_paths() {
    let folder = tempdir().unwrap();
    let sub = folder.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let sql = "COPY (SELECT 7 AS n) TO '../out #1%.csv'; \
               CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '../sub/../out #1%.csv'; \
               SELECT n FROM t";
    let (code, stdout, stderr) = run_in(&sub, &["sql", sql, "--format", "csv"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "count\n1\nn\n7\n", ""));
    assert_eq!(fs::read_to_string(folder.path().join("out #1%.csv")).unwrap(), "n\n7\n");
}

#[test]
fn a_table_has_what_was_written_to_its_files_before() {
    let folder = tempdir().unwrap();
    let path = folder.path().display();
    let copy = |from: u32, to: u32, file: &str| {
        format!(
            "COPY (SELECT value AS a FROM generate_series({from}, {to})) TO '{path}/{file}.parquet'"
        )
    };
    let create = format!("CREATE EXTERNAL TABLE t (a BIGINT) STORED AS PARQUET LOCATION '{path}/'");
    let rows = "SELECT count(*) AS n FROM t WHERE a > 100";
    let statements =
        [&create, &copy(1, 10, "0"), rows, &copy(101, 110, "0"), rows, &copy(111, 120, "1"), rows];
    let mut arguments = vec!["sql", "--format", "csv"];
    arguments.extend(statements);
    let (code, stdout, stderr) = run(&arguments);
    let expected = "count\n10\nn\n0\ncount\n10\nn\n10\ncount\n10\nn\n20\n";
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, expected, ""));

    let table = format!("t={path}");
    let more = copy(121, 130, "2");
    let (_, stdout, _) = run(&["sql", rows, &more, rows, "--table", &table, "--format", "csv"]);
    assert_eq!(stdout, "n\n20\ncount\n10\nn\n30\n");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_table() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("t.csv");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.display().to_string(), folder.path().join("*.csv").display().to_string()] {
        fails(&["sql", "SELECT 1", "--table", &format!("t={path}")], 1, "is a pipe or a device");
    }
}

/// Truncates a text file while its rows wait for a reader. The rows read so far are printed, then
/// an error.
#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    for (extension, head, row) in
        [("csv", "a,b\n", "1,text of a row\n"), ("json", "", "{\"a\":1,\"b\":\"text of a row\"}\n")]
    {
        let folder = tempdir().unwrap();
        let path = folder.path().join("t").with_extension(extension);
        fs::write(&path, format!("{head}{}", row.repeat(1_500_000))).unwrap();
        let table = format!("t={}", path.display());
        let sql = "SELECT a, b FROM t";
        let arguments = ["sql", sql, "--table", &table, "--format", "csv", "--threads", "2"];
        let mut child = start(gatework(&arguments));
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
        let (code, said) = end(child);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("changed"), "{said}");
    }
}

#[test]
fn deep_statements_run_or_are_refused() {
    let (_folder, table) = csv();
    let chain = |operator: &str, terms: usize| {
        let terms: Vec<_> = (0..terms).map(|term| format!("id % {} = 1", term + 5)).collect();
        format!("SELECT count(*) AS n FROM t WHERE {}", terms.join(operator))
    };
    let ctes: String = (1..1000)
        .map(|cte| format!(", c{cte} AS (SELECT id + 1 AS id FROM c{})", cte - 1))
        .collect();
    let ctes = format!("WITH c0 AS (SELECT id FROM t){ctes} SELECT max(id) AS n FROM c999");
    for (sql, expected) in
        [(chain(" OR ", 3500), "n\n1\n"), (chain(" AND ", 3500), "n\n1\n"), (ctes, "n\n1002\n")]
    {
        let (code, stdout, stderr) = run(&["sql", &sql, "--table", &table, "--format", "csv"]);
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, expected, ""), "{}", &sql[..60]);
    }
    let sum = format!("SELECT 1{}", "+1".repeat(60_000));
    fails(
        &["sql", &sum],
        1,
        "the statement is nested too deeply: it has a chain of 60000 operators",
    );
}

#[test]
fn arguments_without_sense_are_usage_errors() {
    fails(&["sql", "SELECT 1", "--threads", "0"], 2, "it must be at least 1");
    fails(&["sql", "SELECT 1", "--table", "nothing"], 2, "NAME=PATH");
    fails(&["tpch", "--queries", "one"], 2, "not the number of a query");
    fails(&["tpch", "--scale-factor", "0"], 2, "between 0.001 and 100000");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let sql = "SELECT * FROM generate_series(1, 3000000)";
    let mut child = gatework(&["sql", sql, "--format", "csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "value\n");
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Exit code and standard error of a child.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[cfg(unix)]
#[test]
fn ctrl_c_cancels_the_query_and_says_so() {
    // Endless in practice; the first rows show that the query runs.
    let sql = "SELECT * FROM generate_series(1, 1000000000000)";
    let mut child = start(gatework(&["sql", sql, "--format", "csv"]));
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    signal(&child, "INT");
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    assert_eq!(end(child), (Some(130), "cancelled by Ctrl-C\n".to_owned()));
}

/// A query that spills for a long time.
const SPILLS: &str = "SELECT count(*) FROM (
    SELECT value, count(*) FROM generate_series(1, 1000000000000) GROUP BY 1
)";

/// Whether a folder has a file, at any depth.
fn has_files(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.is_file() || has_files(&path))
}

/// Ends a command by a signal once it spills into `folder`.
fn ends_clean(arguments: &[&str], folder: &Path, name: &str, expected: (i32, &str)) {
    let temp = folder.display().to_string();
    let limits = ["--memory-limit", "4MiB", "--temp-dir", &temp];
    let child = start(gatework(&[arguments, &limits].concat()));
    while !has_files(folder) {
        std::thread::yield_now();
    }
    signal(&child, name);
    let (code, said) = end(child);
    assert_eq!((code, said.as_str()), (Some(expected.0), expected.1), "{arguments:?}, {name}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{arguments:?}, {name}");
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_no_temporary_file() {
    let (temp, folder) = (tempdir().unwrap(), tempdir().unwrap());
    let data = folder.path().join("data").display().to_string();
    fs::write(folder.path().join("q1.sql"), SPILLS).unwrap();
    let queries = folder.path().display().to_string();
    let tpch = ["tpch", "--scale-factor", "0.001", "--data", &data, "--query-dir", &queries];
    for (name, code, said) in
        [("TERM", 143, "ended by SIGTERM\n"), ("HUP", 129, "ended by SIGHUP\n")]
    {
        ends_clean(&["sql", SPILLS], temp.path(), name, (code, said));
        ends_clean(&tpch, temp.path(), name, (code, said));
    }
}

#[cfg(unix)]
#[test]
fn a_worker_is_ended_by_sighup_and_drained_by_sigterm() {
    for (name, code) in [("HUP", 129), ("TERM", 0)] {
        let mut child = start(gatework(&["worker", "--threads", "1"]));
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        signal(&child, name);
        assert_eq!(end(child).0, Some(code), "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn sighup_is_ignored_where_the_process_is_to_ignore_it() {
    let gatework = env!("CARGO_BIN_EXE_gatework");
    let mut command = Command::new("sh");
    let sql = "SELECT * FROM generate_series(1, 1000000000000)";
    let script = "trap '' HUP; exec \"$0\" \"$@\"";
    command.args(["-c", script, gatework, "sql", sql, "--format", "csv"]);
    let mut child = start(command);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    signal(&child, "HUP");
    signal(&child, "TERM");
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    assert_eq!(end(child), (Some(143), "ended by SIGTERM\n".to_owned()));
}

#[test]
fn limits_end_a_query_or_make_it_spill() {
    let endless =
        "SELECT count(*) FROM generate_series(1, 100000000) a, generate_series(1, 100000000) b";
    fails(&["sql", endless, "--timeout", "100ms"], 1, "ended after 100ms, its time limit");
    // A query within its limit succeeds.
    assert_eq!(run(&["sql", "SELECT 1 AS n", "--timeout", "1h", "--format", "csv"]).1, "n\n1\n");

    let folder = tempdir().unwrap();
    let path = folder.path().display().to_string();
    let groups = "SELECT count(*) AS n FROM (SELECT value % 299999 AS k, sum(value)
        FROM generate_series(1, 300000) GROUP BY 1)";
    let limited = |more: &[&'static str]| {
        let mut arguments = vec!["sql", groups, "--memory-limit", "4MiB", "--format", "csv"];
        arguments.extend(["--temp-dir", &path]);
        arguments.extend(more);
        run(&arguments)
    };
    assert_eq!(limited(&[]), (0, "n\n299999\n".to_owned(), String::new()));
    let (code, _, stderr) = limited(&["--max-temp-size", "10KB"]);
    assert_eq!((code, stderr.lines().count()), (1, 1), "{stderr}");
    assert!(stderr.contains("max_temp_directory_size"), "{stderr}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    let join =
        "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b
        ON a.value = b.value * 3";
    let (code, stdout, _) = run(&["sql", join, "--memory-limit", "1MiB", "--format", "csv"]);
    assert_eq!((code, stdout.as_str()), (0, "count(*)\n333333\n"));
    let pairs = join.replace("a.value = b.value * 3", "a.value < b.value - 999999");
    let holder = "largest reservations of this query: nested-loop join build";
    fails(&["sql", &pairs, "--memory-limit", "1MiB"], 1, holder);
    fails(&["sql", "SELECT 1", "--temp-dir", "/nowhere"], 1, "/nowhere is not a folder");
}

fn small_data(folder: &Path) -> String {
    folder.join("data").display().to_string()
}

#[test]
fn tpch_makes_data_runs_verifies_and_reports() {
    let folder = tempdir().unwrap();
    let (data, json) =
        (small_data(folder.path()), folder.path().join("out.json").display().to_string());
    let (code, stdout, stderr) = run(&[
        "tpch",
        "--scale-factor",
        "0.01",
        "--data",
        &data,
        "--iterations",
        "2",
        "--json",
        &json,
    ]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("scale factor 0.01"), "{stdout}");
    assert!(stdout.lines().last().unwrap().contains("22 of 22"), "{stdout}");
    let outcomes: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(outcomes.len(), 22);
    assert!(outcomes.iter().all(|outcome| outcome["verified"] == true));
    assert!(outcomes.iter().all(|outcome| outcome["seconds"].as_array().unwrap().len() == 2));
    assert_eq!((&outcomes[0]["query"], &outcomes[0]["rows"]), (&1.into(), &4.into()));

    // One failing query does not stop the others, and the exit code reports it.
    let queries = folder.path().join("queries");
    fs::create_dir(&queries).unwrap();
    fs::write(queries.join("q1.sql"), "SELECT nothing FROM region").unwrap();
    let view =
        "CREATE VIEW v AS SELECT * FROM region; SELECT count(*) FROM v WHERE r_name <> 'a;b'";
    fs::write(queries.join("q2.sql"), view).unwrap();
    let queries = queries.display().to_string();
    let (code, stdout, stderr) =
        run(&["tpch", "--data", &data, "--query-dir", &queries, "--json", &json]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "error: 1 of 2 queries failed, differed or fell back: q1\n");
    assert!(stdout.contains("failed: there is no column nothing"), "{stdout}");
    let outcomes: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&outcomes[0]["verified"], &outcomes[1]["verified"]), (&false.into(), &true.into()));
    assert_eq!(outcomes[1]["rows"], 1);

    fails(
        &["tpch", "--data", &data, "--queries", "23"],
        1,
        "there is no query 23; TPC-H has 1 to 22",
    );
    fails(&["tpch", "--data", &data, "--scale-factor", "1"], 1, "has other data");
    fails(
        &["tpch", "--data", &data, "--json", "/nowhere/out.json"],
        1,
        "'/nowhere/out.json' cannot be written",
    );
    let (code, stdout, _) =
        run(&["tpch", "--data", &data, "--queries", "6", "--iterations", "1", "--no-verify"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("0 of 1"), "{stdout}");
}
