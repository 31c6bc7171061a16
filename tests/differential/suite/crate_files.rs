//! Where the files of DataFusion's suite are.
//!
//! They are part of the published crate `datafusion-sqllogictest`, of the version of the DataFusion
//! that is linked. The crate is no dependency: nobody builds it. `cargo info` brings it into the
//! registry's folder of sources, beside the other crates of DataFusion, if it is not there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use datafusion::DATAFUSION_VERSION;
use tempfile::TempDir;

/// Returns the root folder of the crate; panics if it cannot be had.
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

/// Returns cargo's own folder, which cargo finds in the same way.
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

/// Has cargo fetch the crate, and returns what cargo says of it. Cargo is run where there is no
/// workspace, since it would lock one.
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
