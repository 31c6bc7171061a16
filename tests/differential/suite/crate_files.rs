//! Locates the files of DataFusion's suite.
//!
//! The files are part of the published crate `datafusion-sqllogictest`, of the linked DataFusion's
//! version. The crate is no dependency and is not built. If it is missing, `cargo info` downloads
//! it into the registry's source folder, beside DataFusion's other crates.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use datafusion::DATAFUSION_VERSION;
use tempfile::TempDir;

/// Returns the root folder of the crate; panics if it cannot be downloaded.
pub(crate) fn folder() -> PathBuf {
    let name = format!("datafusion-sqllogictest-{DATAFUSION_VERSION}");
    let sources = cargo_home().join("registry/src");
    if let Some(folder) = find(&sources, &name) {
        return folder;
    }
    let said = download();
    find(&sources, &name).unwrap_or_else(|| {
        panic!("DataFusion's suite is not at {sources:?}/*/{name}; cargo info says: {said}")
    })
}

/// Returns cargo's own folder, found in the same way as by cargo.
fn cargo_home() -> PathBuf {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named.unwrap_or_else(|| env::home_dir().unwrap().join(".cargo"))
}

/// Looks for the crate in the folders of all registries.
fn find(sources: &Path, name: &str) -> Option<PathBuf> {
    let registries = fs::read_dir(sources).ok()?;
    let folders = registries.map(|registry| registry.unwrap().path().join(name));
    folders.into_iter().find(|folder| folder.join("test_files").is_dir())
}

/// Downloads the crate with cargo, and returns cargo's output. Runs outside a workspace, since
/// cargo would lock one.
fn download() -> String {
    let folder = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["info", "--registry", "crates-io"])
        .arg(format!("datafusion-sqllogictest@{DATAFUSION_VERSION}"))
        .current_dir(folder.path())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}
