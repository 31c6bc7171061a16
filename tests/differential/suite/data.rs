//! Replacements for files of DataFusion's repository that its published crates lack: the same
//! columns, other rows. The reference session defines the right results.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::queries::random::Random;

/// Folders of the repository, and their replacements below the folder of replacements.
pub(crate) const FOLDERS: [(&str, &str); 2] =
    [("../../testing/data", "testing"), ("../core/tests/data", "core")];

/// Writes all replacements below `folder`.
pub(crate) fn write(folder: &Path) {
    let [testing, core] = FOLDERS.map(|(_, name)| folder.join(name));
    put(testing.join("csv/aggregate_test_100.csv"), &aggregates(false));
    put(testing.join("csv/aggregate_test_100_with_dates.csv"), &aggregates(true));
    put(core.join("window_1.csv"), &window(false));
    put(core.join("window_2.csv"), &window(true));
    put(core.join("aggregate_simple.csv"), &simple());
    put(core.join("aggregate_agg_multi_order.csv"), &multi_order());
    put(core.join("timestamps.csv"), &timestamps());
    put(core.join("empty.csv"), "c1,c2,c3\n");
    put(core.join("decimal_data.csv"), &decimals());
    put(core.join("int_to_float_cast_precision.csv"), "a\n9007199254740993\n-9007199254740993\n");
    put(core.join("example.csv"), "a,b,c\n1,2,3\n4,5,6\n1,7,8\n");
    put(core.join("newlines_in_values.csv"), "id,message\n1,\"a\nb\"\n2,plain\n3,\"c\n\nd\"\n");
    put(core.join("quote.csv"), &escaped("~", "~~"));
    put(core.join("escape.csv"), &escaped("\"", "\\\""));
    put(core.join("2.json"), &json());
    put(core.join("json_array.json"), "[{\"a\":1,\"b\":\"x\"},\n{\"a\":2,\"b\":null}]\n");
    for part in 0..4 {
        let rows = (0..11).map(|row| format!("{part},{row},{}\n", row % 2 == 0));
        put(core.join(format!("partitioned_csv/partition-{part}.csv")), &rows.collect::<String>());
    }
}

fn put(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn aggregates(dates: bool) -> String {
    let mut random = Random::new(100);
    let mut text = String::from("c1,c2,c3,c4,c5,c6,c7,c8,c9,c10,c11,c12,c13");
    text.push_str(if dates { ",c14,c15\n" } else { "\n" });
    for _ in 0..100 {
        let letter = random.pick(&["a", "b", "c", "d", "e"]);
        let _infallible = write!(
            text,
            "{letter},{},{},{},{},{},{},{},{},{},{:.8},{:.16},{}",
            random.between(1, 5),
            random.between(-128, 127),
            random.between(-32768, 32767),
            random.between(i64::from(i32::MIN), i64::from(i32::MAX)),
            random.between(i64::MIN / 2, i64::MAX / 2),
            random.between(0, 255),
            random.between(0, 65535),
            random.between(0, i64::from(u32::MAX)),
            random.between(0, i64::MAX),
            random.unit(),
            random.unit(),
            random.letters(30),
        );
        if dates {
            let day = random.between(1, 28);
            let _infallible = write!(text, ",2026-02-{day:02},2026-02-{day:02} 01:02:{day:02}");
        }
        text.push('\n');
    }
    text
}

/// Sorted by `a`, `b`, `c`, which have 2, 4 and 100 values, with five of `d`; or by `ts`, with
/// increasing and decreasing columns.
fn window(annotated: bool) -> String {
    let mut random = Random::new(2);
    let mut text = match annotated {
        true => String::from("a0,a,b,c,d\n"),
        false => String::from("ts,inc_col,desc_col\n"),
    };
    for row in 0..100 {
        let _infallible = match annotated {
            true => writeln!(text, "1,{},{},{row},{}", row / 50, row / 25, random.between(0, 4)),
            false => writeln!(text, "{},{},{}", row * 3 + 1, row * 5 + 1, 100 - row * 5),
        };
    }
    text
}

fn simple() -> String {
    let rows = (1..=5).flat_map(|n| (0..n).map(move |_| n));
    let rows = rows.map(|n| format!("{}.{n:05},{}.{n:012},{}\n", n, n, n % 2 == 1));
    format!("c1,c2,c3\n{}", rows.collect::<String>())
}

fn multi_order() -> String {
    let rows = (1..=10).map(|n| format!("{n},{},{}\n", 20 - 2 * n, n * 10));
    format!("c1,c2,c3\n{}", rows.collect::<String>())
}

fn timestamps() -> String {
    let rows = (0..20).map(|n| format!("{:.1},2026-01-01T00:00:{n:02}\n", f64::from(n) / 2.0));
    format!("value,ts\n{}", rows.collect::<String>())
}

fn decimals() -> String {
    let rows = (1..=5).flat_map(|n| (0..n).map(move |m| (n, m)));
    let rows = rows.map(|(n, m)| format!("0.0000{n},0.00000000000{n},{m},{},0.0000{m}\n", n == 3));
    format!("c1,c2,c3,c4,c5\n{}", rows.collect::<String>())
}

fn escaped(quote: &str, escape: &str) -> String {
    let row = |n: usize| format!("{quote}id{n}{quote},{quote}value{escape}{n}{quote}\n");
    format!("c1,c2\n{}", (0..10).map(row).collect::<String>())
}

fn json() -> String {
    let row = |n: i64| {
        let (half, even) = (n as f64 / 2.0, n % 2 == 0);
        format!("{{\"a\":{n},\"b\":{half:.1},\"c\":{even},\"d\":\"text {n}\"}}\n")
    };
    (-3..9).map(row).collect()
}
