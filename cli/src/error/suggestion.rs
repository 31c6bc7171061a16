//! The name that a misspelled one may stand for.

use datafusion::execution::SessionState;

/// Minimum similarity of a suggestion, between 0 and 1.
const MIN_SIMILARITY: f64 = 0.6;

/// The function, of all kinds, whose name is most similar to `name`.
pub(super) fn function(name: &str, state: &SessionState) -> Option<String> {
    nearest(name, functions(state))
}

/// The names of all functions: scalar, aggregate, window and table functions.
pub(crate) fn functions(state: &SessionState) -> impl Iterator<Item = &str> {
    let scalar = state.scalar_functions().keys();
    let aggregate = state.aggregate_functions().keys();
    let window = state.window_functions().keys();
    let table = state.table_functions().keys();
    scalar.chain(aggregate).chain(window).chain(table).map(String::as_str)
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    let similarity = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    let similar = known.map(|known| (similarity(known), known));
    // Of equally similar names the first in the alphabet, so that messages do not vary.
    let best = similar.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))?;
    (best.0 >= MIN_SIMILARITY).then(|| best.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_misspelled_name_has_a_suggestion() {
        let known = ["count", "sum", "substr", "concat"];
        let nearest = |name| nearest(name, known.into_iter());
        assert_eq!(nearest("coutn").as_deref(), Some("count"));
        assert_eq!(nearest("SUBSTRING").as_deref(), Some("substr"));
        assert_eq!(nearest("frobnicate"), None);
    }
}
