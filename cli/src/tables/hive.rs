//! Partition columns of the files that a pattern matches: `'logs/year=*/*.csv'`.

use std::path::{Path, PathBuf};

use datafusion::common::DataFusionError;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::SessionState;
use futures::TryStreamExt;

/// The folder above the `column=value` folders of all `files`, which `pattern` matches, and the
/// pattern of their names. None if their columns are not the same, or if the pattern leaves out
/// values: DataFusion lists the folders of all.
pub(super) fn split(pattern: &str, files: &[PathBuf]) -> Option<(PathBuf, String)> {
    let names = |path: &Path| -> Vec<String> {
        let names = path.iter().map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != ".").collect()
    };
    let first = names(files.first()?);
    let begin = first[..first.len() - 1].iter().position(|name| name.contains('='))?;
    let columns = |names: &[String]| -> Option<Vec<String>> {
        let folders = names.get(begin..names.len().checked_sub(1)?)?.iter();
        folders.map(|name| Some(name.split_once('=')?.0.to_owned())).collect()
    };
    let expected = columns(&first)?;
    let is_alike = |file: &PathBuf| columns(&names(file)).as_ref() == Some(&expected);
    let parts = names(Path::new(pattern));
    let is_literal = parts.len() == first.len() && parts[..begin] == first[..begin];
    let has_all =
        |(part, column): (&String, &String)| part == "*" || *part == format!("{column}=*");
    let is_whole = is_literal && parts[begin..].iter().zip(&expected).all(has_all);
    (is_whole && files.iter().all(is_alike)).then(|| {
        let folder: PathBuf = first[..begin].iter().collect();
        let folder = if begin == 0 { PathBuf::from(".") } else { folder };
        (folder, parts[parts.len() - 1].clone())
    })
}

/// Whether DataFusion finds as many files with rows at `url` as the table has: it also takes those
/// beside and below the folders that the pattern matches.
pub(super) async fn has_files(
    state: &SessionState,
    url: &ListingTableUrl,
    files: usize,
) -> Result<bool, DataFusionError> {
    let store = state.runtime_env().object_store(url)?;
    let found: Vec<_> = url.list_all_files(state, store.as_ref(), "").await?.try_collect().await?;
    Ok(found.iter().filter(|object| object.size > 0).count() == files)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::split;

    fn parts(pattern: &str, files: &[&str]) -> Option<(String, String)> {
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        let (folder, pattern) = split(pattern, &files)?;
        Some((folder.to_str().unwrap_or_default().to_owned(), pattern))
    }

    #[test]
    fn columns_are_those_of_all_files() {
        let owned = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(parts("h/*/*.csv", &["h/x=1/a.csv", "h/x=2/b.csv"]), owned("h", "*.csv"));
        assert_eq!(parts("./h/*/a.csv", &["h/x=1/a.csv"]), owned("h", "a.csv"));
        assert_eq!(parts("/h/x=*/*", &["/h/x=1/a.csv"]), owned("/h", "*"));
        assert_eq!(parts("x=*/*/a.csv", &["x=1/y=2/a.csv"]), owned(".", "a.csv"));
        assert_eq!(parts("h/x=1/*", &["h/x=1/a.csv"]), None);
        assert_eq!(parts("h/x=[12]/*", &["h/x=1/a.csv", "h/x=2/a.csv"]), None);
        assert_eq!(parts("x=*/y=2/a.csv", &["x=1/y=2/a.csv"]), None);
        assert_eq!(parts("h/*/*.csv", &["h/x=1/a.csv", "h/y=2/b.csv"]), None);
        assert_eq!(parts("h/*/*.csv", &["h/x=1/a.csv", "h/z/b.csv"]), None);
        assert_eq!(parts("h/*.csv", &["h/x=1.csv"]), None);
        assert_eq!(parts("*/*/*.csv", &["h/x=1/a.csv"]), None);
        assert_eq!(parts("h/**/*.csv", &["h/x=1/y=1/a.csv"]), None);
    }
}
