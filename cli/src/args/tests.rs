//! Accepted arguments, and the errors of others.

use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::{Args, Command, Explain, Format};

fn parse(arguments: &str) -> Result<Args, String> {
    let words = std::iter::once("gatework").chain(arguments.split(' '));
    Args::try_parse_from(words).map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn tpch_reads_its_flags() {
    let line = "tpch --scale-factor 0.1 --data d --query-dir q --queries 1,q6,22 --iterations 5 \
                --threads 3 \
                --no-verify --json out.json";
    let Ok(Args { command: Command::Tpch(args) }) = parse(line) else { panic!("not understood") };
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
    let Ok(Args { command: Command::Sql(args) }) =
        parse("sql a b --table t=x=y.csv --format json --explain")
    else {
        panic!("not understood")
    };
    assert_eq!(args.statements, ["a", "b"]);
    assert_eq!((args.tables[0].name.as_str(), args.tables[0].path.as_str()), ("t", "x=y.csv"));
    assert_eq!((args.format, args.explain), (Format::Json, Some(Explain::Plan)));
    let Ok(Args { command: Command::Sql(args) }) = parse("sql a --explain stages --nodes 7") else {
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
    let Ok(Args { command: Command::Sql(args) }) = parse(line) else { panic!("not understood") };
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
        ("sql", "required"),
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
    let arguments = [
        "gatework",
        "sql",
        "-- TPC-H query 1\nselect 1",
        "--table",
        "t=my file.csv",
        "--table=u=a b.csv",
    ];
    let protected = super::protect_sql_comments(arguments.map(Into::into));
    let args = Args::try_parse_from(protected).unwrap();
    let Command::Sql(sql) = args.command else { panic!("another command") };
    assert_eq!(sql.statements, ["\n-- TPC-H query 1\nselect 1"]);
    assert_eq!(sql.tables.len(), 2);
}
