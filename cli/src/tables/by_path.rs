//! Files as tables of a query: `FROM 'people.csv'`.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{DynamicFileCatalog, TableProvider, UrlTableFactory};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use tokio::task_local;

use super::{Opened, find, print_note};

/// Characters of a path that names of tables rarely have.
const SIGNS: [char; 4] = ['.', '/', '*', '?'];

task_local! {
    /// The session's state while tables of a statement are looked up.
    static PLANNING: Arc<SessionState>;
}

/// Runs `planning` of a statement, during which files are tables. Elsewhere they are none, so that
/// a table may be created under the name of a folder, and DROP TABLE finds no file.
pub(crate) async fn while_planning<T>(
    state: Arc<SessionState>,
    planning: impl Future<Output = T>,
) -> T {
    PLANNING.scope(state, planning).await
}

/// Lets queries of a session name files as tables.
pub(crate) fn enable(session: &SessionContext) {
    let known = Arc::clone(session.state().catalog_list());
    session.register_catalog_list(Arc::new(DynamicFileCatalog::new(known, Arc::new(Files))));
}

/// Opens the files that queries name.
#[derive(Debug)]
struct Files;

#[async_trait]
impl UrlTableFactory for Files {
    /// Opens a table that the session does not have: none if its name cannot be a path.
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Ok(state) = PLANNING.try_with(Arc::clone) else { return Ok(None) };
        if !is_path(name) {
            return Ok(None);
        }
        let opened = find(&state, name).await;
        // A bare name is more likely that of a table than that of a folder of other files.
        if opened.is_err() && !name.contains(SIGNS) {
            return Ok(None);
        }
        let Opened { table, note } = opened.map_err(|error| {
            let sentence = error.sentence().unwrap_or_default();
            DataFusionError::Plan(sentence.trim_start_matches("error: ").to_owned())
        })?;
        if let Some(note) = note {
            print_note(name, &note);
        }
        Ok(Some(table))
    }
}

/// Whether a name is a path rather than the name of a table: it has an extension, a folder or a
/// pattern, or there is such a file.
fn is_path(name: &str) -> bool {
    name.contains(SIGNS) || Path::new(name).exists()
}
