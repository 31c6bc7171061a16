//! Resolves a path to files of one format.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use datafusion::datasource::listing::ListingTableUrl;
use glob::Pattern;
use url::Url;

use super::hive;
use crate::error::{Error, one_line};
use crate::store::is_hidden;

/// The supported extensions, for messages.
const KNOWN: &str = ".parquet, .csv, .tsv, .json, .ndjson, .jsonl, .arrow, .ipc and .feather";

/// First and last four bytes of every Parquet file.
const PARQUET_MAGIC: &[u8; 4] = b"PAR1";

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) kind: Kind,
    pub(super) compression: Option<&'static str>,
    pub(super) delimiter: Option<u8>,
}

/// A family of file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Parquet,
    Csv,
    Json,
    Arrow,
}

impl Kind {
    /// DataFusion's name of the format.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Arrow => "arrow",
        }
    }
}

impl Format {
    /// The format that a file's name promises.
    fn of(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, compression) =
            [(".gz", "gzip"), (".bz2", "bzip2"), (".xz", "xz"), (".zst", "zstd")]
                .into_iter()
                .find_map(|(suffix, compression)| {
                    Some((name.strip_suffix(suffix)?, Some(compression)))
                })
                .unwrap_or((name.as_str(), None));
        let (kind, delimiter) = match name.rsplit_once('.')?.1 {
            "parquet" | "parq" => (Kind::Parquet, None),
            "csv" => (Kind::Csv, None),
            "tsv" => (Kind::Csv, Some(b'\t')),
            "json" | "ndjson" | "jsonl" => (Kind::Json, None),
            "arrow" | "ipc" | "feather" => (Kind::Arrow, None),
            _ => return None,
        };
        // Parquet and Arrow files compress internally; compressing the whole file would prevent
        // random access.
        let compressible = matches!(kind, Kind::Csv | Kind::Json);
        (compressible || compression.is_none()).then_some(Self { kind, compression, delimiter })
    }
}

/// The files that a path stands for.
#[derive(Debug)]
pub(super) struct Source {
    /// The path as the user wrote it.
    pub(super) path: String,
    /// The files, sorted by name; never empty.
    pub(super) files: Vec<PathBuf>,
    pub(super) format: Format,
    /// Whether the folder has `column=value` folders.
    pub(super) partitioned: bool,
    /// Common extension of a folder's files; `None` if the files are listed individually.
    pub(super) extension: Option<String>,
    /// Folder above the `column=value` folders of a pattern's files, and the pattern of file names.
    hive: Option<(PathBuf, String)>,
}

impl Source {
    /// Finds the files and checks that they can be opened and have the promised format.
    pub(super) fn find(path: &str) -> Result<Self, Error> {
        let local = match Url::parse(path) {
            Ok(url) if url.scheme() == "file" => url.to_file_path().ok(),
            _ => None,
        };
        let local = local.map(|path| path.to_string_lossy().into_owned());
        let path = local.as_deref().unwrap_or(path);
        let literal = Path::new(path);
        let mut files = Vec::new();
        let mut partitioned = false;
        if literal.is_dir() {
            partitioned = list(literal, &mut files)?;
        } else if literal.exists() {
            files.push(literal.to_owned());
        } else {
            expand(path, &mut files)?;
        }
        files.sort();
        let format = common_format(path, &files)?;
        if format.kind != Kind::Parquet && files.iter().any(|file| !is_empty(file)) {
            // Partitioned writers leave empty files; a Parquet file is never empty.
            files.retain(|file| !is_empty(file));
        }
        files.iter().try_for_each(|file| check(file, format))?;
        let extension = match literal.is_dir() {
            true => common_extension(&files),
            false => None,
        };
        if partitioned && extension.is_none() {
            return Err(Error::failed(format!(
                "the files of the partitioned folder '{path}' must all have the same extension"
            )));
        }
        let hive = if literal.exists() { None } else { hive::split(path, &files) };
        Ok(Self { path: path.to_owned(), files, format, partitioned, extension, hive })
    }

    /// The URL of the files that a pattern matches, if they have partition columns.
    pub(super) fn pattern_url(&self) -> Result<Option<ListingTableUrl>, Error> {
        let Some((folder, pattern)) = &self.hive else { return Ok(None) };
        let url = url(folder)?.with_glob(pattern);
        Ok(Some(url.map_err(|error| Error::failed(one_line(&error.message())))?))
    }

    /// The URLs that DataFusion lists for each query: the folder, whose files may change, or the
    /// files themselves if they have no common extension.
    pub(super) fn urls(&self) -> Result<Vec<ListingTableUrl>, Error> {
        match self.extension {
            Some(_) => Ok(vec![url(Path::new(&self.path))?]),
            None => self.file_urls(),
        }
    }

    /// One URL per file, in the order of `files`.
    pub(super) fn file_urls(&self) -> Result<Vec<ListingTableUrl>, Error> {
        self.files.iter().map(|file| url(file)).collect()
    }
}

/// Adds the files of a folder, without hidden ones. Descends into `column=value` folders only, and
/// returns whether there is one.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<bool, Error> {
    let unreadable = |error| unreadable(folder, &error);
    let before = files.len();
    let mut partitioned = false;
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_hidden(&name) {
            continue;
        }
        if path.is_file() && !name.starts_with('_') {
            files.push(path);
        } else if path.is_dir() && name.contains('=') {
            list(&path, files)?;
            partitioned = true;
        }
    }
    match files.len() == before {
        true => {
            Err(Error::failed(format!("the folder '{}' has no files to read", folder.display())))
        }
        false => Ok(partitioned),
    }
}

/// Adds the files that a pattern matches, and the files of matching folders.
fn expand(pattern: &str, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if !is_pattern(pattern) {
        return Err(Error::failed(format!("there is no file or folder '{pattern}'")));
    }
    let matches = glob::glob(pattern)
        .map_err(|error| Error::failed(format!("'{pattern}' is not a pattern: {error}")))?;
    for path in matches {
        let path = path.map_err(|error| unreadable(error.path(), error.error()))?;
        if is_left_out(Path::new(pattern), &path) {
            continue;
        }
        match path.is_dir() {
            true => _ = list(&path, files)?,
            false => files.push(path),
        }
    }
    match files.is_empty() {
        true => Err(Error::failed(format!("no file matches '{pattern}'"))),
        false => Ok(()),
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether a matching path has a hidden name that the pattern does not spell out: `_*.csv` matches
/// `_a.csv`, and `*.csv` does not.
fn is_left_out(pattern: &Path, path: &Path) -> bool {
    let names = |path: &Path| -> Vec<String> {
        path.iter().map(|name| name.to_string_lossy().into_owned()).collect()
    };
    let (patterns, names) = (names(pattern), names(path));
    let literal = patterns.iter().position(|name| is_pattern(name)).unwrap_or(patterns.len());
    let asked_for: Vec<_> = patterns
        .iter()
        .filter(|name| name.starts_with(['.', '_']))
        .filter_map(|name| Pattern::new(name).ok())
        .collect();
    names.iter().enumerate().skip(literal).any(|(index, name)| {
        let is_file = index + 1 == names.len();
        let hidden = is_hidden(name) || (is_file && name.starts_with('_') && !path.is_dir());
        hidden && !asked_for.iter().any(|asked_for| asked_for.matches(name))
    })
}

pub(super) fn common_format(path: &str, files: &[PathBuf]) -> Result<Format, Error> {
    let mut first: Option<(&PathBuf, Format)> = None;
    for file in files {
        let format = Format::of(file).ok_or_else(|| {
            let name = file.display();
            Error::failed(format!(
                "the format of '{name}' is unknown; its name must end in {KNOWN}"
            ))
        })?;
        match first {
            None => first = Some((file, format)),
            Some((other, expected)) if format != expected => {
                let (a, b) = (other.display(), file.display());
                return Err(Error::failed(format!(
                    "'{path}' mixes formats, as in '{a}' and '{b}'; select files with a pattern \
                     such as '*.parquet'"
                )));
            }
            Some(_) => {}
        }
    }
    first
        .map(|(_, format)| format)
        .ok_or_else(|| Error::failed(format!("there are no files in '{path}'")))
}

/// The common extension of the files, by which DataFusion finds them in a folder.
pub(super) fn common_extension(files: &[PathBuf]) -> Option<String> {
    let extension =
        |file: &PathBuf| file.extension().unwrap_or_default().to_string_lossy().into_owned();
    let mut extensions: Vec<_> = files.iter().map(extension).collect();
    extensions.dedup();
    match extensions.as_slice() {
        [one] => Some(format!(".{one}")),
        _ => None,
    }
}

/// Opens a file. For Parquet, checks the magic bytes at both ends, where truncation shows.
fn check(path: &Path, format: Format) -> Result<(), Error> {
    let io = |error| unreadable(path, &error);
    // Opening a pipe would block until it has a writer.
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(Error::failed(format!(
            "'{}' is a pipe or a device; tables are files and folders: write it into a file first",
            path.display()
        )));
    }
    if metadata.len() == 0 {
        return Err(Error::failed(format!("the file '{}' is empty", path.display())));
    }
    let mut file = File::open(path).map_err(io)?;
    if format.kind != Kind::Parquet {
        return Ok(());
    }
    let mut ends = [[0; 4]; 2];
    let whole = file
        .read_exact(&mut ends[0])
        .and_then(|()| file.seek(SeekFrom::End(-4)))
        .and_then(|_| file.read_exact(&mut ends[1]));
    match whole.is_ok() && ends.iter().all(|end| end == PARQUET_MAGIC) {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "'{}' is not a whole Parquet file; it is truncated, corrupt, or of another format",
            path.display()
        ))),
    }
}

fn is_empty(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("'{}' cannot be read: {error}", path.display()))
}

/// The URL of a path, taken literally: `[` in a file name is no pattern.
fn url(path: &Path) -> Result<ListingTableUrl, Error> {
    let path = without_parents(path)?;
    let address = match path.is_dir() {
        true => Url::from_directory_path(&path),
        false => Url::from_file_path(&path),
    };
    let named = address.ok().and_then(|address| ListingTableUrl::try_new(address, None).ok());
    named.ok_or_else(|| {
        Error::failed(format!(
            "'{}' cannot be a table: its name has control characters or is not UTF-8; rename \
             the file",
            path.display()
        ))
    })
}

/// The absolute path without `..`, which URLs do not support. The part up to the last `..` is
/// resolved by the system: behind a symbolic link, `..` is not the folder of the link.
fn without_parents(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(|error| unreadable(path, &error))?;
    let components: Vec<_> = absolute.components().collect();
    let Some(last) = components.iter().rposition(|component| *component == Component::ParentDir)
    else {
        return Ok(absolute);
    };
    let (above, below) = components.split_at(last + 1);
    let above: PathBuf = above.iter().collect();
    let mut path = above.canonicalize().map_err(|error| unreadable(&above, &error))?;
    path.extend(below);
    Ok(path)
}
