//! Runtime filters: predicates from a finished build side for the scans below its probe side.
//!
//! The producer publishes an expression or is dropped without one. Either way the gate becomes
//! ready, so no scan waits for a filter that is never published. The planner decides where the
//! expression is stored and how scans see it ([`FilterTarget`]).
//!
//! The threshold of a top-n is a filter as well. It is published again whenever it drops more rows,
//! and no scan waits for it.

use std::{fmt, sync::Arc};

use datafusion_physical_expr::PhysicalExpr;
use gatework_shared_state::{Dependency, DependencyKind, Gate};

/// Destination of a published filter: DataFusion's dynamic filter, or a test's list.
pub trait FilterTarget: Send + Sync {
    /// Returns the probe side's key expressions, over which the filter must be written.
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>];

    /// Takes the filter. `Some` expression is true for every row that may find a match; `None`
    /// means that the producer has no filter. A top-n calls it for each better threshold.
    ///
    /// # Errors
    /// If the expression cannot be used; the query continues without it.
    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> datafusion_common::Result<()>;
}

/// Producer of a filter, which it publishes once. A drop without `publish` publishes `None`.
pub struct FilterProducer {
    target: Arc<dyn FilterTarget>,
    gate: Gate,
    published: bool,
}

impl FilterProducer {
    /// Creates a producer for `target`, and the gate on which its readers wait.
    pub fn new(name: &str, target: Arc<dyn FilterTarget>) -> (Self, Gate) {
        let gate =
            Dependency::blocked(format!("{name} runtime filter"), DependencyKind::RuntimeFilter);
        (Self { target, gate: gate.clone(), published: false }, gate)
    }

    /// Returns the probe side's key expressions.
    pub fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        self.target.keys()
    }

    /// Publishes `filter` and makes the gate ready.
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
