//! Parts of the suite that are not run or not compared, each with its reason.

/// Files and folders that are not run.
pub(crate) const FILES: &[(&str, &str)] = &[
    ("spark/", "functions of datafusion-spark, which is no dependency"),
    ("tpch/", "reads files that are not published; TPC-H has tests of its own"),
    ("avro.slt", "Avro is an optional feature of DataFusion, which is off"),
    ("encrypted_parquet.slt", "encryption is an optional feature of DataFusion, which is off"),
    ("range_partitioning.slt", "tables that a private function of DataFusion's suite registers"),
];

/// Statements that are not run: a file, words of the statement, and the reason.
pub(crate) const STATEMENTS: &[(&str, &str, &str)] = &[];

/// Statements that write rows which SQL does not determine, so that later statements of the file
/// could not be compared: a file, words of the statement, and the words that determine them.
const DETERMINED: &[(&str, &str, &str)] =
    &[("parquet.slt", " LIMIT 3)\nTO", " ORDER BY int_col LIMIT 3)\nTO")];

/// Statements of which only success is compared: words in lower case, and the reason.
pub(crate) const NOT_COMPARED: &[(&str, &str)] = &[
    ("explain", "EXPLAIN shows plans, which differ on purpose"),
    ("random()", "random"),
    ("uuid()", "random"),
    ("uuidv7()", "random"),
    ("tablesample", "random"),
    ("now()", "the clock"),
    ("current_timestamp", "the clock"),
    ("current_time", "the clock"),
    ("input_file_name", "names the session's own folder"),
    ("show ", "shows settings, which the mode sets"),
    ("df_settings", "shows settings, which the mode sets"),
    ("df_options", "shows settings, which the mode sets"),
];

/// Statements that DataFusion answers wrongly: a file, words of the statement, and the fault.
const OWN_FAULTS: &[(&str, &str, &str)] = &[(
    "pwmj.slt",
    "ON t1.t1_id < t2.t2_id\nWHERE t2.t2_int >= 3\nORDER BY 1,2",
    "(its PiecewiseMergeJoin promises an order of t2_id that it does not keep)",
)];

/// Aggregates whose result follows the order of rows, which SQL leaves open without ORDER BY.
pub(crate) const FOLLOW_ROW_ORDER: &[&str] = &[
    "array_agg",
    "string_agg",
    "first_value",
    "last_value",
    "nth_value",
    "row_number",
    "lead",
    "lag",
    "ntile",
    "approx_",
    "rows between",
    "limit",
    "distinct on",
];

/// Returns why a file is not run.
pub(crate) fn file(relative: &str) -> Option<&'static str> {
    FILES.iter().find(|(start, _)| relative.starts_with(start)).map(|(_, reason)| *reason)
}

/// Returns why a statement is not run.
pub(crate) fn statement(relative: &str, sql: &str) -> Option<&'static str> {
    let is_this = |(file, words, _): &&(&str, &str, &str)| relative == *file && sql.contains(words);
    STATEMENTS.iter().find(is_this).map(|(_, _, reason)| *reason)
}

/// Returns a statement whose rows are determined, if it writes them.
pub(crate) fn determined(relative: &str, sql: &str) -> String {
    let of_file = DETERMINED.iter().filter(|(file, ..)| relative == *file);
    of_file.fold(sql.to_owned(), |sql, (_, words, instead)| sql.replace(words, instead))
}

/// Returns DataFusion's fault in a statement; `place` begins with the name of the file.
pub(crate) fn own_fault(place: &str, sql: &str) -> Option<&'static str> {
    let is_this =
        |(file, words, _): &&(&str, &str, &str)| place.starts_with(file) && sql.contains(words);
    OWN_FAULTS.iter().find(is_this).map(|(_, _, reason)| *reason)
}

/// Returns why the rows of a statement are not compared.
pub(crate) fn rows(sql: &str) -> Option<&'static str> {
    let sql = sql.to_lowercase();
    NOT_COMPARED.iter().find(|(words, _)| sql.contains(words)).map(|(_, reason)| *reason)
}

/// Whether the statement has an aggregate that follows the order of rows.
pub(crate) fn follows_row_order(sql: &str) -> bool {
    let sql = sql.to_lowercase();
    FOLLOW_ROW_ORDER.iter().any(|name| sql.contains(name))
}
