//! `docs/options.md` describes every option of DataFusion, and no others.

use std::collections::BTreeSet;

use datafusion::config::ConfigOptions;

/// The options of the document's tables; each may occur once.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../docs/options.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut all = BTreeSet::new();
    for (option, rest) in rows {
        let cells: Vec<_> = rest.split('|').map(str::trim).collect();
        assert!(cells.len() == 4 && cells[1..3].iter().all(|cell| !cell.is_empty()), "{option}");
        assert!(all.insert(option.to_owned()), "{option} is listed twice");
    }
    all
}

#[test]
fn every_option_is_documented() {
    let entries = ConfigOptions::new().entries();
    let known: BTreeSet<_> = entries.into_iter().map(|entry| entry.key).collect();
    let documented = documented();
    let missing: Vec<_> = known.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&known).collect();
    assert!(missing.is_empty(), "docs/options.md does not describe {missing:?}");
    assert!(gone.is_empty(), "DataFusion has no option {gone:?}: remove it from docs/options.md");
}
