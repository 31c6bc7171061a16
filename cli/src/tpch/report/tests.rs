//! Times, and the JSON file.

use std::fs::{self, File};

use tempfile::tempdir;

use super::{Oracles, Outcome, Report};
use crate::output::LineWriter;

fn report(outcomes: Vec<Outcome>) -> Report {
    Report { out: LineWriter::stdout(), oracles: Oracles::Reference, outcomes }
}

#[test]
fn best_and_median() {
    let outcome = |seconds: &[f64]| Outcome { seconds: seconds.to_vec(), ..Outcome::new(1) };
    assert_eq!(
        (outcome(&[3.0, 1.0, 2.0]).best(), outcome(&[3.0, 1.0, 2.0]).median()),
        (Some(1.0), Some(2.0))
    );
    assert_eq!(outcome(&[4.0, 1.0]).median(), Some(2.5));
    assert_eq!((outcome(&[]).best(), outcome(&[]).median()), (None, None));
}

#[test]
fn json_has_the_promised_fields() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("out.json");
    let good = Outcome { rows: 4, seconds: vec![0.5, 0.25], verified: true, ..Outcome::new(1) };
    let bad = Outcome { error: Some("differs".to_owned()), ..Outcome::new(2) };
    report(vec![good, bad]).write_json(File::create(&path).unwrap()).unwrap();
    let read: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let expected = serde_json::json!([
        {"query": 1, "rows": 4, "seconds": [0.5, 0.25], "verified": true, "fallbacks": []},
        {"query": 2, "rows": 0, "seconds": [], "verified": false, "fallbacks": [],
         "error": "differs"},
    ]);
    assert_eq!(read, expected);
}

#[test]
fn only_good_outcomes_make_a_good_end() {
    assert!(report(vec![Outcome::new(1)]).end().is_ok());
    let fell_back = Outcome { fallbacks: vec!["SortExec".to_owned()], ..Outcome::new(3) };
    let failed = Outcome { error: Some("differs".to_owned()), ..Outcome::new(7) };
    let sentence =
        report(vec![fell_back, Outcome::new(5), failed]).end().unwrap_err().sentence().unwrap();
    assert_eq!(sentence, "error: 2 of 3 queries failed, differed or fell back: q3, q7");
}
