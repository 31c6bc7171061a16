//! Bad input gives a helpful error or the right rows; nothing hangs, and the same sessions run the
//! next statement.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
};

use crate::against_datafusion::{Sessions, guarded};
use gatework::Executor;

const ROWS: &str = "SELECT value AS id, value % 10 AS k, concat('text ', value) AS t,
    CAST(NULL AS BIGINT) AS none FROM generate_series(1, 5000)";

/// Statements of `body` may fail in any way; afterwards all sessions must work as before.
fn with_table(body: impl FnOnce(&Sessions) + Send + 'static) {
    guarded(|watch| {
        let sessions = Sessions::new(watch);
        sessions.table("t", ROWS);
        body(&sessions);
        sessions.equal(&["SELECT k, count(*), sum(id) FROM t GROUP BY k ORDER BY k"]);
        sessions.finish();
    });
}

/// Writes [`ROWS`] as Parquet in ten row groups.
fn parquet(sessions: &Sessions, name: &str) -> PathBuf {
    sessions.on_reference(&format!(
        "COPY ({ROWS}) TO '{{shared}}/{name}.parquet' STORED AS PARQUET OPTIONS (
            'format.max_row_group_size' '500', 'format.compression' 'zstd(3)')"
    ));
    sessions.shared().join(name).with_extension("parquet")
}

fn external(name: &str, file: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE {name} (id BIGINT, k BIGINT, t VARCHAR, none BIGINT) STORED AS \
         PARQUET
            LOCATION '{{shared}}/{file}'"
    )
}

#[test]
fn statements_that_make_no_sense() {
    with_table(|sessions| {
        sessions.refused("SELECT * FROM nowhere", &["nowhere"]);
        sessions.refused("SELECT nothing FROM t", &["nothing"]);
        sessions.refused("SELECT id FROM t WHERE nothing = 1", &["nothing"]);
        sessions.refused("SELEC id FROM t", &["SELEC"]);
        sessions.refused("SELECT id FROM", &["Expected"]);
        sessions.refused("SELECT id FROM t GROUP BY k", &["GROUP BY"]);
        sessions.refused("SELECT no_such_function(id) FROM t", &["no_such_function"]);
        sessions.refused("SELECT sum(t) FROM t", &["sum"]);
        sessions.refused("SELECT id FROM t WHERE t", &["Boolean", "boolean", "predicate"]);
        sessions.refused(
            "SELECT id + DATE '2020-01-01' FROM t WHERE id = t.k AND t = k || 1 + now()",
            &[""],
        );
        sessions.refused("SELECT id FROM t UNION ALL SELECT id, k FROM t", &["columns"]);
    });
}

#[test]
fn values_that_cannot_be_computed() {
    with_table(|sessions| {
        let zero = ["Divide by zero", "divide by zero", "division by zero", "Division by zero"];
        let overflow = ["verflow"];
        let cast = ["cast", "Cast", "parse"];
        sessions.refused("SELECT id / (k - 5) FROM t", &zero);
        sessions.refused("SELECT id % (k - k) FROM t", &zero);
        sessions.refused("SELECT 1 / 0", &zero);
        sessions.refused("SELECT id FROM t WHERE 10 / (k - 5) > 1", &zero);
        sessions.refused("SELECT k, sum(10 / (k - 5)) FROM t GROUP BY k", &zero);
        sessions.refused("SELECT id FROM t ORDER BY 10 / (k - 5) LIMIT 3", &zero);
        sessions.refused(
            "SELECT a.id FROM t a JOIN t b ON a.id = b.id AND 10 / (a.k + b.k - 10) > 0",
            &zero,
        );
        sessions.refused("SELECT a.id FROM t a JOIN t b ON 10 / (a.k - 5) = b.id", &zero);
        sessions.refused("SELECT sum(10 / (k - 5)) OVER (ORDER BY id) FROM t", &zero);
        sessions.refused("SELECT id FROM t WHERE id = (SELECT max(10 / (k - 5)) FROM t)", &zero);
        sessions.refused("SELECT id FROM t UNION ALL SELECT 10 / (k - 5) FROM t", &zero);
        sessions.refused("SELECT CAST(t AS BIGINT) FROM t", &cast);
        sessions.refused("SELECT count(*) FROM t WHERE CAST(t AS DATE) > DATE '2020-01-01'", &cast);
        sessions.refused("SELECT CAST(id * 1000 AS SMALLINT) FROM t", &cast);
        sessions.refused(
            "SELECT CAST(id AS DECIMAL(3, 1)) FROM t",
            &["large", "precision", "cast", "Cast"],
        );
        sessions.refused(
            "SELECT CAST(9223372036854775807 AS DECIMAL(38, 0)) * CAST(id AS DECIMAL(38, 0))
            * 9223372036854775807 * 9223372036854775807 FROM t",
            &overflow,
        );
        // Results as in DataFusion: integers wrap, floats become infinite, NULLs stay NULL.
        sessions.equal(&[
            "SELECT id * 9223372036854775807 + id FROM t WHERE id < 9",
            "SELECT id / CAST(0 AS DOUBLE), -id / CAST(0 AS DOUBLE) FROM t WHERE id < 9",
            "SELECT none / 0 FROM (SELECT none FROM t WHERE id < 9)",
            "SELECT TRY_CAST(t AS BIGINT) FROM t WHERE id < 9",
        ]);
    });
}

#[test]
fn files_that_are_not_there() {
    with_table(|sessions| {
        fs::create_dir(sessions.shared().join("empty")).unwrap();
        sessions.refused(
            "CREATE EXTERNAL TABLE gone STORED AS PARQUET LOCATION '{shared}/gone.parquet'",
            &["gone.parquet", "infer", "files found"],
        );
        parquet(sessions, "vanishing");
        sessions.everywhere(&external("vanishing", "vanishing.parquet"));
        sessions.equal(&["SELECT count(*) FROM vanishing WHERE k = 3"]);
        fs::remove_file(sessions.shared().join("vanishing.parquet")).unwrap();
        // Whether an empty folder has no files or no rows depends on the listing; it must be the
        // same.
        sessions.everywhere(&external("nobody", "empty/"));
        sessions.equal(&[
            "SELECT * FROM nobody",
            "SELECT count(*), max(id) FROM nobody",
            "SELECT k, count(*) FROM nobody GROUP BY k",
            "SELECT t.id FROM t LEFT JOIN nobody ON t.id = nobody.id WHERE t.id < 5",
        ]);
    });
}

#[test]
fn a_file_that_vanishes_between_planning_and_running() {
    with_table(|sessions| {
        for tested in &sessions.tested {
            let path = parquet(sessions, "brief");
            let outcome = sessions.block_on(async {
                let path = path.to_str().unwrap();
                tested.context.register_parquet("brief", path, Default::default()).await?;
                let frame = tested.context.sql("SELECT sum(id) FROM brief WHERE k > 2").await?;
                let task = std::sync::Arc::new(frame.task_ctx());
                let plan = frame.create_physical_plan().await?;
                fs::remove_file(path)?;
                datafusion::physical_plan::collect(plan, task).await
            });
            match outcome {
                // The footer may be cached, but the data is missing.
                Ok(_) => sessions.fail(format!("{}: answers without its file", tested.name)),
                Err(error) if error.to_string().contains("brief.parquet") => {}
                Err(error) => sessions.fail(format!("{}: says '{error}'", tested.name)),
            }
        }
    });
}

#[test]
fn truncated_files() {
    with_table(|sessions| {
        for (place, keep) in [0_u64, 3, 100, 2000, 20_000].into_iter().enumerate() {
            let name = format!("cut{place}");
            let path = parquet(sessions, &name);
            let bytes = fs::metadata(&path).unwrap().len();
            assert!(bytes > keep);
            OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
            sessions.everywhere(&external(&name, &format!("{name}.parquet")));
            let words = ["arquet", "EOF", "footer", "size"];
            if keep > 0 {
                sessions.refused(&format!("SELECT * FROM {name}"), &words);
                sessions.refused(
                    &format!("SELECT k, count(t) FROM {name} WHERE id > 7 GROUP BY k"),
                    &words,
                );
            }
        }
        // Removes the end of the magic only; everything else is intact.
        let path = parquet(sessions, "footless");
        let bytes = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - 2).unwrap();
        sessions.everywhere(&external("footless", "footless.parquet"));
        sessions.refused("SELECT count(t) FROM footless", &["arquet"]);
    });
}

#[test]
fn flipped_bytes() {
    with_table(|sessions| {
        // Flips bytes of the first page's header, and of pages of other row groups before the
        // footer. Pages have no checksum: if they can be decompressed, both engines read the same.
        let mut refused = 0;
        for (place, percent) in [0_usize, 1, 25, 50, 70].into_iter().enumerate() {
            let name = format!("flipped{place}");
            let path = parquet(sessions, &name);
            let mut bytes = fs::read(&path).unwrap();
            let first = 4 + bytes.len() * percent / 100;
            bytes[first..first + 300].iter_mut().for_each(|byte| *byte = !*byte);
            fs::write(&path, bytes).unwrap();
            sessions.everywhere(&external(&name, &format!("{name}.parquet")));
            for sql in [
                "SELECT * FROM {t}",
                "SELECT k, max(t) FROM {t} GROUP BY k",
                "SELECT a.t FROM t a JOIN {t} b ON a.id = b.id AND a.t = b.t AND b.k < 100",
            ] {
                let words = ["arquet", "rrow", "compress", "thrift", "EOF", "page"];
                refused += usize::from(sessions.alike(&sql.replace("{t}", &name), &words));
            }
        }
        assert!(refused >= 3, "only {refused} statements saw flipped bytes");
        // A folder with one bad file among good ones.
        let folder = sessions.shared().join("mixed");
        fs::create_dir(&folder).unwrap();
        for place in 0..4 {
            fs::rename(parquet(sessions, "good"), folder.join(format!("{place}.parquet"))).unwrap();
        }
        fs::write(folder.join("2.parquet"), "not a parquet file, but longer than its footer")
            .unwrap();
        sessions.everywhere(&external("mixed", "mixed/"));
        sessions.refused("SELECT count(t) FROM mixed WHERE k >= 0", &["arquet"]);
        sessions.refused("SELECT id, t FROM mixed ORDER BY t LIMIT 5", &["arquet"]);
    });
}

#[test]
fn text_files_that_do_not_fit() {
    with_table(|sessions| {
        fs::write(sessions.shared().join("bad.csv"), "id,k\n1,2\n3,x\n").unwrap();
        fs::write(sessions.shared().join("short.csv"), "id,k\n1,2\n3\n").unwrap();
        fs::write(sessions.shared().join("bad.json"), "{\"id\": 1}\n{\"id\": \n").unwrap();
        fs::write(sessions.shared().join("bad.arrow"), "ARROW1 or something like it, but no more")
            .unwrap();
        for (name, format) in [("bad", "CSV"), ("short", "CSV"), ("bad", "JSON"), ("bad", "ARROW")]
        {
            let file = format!("{name}.{}", format.to_lowercase());
            let table = file.replace('.', "_");
            let options = if format == "CSV" { "OPTIONS ('format.has_header' 'true')" } else { "" };
            sessions.everywhere(&format!(
                "CREATE EXTERNAL TABLE {table} (id BIGINT, k BIGINT) STORED AS {format} LOCATION \
                 '{{shared}}/{file}' {options}"
            ));
            sessions.refused(
                &format!("SELECT sum(id), sum(k) FROM {table}"),
                &["arse", "rrow", "EOF", "fields", "Json"],
            );
        }
        fs::write(sessions.shared().join("no_rows.csv"), "id,k\n").unwrap();
        fs::write(sessions.shared().join("no_bytes.csv"), "").unwrap();
        for name in ["no_rows", "no_bytes"] {
            sessions.everywhere(&format!(
                "CREATE EXTERNAL TABLE {name} (id BIGINT, k BIGINT) STORED AS CSV LOCATION \
                 '{{shared}}/{name}.csv'
                    OPTIONS ('format.has_header' 'true')"
            ));
            sessions.equal_beside(&[], &format!("SELECT * FROM {name}"));
            sessions.equal_beside(&[], &format!("SELECT count(*), sum(id) FROM {name}"));
        }
    });
}

#[test]
fn empty_tables_and_columns_of_nulls() {
    with_table(|sessions| {
        parquet(sessions, "full");
        sessions.on_reference(
            "COPY (SELECT id, k, t, none FROM t WHERE false) TO '{shared}/bare.parquet' STORED AS \
             PARQUET",
        );
        sessions.everywhere(&external("full", "full.parquet"));
        sessions.everywhere(&external("bare", "bare.parquet"));
        sessions.equal(&[
            "SELECT * FROM bare",
            "SELECT count(*), sum(k), min(t) FROM bare",
            "SELECT t, count(*) FROM bare GROUP BY t",
            "SELECT id FROM bare ORDER BY t LIMIT 3",
            "SELECT full.id FROM full JOIN bare ON full.id = bare.id",
            "SELECT full.id FROM full LEFT JOIN bare ON full.id = bare.id WHERE full.id < 9",
            "SELECT id FROM bare UNION ALL SELECT id FROM full WHERE id < 9",
            "SELECT id, rank() OVER (ORDER BY k) FROM bare",
            "SELECT none, count(*), count(none), sum(none), max(none) FROM full GROUP BY none",
            "SELECT id FROM full ORDER BY none, id LIMIT 3",
            "SELECT a.id FROM full a JOIN full b ON a.none = b.none",
            "SELECT count(*) FROM full a LEFT JOIN full b ON a.none = b.none",
            "SELECT id FROM full WHERE none = 1",
            "SELECT id FROM full WHERE none IS NULL AND id < 9",
            "SELECT id FROM full WHERE none NOT IN (SELECT k FROM full)",
            "SELECT k, median(none), stddev(none), count(DISTINCT none) FROM full GROUP BY k",
        ]);
    });
}

#[test]
fn an_executor_without_threads() {
    let error = Executor::builder().threads(0).build().unwrap_err().to_string();
    assert!(error.contains("at least 1 thread"), "{error}");
}
