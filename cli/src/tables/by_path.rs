//! Files as tables of a query: `FROM 'people.csv'`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{DynamicFileCatalog, TableProvider, UrlTableFactory};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::prelude::SessionContext;
use tokio::task_local;

use super::{Opened, find, print_note};

/// Characters of a path that names of tables rarely have.
const SIGNS: [char; 4] = ['.', '/', '*', '?'];

task_local! {
    /// Set while tables of a statement are looked up.
    static PLANNING: ();
}

/// Runs `planning` of a statement, during which files are tables. Elsewhere they are none, so that
/// a table may be created under the name of a folder, and DROP TABLE finds no file.
pub(crate) async fn while_planning<T>(planning: impl Future<Output = T>) -> T {
    PLANNING.scope((), planning).await
}

/// Lets queries of a session name files as tables.
pub(crate) fn enable(session: &SessionContext) {
    let known = Arc::clone(session.state().catalog_list());
    let get_state: GetState = {
        let state = session.state_weak_ref();
        Box::new(move || state.upgrade().map(|state| state.read().clone()))
    };
    let files = Arc::new(Files { state: get_state });
    session.register_catalog_list(Arc::new(DynamicFileCatalog::new(known, files)));
}

type GetState = Box<dyn Fn() -> Option<datafusion::execution::SessionState> + Send + Sync>;

/// Opens the files that queries name.
struct Files {
    /// The state of the session, while there is one.
    state: GetState,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

#[async_trait]
impl UrlTableFactory for Files {
    /// Opens a table that the session does not have: none if its name cannot be a path.
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if PLANNING.try_with(|_| ()).is_err() || !is_path(name) {
            return Ok(None);
        }
        let state = (self.state)().ok_or_else(|| exec_datafusion_err!("the session has ended"))?;
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
