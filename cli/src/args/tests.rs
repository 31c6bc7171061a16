//! Accepted arguments, and the errors of others.

use std::ffi::OsString;
use std::time::Duration;

use super::{Command, Explain, Format, Input, SqlArgs};

fn parse(arguments: &str) -> Result<Command, String> {
    parse_words(&arguments.split(' ').collect::<Vec<_>>())
}

fn parse_words(arguments: &[&str]) -> Result<Command, String> {
    let words = std::iter::once(&"gatework").chain(arguments);
    Command::parse(words.map(OsString::from)).map_err(|error| error.to_string())
}

fn sql(arguments: &[&str]) -> SqlArgs {
    match parse_words(arguments) {
        Ok(Command::Sql(args)) => args,
        other => panic!("{other:?}"),
    }
}

fn text(sql: &str) -> Input {
    Input::Text(sql.to_owned())
}

#[test]
fn the_definition_is_consistent() {
    super::definition().debug_assert();
}

#[test]
fn tpch_reads_its_flags() {
    let line = "tpch --scale-factor 0.1 --data d --query-dir q --queries 1,q6,22 --iterations 5 \
                --threads 3 \
                --no-verify --json out.json";
    let Ok(Command::Tpch(args)) = parse(line) else { panic!("not understood") };
    assert_eq!(args.scale_factor, Some(0.1));
    assert_eq!(args.queries, [1, 6, 22]);
    assert_eq!(
        (args.iterations.get(), args.engine.resources.threads.map(usize::from)),
        (5, Some(3))
    );
    assert!(args.no_verify);
}

#[test]
fn sql_reads_its_flags() {
    let Ok(Command::Sql(args)) = parse("sql a b --table t=x=y.csv --format json --explain") else {
        panic!("not understood")
    };
    assert_eq!(args.inputs, [text("a"), text("b")]);
    assert_eq!((args.tables[0].name.as_str(), args.tables[0].path.as_str()), ("t", "x=y.csv"));
    assert_eq!((args.format, args.explain), (Format::Json, Some(Explain::Plan)));
    let Ok(Command::Sql(args)) = parse("sql a --explain stages --nodes 7") else {
        panic!("not understood")
    };
    assert_eq!(
        (args.explain, args.engine.nodes.map_or(0, std::num::NonZeroUsize::get)),
        (Some(Explain::Stages), 7)
    );
}

#[test]
fn limits_have_units() {
    let line = "sql a --memory-limit 512MiB --timeout 1min --temp-dir d --max-temp-size 1GB";
    let Ok(Command::Sql(args)) = parse(line) else { panic!("not understood") };
    assert_eq!(args.engine.resources.memory_limit.map(|limit| limit.as_u64()), Some(512 << 20));
    assert_eq!(args.engine.timeout, Some(Duration::from_secs(60)));
    assert_eq!(args.engine.resources.temp_dir, Some("d".into()));
    assert_eq!(
        args.engine.resources.max_temp_size.map(|limit| limit.as_u64()),
        Some(1_000_000_000)
    );
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    for (arguments, reason) in [
        ("tpch --threads 0", "must be at least 1"),
        ("tpch --memory-limit much", "--memory-limit <SIZE>"),
        ("sql a --timeout soon", "--timeout <DURATION>"),
        ("tpch --iterations 0", "must be at least 1"),
        ("tpch --threads many", "not a whole number"),
        ("tpch --scale-factor 0", "between 0.001 and 100000"),
        ("tpch --scale-factor NaN", "between 0.001 and 100000"),
        ("tpch --queries 1,x", "not the number of a query"),
        ("--memory-limit 512", "the unit is missing; write 512MiB, 512GiB or 512B"),
        ("sql x --table t", "NAME=PATH"),
        ("sql x --table =p", "NAME=PATH"),
        ("sql x --format xml", "possible values"),
    ] {
        let error = parse(arguments).unwrap_err();
        assert!(error.contains(reason), "{arguments}: {error}");
    }
}

#[test]
fn sql_may_begin_with_a_comment() {
    let comment = "-- TPC-H query 1\nselect 1";
    let args = sql(&["sql", comment, "--table", "t=my file.csv", "--table=u=a b.csv"]);
    assert_eq!(args.inputs, [text("\n-- TPC-H query 1\nselect 1")]);
    assert_eq!(args.tables.len(), 2);
    assert_eq!(sql(&["-c", comment]).inputs, [text(&format!("\n{comment}"))]);
}

#[test]
fn the_word_sql_may_be_left_out() {
    let args = sql(&["SELECT 1", "--format", "csv"]);
    assert_eq!((args.inputs, args.format), (vec![text("SELECT 1")], Format::Csv));
    assert_eq!(sql(&[]).inputs, []);
    assert_eq!(sql(&["sql"]).inputs, []);
}

#[test]
fn inputs_keep_their_order() {
    let args = sql(&["-f", "a.sql", "SELECT 1", "-c", "SELECT 2", "-", "-f", "-"]);
    assert_eq!(
        args.inputs,
        [
            Input::File("a.sql".into()),
            text("SELECT 1"),
            text("SELECT 2"),
            Input::Stdin,
            Input::Stdin
        ]
    );
}

#[test]
fn sql_behind_explain_is_no_value_of_it() {
    let args = sql(&["--explain", "SELECT 1"]);
    assert_eq!((args.explain, args.inputs), (Some(Explain::Plan), vec![text("SELECT 1")]));
    let args = sql(&["sql", "--explain", "stages", "SELECT 1"]);
    assert_eq!((args.explain, args.inputs), (Some(Explain::Stages), vec![text("SELECT 1")]));
    assert_eq!(sql(&["SELECT 1", "--explain"]).explain, Some(Explain::Plan));
}
