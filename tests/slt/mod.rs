//! sqllogictest files over small, difficult tables (`tables.slt`).
//!
//! Each file runs on a plain DataFusion session, and on gatework sessions with 1, 2 and 4 threads
//! and batches of 3 and of 8192 rows. All must return the results in the file. gatework sessions
//! must run every plan node of a query natively, except those that the query names in a comment:
//!
//! ```sql
//! -- falls back: UnnestExec
//! SELECT id, unnest(list) FROM nested
//! ```
//!
//! Results that SQL leaves open are queried in a determined form: `array_agg` sorted, `first_value`
//! by whether the value belongs to its group, `row_number` without order by its numbers alone.
//!
//! To add a query, write it with an empty result; `cargo test --release --test queries -- --ignored
//! slt::record` fills in the results of plain DataFusion. Check them: the file is what must hold.

mod database;

use std::{
    fs,
    path::{Path, PathBuf},
};

use database::Database;
use datafusion::prelude::{SessionConfig, SessionContext};
use gatework::Settings;
use sqllogictest::{Runner, default_normalizer, default_validator, strict_column_validator};

use crate::against_datafusion::{Sessions, Watch, guarded};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt")
}

/// Runs the statements of `tables.slt` on a session.
async fn create_tables(session: &SessionContext) {
    let database = Database::reference(session.clone());
    let mut runner = Runner::new(|| async { Ok(database.clone()) });
    runner.run_file_async(folder().join("tables.slt")).await.unwrap();
}

/// Registers the tables of `tables.slt` in all sessions: in three partitions, in batches of seven
/// rows.
fn register_tables(sessions: &Sessions<'_>) {
    let plain = SessionContext::new();
    sessions.block_on(create_tables(&plain));
    let schema = plain.catalog("datafusion").unwrap().schema("public").unwrap();
    for name in schema.table_names() {
        sessions.table_from(&name, &plain, &format!("SELECT * FROM {name}"));
    }
}

/// Runs a file on all sessions.
fn check_with(file: &'static str, sessions: fn(&Watch) -> Sessions<'_>) {
    guarded(move |watch| {
        let sessions = sessions(watch);
        register_tables(&sessions);
        let reference = Database::reference(sessions.reference.clone());
        let tested = sessions
            .tested
            .iter()
            .map(|tested| (tested.name.as_str(), Database::tested(tested.context.clone())));
        for (name, database) in [("DataFusion", reference)].into_iter().chain(tested) {
            let database = database.watched(watch);
            let mut runner = Runner::new(|| async { Ok(database.clone()) });
            runner.with_column_validator(strict_column_validator);
            let path = folder().join(format!("{file}.slt"));
            if let Err(error) = sessions.block_on(runner.run_file_async(path)) {
                sessions.fail(format!("{name}: {error}"));
            }
        }
        sessions.finish();
    });
}

macro_rules! files {
    ($($file:ident),+ $(,)?) => {
        /// The files, each of which is a test.
        const FILES: &[&str] = &[$(stringify!($file)),+];

        $(
            #[test]
            fn $file() {
                check_with(stringify!($file), |watch| Sessions::new(watch));
            }
        )+
    };
}

files! {
    common_tables,
    fallbacks,
    files,
    filters,
    group_by,
    grouping_sets,
    joins,
    order_by,
    ordered_aggregates,
    set_operations,
    sorted_files,
    statements,
    subqueries,
    texts,
    windows,
}

/// With so little memory, every window partition is large.
#[test]
fn windows_over_large_partitions() {
    fn narrow(watch: &Watch) -> Sessions<'_> {
        let settings = Settings { exchange_buffer_bytes: 1, ..Settings::default() };
        Sessions::with(watch, &[(1, 3), (2, 7), (2, 8192)], SessionConfig::new(), settings)
    }
    check_with("windows", narrow);
}

/// SQL leaves open which rows these return, so no file can list them.
#[test]
fn limits_that_leave_rows_open() {
    guarded(|watch| {
        let sessions = Sessions::new(watch);
        register_tables(&sessions);
        sessions.equal(&[
            "SELECT id FROM nums LIMIT 7",
            "SELECT id FROM nums LIMIT 7 OFFSET 3",
            "SELECT k, s FROM nums ORDER BY k LIMIT 7",
            "SELECT id, k FROM nums ORDER BY k NULLS FIRST LIMIT 5 OFFSET 4",
        ]);
        sessions.finish();
    });
}

#[test]
fn every_file_is_a_test() {
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_test = FILES.contains(&name) || name == "tables";
        assert!(is_test || path.extension().is_none_or(|kind| kind != "slt"), "{name}.slt");
    }
}

/// Writes the results of plain DataFusion into all files.
#[test]
#[ignore = "writes into the source folder"]
fn record() {
    for file in FILES {
        guarded(move |watch| {
            let sessions = Sessions::with(watch, &[], SessionConfig::new(), Settings::default());
            register_tables(&sessions);
            let database = Database::reference(sessions.reference.clone()).watched(watch);
            let mut runner = Runner::new(|| async { Ok(database.clone()) });
            let recorded = runner.update_test_file(
                folder().join(format!("{file}.slt")),
                " ",
                default_validator,
                default_normalizer,
                strict_column_validator,
            );
            sessions.block_on(recorded).unwrap();
        });
    }
}
