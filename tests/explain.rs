//! EXPLAIN marks the nodes that run natively, and EXPLAIN ANALYZE has their rows.

use crate::against_datafusion::{Sessions, guarded};

#[test]
fn explain() {
    guarded(|watch| {
        let sessions = Sessions::new(watch);
        sessions.table("nums", "SELECT value AS id, value % 4 AS k FROM generate_series(1, 60)");
        let sql = "SELECT k, count(*) FROM nums WHERE id > 2 GROUP BY k ORDER BY k LIMIT 3";
        for tested in &sessions.tested {
            for (statement, wanted) in [
                ("EXPLAIN", vec!["[gatework] AggregateExec", "[gatework] FilterExec"]),
                ("EXPLAIN FORMAT TREE", vec!["AggregateExec"]),
                (
                    "EXPLAIN ANALYZE",
                    vec!["[gatework] AggregateExec", "output_rows=3", "output_rows=58"],
                ),
            ] {
                sessions.doing(statement);
                let text = sessions.block_on(async {
                    let frame = tested.context.sql(&format!("{statement} {sql}")).await?;
                    frame.to_string().await
                });
                let text = text.unwrap_or_else(|error| error.to_string());
                for wanted in wanted {
                    if !text.contains(wanted) {
                        sessions.fail(format!("{statement} lacks '{wanted}':\n{text}"));
                    }
                }
            }
        }
        sessions.finish();
    });
}
