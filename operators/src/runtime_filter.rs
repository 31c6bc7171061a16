//! Runtime filters: what a finished build side tells the scans below its probe side.
//!
//! The producer publishes an expression, or leaves without; either way the gate opens, so nobody
//! waits for a filter that will not come. Who holds the expression, and how scans see it, is the
//! planner's business ([`FilterTarget`]).

use std::{fmt, sync::Arc};

use datafusion_physical_expr::PhysicalExpr;
use gatework_shared_state::{Dependency, DependencyKind, Gate};

/// Where a published filter goes: DataFusion's dynamic filter, or a test's list.
pub trait FilterTarget: Send + Sync {
    /// The expressions of the probe side's keys, over which the filter must be written.
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>];

    /// Takes the filter: `Some` expression that is true for every row that may find a match, `None`
    /// if the producer has nothing to say.
    ///
    /// # Errors
    /// If the expression cannot be used; the query goes on without.
    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> datafusion_common::Result<()>;
}

/// The duty to publish a filter once. Dropped without, it publishes "nothing to say".
pub struct FilterProducer {
    target: Arc<dyn FilterTarget>,
    gate: Gate,
    published: bool,
}

impl FilterProducer {
    /// A producer for `target`, and the gate on which its readers wait.
    pub fn new(name: &str, target: Arc<dyn FilterTarget>) -> (Self, Gate) {
        let gate =
            Dependency::blocked(format!("{name} runtime filter"), DependencyKind::RuntimeFilter);
        (Self { target, gate: gate.clone(), published: false }, gate)
    }

    /// The expressions of the probe side's keys.
    pub fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        self.target.keys()
    }

    /// Publishes `filter` and opens the gate.
    pub fn publish(mut self, filter: Option<Arc<dyn PhysicalExpr>>) {
        self.send(filter);
    }

    fn send(&mut self, filter: Option<Arc<dyn PhysicalExpr>>) {
        self.published = true;
        if let Err(error) = self.target.publish(filter) {
            tracing::debug!(%error, "a runtime filter could not be used");
        }
        self.gate.set_always_ready();
    }
}

impl Drop for FilterProducer {
    fn drop(&mut self) {
        if !self.published {
            self.send(None);
        }
    }
}

impl fmt::Debug for FilterProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter producer ({:?})", self.gate)
    }
}
