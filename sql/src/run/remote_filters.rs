//! Runtime filters between stages: joins of one stage publish them for tables of another.
//!
//! Each task of a distributed join knows only the keys of its own part. The filter is published
//! when the parts of all tasks are known. It is disabled when a task ends, for any reason, before
//! its part was known. If every task knows all keys, the first one publishes the filter. Lock:
//! `parts`; the gate becomes ready after the filter is updated.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, DynamicFilterPhysicalExpr},
    },
};
use gatework_operators::runtime_filter::FilterTarget;
use gatework_shared_state::{Dependency, DependencyKind, Gate};
use parking_lot::Mutex;

/// A query's filters that one stage publishes for another, by DataFusion's filter id. Passed in the
/// session configuration of the stages' tasks.
#[derive(Debug, Default)]
pub struct RemoteRuntimeFilters(HashMap<u64, Arc<RemoteFilter>>);

#[derive(Debug)]
pub(crate) struct RemoteFilter {
    /// The stage that publishes the filter.
    stage: usize,
    filter: Arc<DynamicFilterPhysicalExpr>,
    gate: Gate,
    parts: Mutex<FilterParts>,
}

#[derive(Debug)]
struct FilterParts {
    /// Number of tasks that publish a part.
    tasks: usize,
    /// The published parts, by query id of their task.
    known: HashMap<u64, Arc<dyn PhysicalExpr>>,
    finished: bool,
}

impl RemoteRuntimeFilters {
    /// Adds a filter that is combined from the parts of `tasks` tasks of `stage`.
    pub fn add(&mut self, filter: Arc<DynamicFilterPhysicalExpr>, stage: usize, tasks: usize) {
        let Some(id) = filter.expression_id() else { return };
        // The gate is made ready by tasks of other query contexts.
        let gate = Dependency::blocked("remote runtime filter", DependencyKind::External);
        let parts = Mutex::new(FilterParts { tasks, known: HashMap::new(), finished: false });
        self.0.insert(id, Arc::new(RemoteFilter { stage, filter, gate, parts }));
    }

    /// Records the end of a task of `stage`, which ran as the query with id `query`. Filters whose
    /// part it has not published are disabled.
    pub fn task_ended(&self, stage: usize, query: u64) {
        for filter in self.0.values().filter(|filter| filter.stage == stage) {
            let unpublished = !filter.parts.lock().known.contains_key(&query);
            // Updating the filter is the only step that can fail, and there is no update.
            let _published = unpublished.then(|| filter.publish(query, None));
        }
    }

    /// Returns the number of filters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no filters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Arc<RemoteFilter>> {
        self.0.get(&id)
    }
}

impl RemoteFilter {
    /// Returns the gate that is ready once the filter is published or disabled.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    fn publish(&self, query: u64, part: Option<Arc<dyn PhysicalExpr>>) -> Result<()> {
        let whole = {
            let mut parts = self.parts.lock();
            if parts.finished {
                return Ok(());
            }
            let disabled = part.is_none();
            parts.known.extend(part.map(|part| (query, part)));
            if !disabled && parts.known.len() < parts.tasks {
                return Ok(());
            }
            parts.finished = true;
            let known = std::mem::take(&mut parts.known);
            known.into_values().filter(|_| !disabled).reduce(|one, other| {
                Arc::new(BinaryExpr::new(one, Operator::Or, other)) as Arc<dyn PhysicalExpr>
            })
        };
        let updated = whole.map_or(Ok(()), |whole| self.filter.update(whole));
        self.filter.mark_complete();
        self.gate.set_always_ready();
        updated
    }
}

/// One task's part of a filter.
pub(crate) struct RemoteTarget {
    pub(crate) query: u64,
    pub(crate) filter: Arc<RemoteFilter>,
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl FilterTarget for RemoteTarget {
    fn keys(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.keys
    }

    fn publish(&self, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<()> {
        self.filter.publish(self.query, filter)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_expr::expressions::{Column, lit};

    use super::*;

    fn filter(
        tasks: usize,
    ) -> (Arc<DynamicFilterPhysicalExpr>, Arc<RemoteFilter>, RemoteRuntimeFilters) {
        let keys: Vec<Arc<dyn PhysicalExpr>> = vec![Arc::new(Column::new("k", 0))];
        let dynamic = Arc::new(DynamicFilterPhysicalExpr::new(keys, lit(true)));
        let mut all = RemoteRuntimeFilters::default();
        all.add(dynamic.clone(), 3, tasks);
        let id = dynamic.expression_id().unwrap();
        (dynamic, all.get(id).unwrap().clone(), all)
    }

    fn is(value: i64) -> Option<Arc<dyn PhysicalExpr>> {
        let key = Arc::new(Column::new("k", 0));
        Some(Arc::new(BinaryExpr::new(key, Operator::Eq, lit(value))))
    }

    #[test]
    fn parts_are_published_together() {
        let (dynamic, remote, all) = filter(2);
        remote.publish(7, is(1)).unwrap();
        // The task's part again, from a join that was rerun.
        remote.publish(7, is(1)).unwrap();
        all.task_ended(3, 7);
        all.task_ended(2, 8);
        assert!(!remote.gate().is_ready());
        remote.publish(8, is(1)).unwrap();
        assert!(remote.gate().is_ready());
        assert_eq!(dynamic.current().unwrap().to_string(), "k@0 = 1 OR k@0 = 1");
    }

    #[test]
    fn a_part_that_does_not_come_disables_it() {
        let (dynamic, remote, _) = filter(3);
        remote.publish(7, is(1)).unwrap();
        remote.publish(8, None).unwrap();
        assert!(remote.gate().is_ready());
        remote.publish(9, is(2)).unwrap();
        assert_eq!(dynamic.current().unwrap().to_string(), "true");
    }

    #[test]
    fn a_task_that_ends_without_publishing_disables_it() {
        let (dynamic, remote, all) = filter(2);
        remote.publish(7, is(1)).unwrap();
        all.task_ended(3, 8);
        assert!(remote.gate().is_ready());
        assert_eq!(dynamic.current().unwrap().to_string(), "true");
    }
}
