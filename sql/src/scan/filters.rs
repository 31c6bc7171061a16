//! Runtime filters at a scan: waiting for them, and dropping rows by them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arrow::{array::RecordBatch, buffer::BooleanBuffer, compute::SortOptions};
use datafusion::{
    common::tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    error::Result,
    physical_expr::{
        PhysicalExpr,
        expressions::{Column, DynamicFilterPhysicalExpr},
        projection::ProjectionExprs,
        split_conjunction,
    },
};
use gatework_operators::{
    adaptive_filter::AdaptiveFilter, filter::evaluate_predicate,
    join::hash_join::membership_predicate,
};
use gatework_runtime::{Result as RuntimeResult, pipeline::OperatorMetrics};
use gatework_shared_state::Gate;

/// A dynamic filter in a scan's predicate.
#[derive(Debug)]
pub(crate) struct ScanFilter {
    /// DataFusion's id of the filter.
    pub(crate) id: u64,
    /// Ready once the filter is published; the scan waits for it while `waits` is set.
    gate: Gate,
    waits: AtomicBool,
    /// The filter over the scan's output; `None` if the output lacks one of its columns.
    output_filter: Option<Arc<dyn PhysicalExpr>>,
    /// Whether the scan drops rows by this filter. Unset if the first probe of the scan's own
    /// pipeline looks up the same hash table anyway.
    drops_rows: AtomicBool,
}

impl ScanFilter {
    /// Returns the dynamic filters of `predicate` that native joins publish; `gate_of` knows their
    /// gates.
    pub(crate) fn find(
        predicate: Option<Arc<dyn PhysicalExpr>>,
        projection: Option<&ProjectionExprs>,
        gate_of: impl Fn(u64) -> Option<Gate>,
    ) -> Result<Vec<Arc<Self>>> {
        let mut filters = Vec::new();
        for conjunct in predicate.iter().flat_map(split_conjunction) {
            let dynamic = conjunct.is::<DynamicFilterPhysicalExpr>();
            let Some(id) = conjunct.expression_id().filter(|_| dynamic) else { continue };
            let Some(gate) = gate_of(id) else { continue };
            filters.push(Arc::new(Self {
                id,
                gate,
                waits: AtomicBool::new(true),
                output_filter: remap_to_output(conjunct, projection)?,
                drops_rows: AtomicBool::new(true),
            }));
        }
        Ok(filters)
    }

    /// Returns whether the build side has published the filter.
    pub(super) fn is_published(&self) -> bool {
        self.gate.is_ready()
    }

    /// Lets the scan start without the filter; it applies from its publication on.
    pub(crate) fn disable_wait(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }

    /// Leaves dropping rows to the join.
    pub(crate) fn disable_row_filter(&self) {
        self.drops_rows.store(false, Ordering::Relaxed);
    }
}

/// The thresholds in a scan's predicate.
pub(crate) struct Thresholds<'a> {
    pub(crate) all: &'a [ScanThreshold],
    /// Whether row groups may be read in the order of the first one.
    pub(crate) order_groups: bool,
}

/// The threshold of a top-n in a scan's predicate: rows behind it are not wanted.
#[derive(Debug)]
pub(crate) struct ScanThreshold {
    /// DataFusion's id of the filter.
    pub(super) id: u64,
    /// The top-n's first sort key, over the table's columns, and its direction.
    pub(super) key: Arc<dyn PhysicalExpr>,
    pub(super) options: SortOptions,
}

impl ScanThreshold {
    /// Returns the thresholds in `predicate`; `options_of` knows the direction of the first key of
    /// each top-n.
    pub(crate) fn find(
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        options_of: impl Fn(u64) -> Option<SortOptions>,
    ) -> Vec<Self> {
        let threshold = |conjunct: &Arc<dyn PhysicalExpr>| {
            let filter = conjunct.downcast_ref::<DynamicFilterPhysicalExpr>()?;
            let id = conjunct.expression_id()?;
            let key = filter.children().into_iter().next()?.clone();
            Some(Self { id, key, options: options_of(id)? })
        };
        predicate.into_iter().flat_map(split_conjunction).filter_map(threshold).collect()
    }
}

/// Rewrites `filter` from the table's columns to the output columns of a scan with `projection`.
/// `None` if the output lacks one of the filter's columns.
fn remap_to_output(
    filter: &Arc<dyn PhysicalExpr>,
    projection: Option<&ProjectionExprs>,
) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(projection) = projection else { return Ok(Some(filter.clone())) };
    let mut complete = true;
    let rebound = filter.clone().transform_down(|node| {
        let mut outputs = projection.iter().enumerate();
        if let Some((index, output)) = outputs.find(|(_, o)| o.expr.as_ref() == node.as_ref()) {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&output.alias, index));
            return Ok(Transformed::new(column, true, TreeNodeRecursion::Jump));
        }
        if node.is::<Column>() {
            complete = false;
            return Ok(Transformed::new(node, false, TreeNodeRecursion::Stop));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(complete.then_some(rebound.data))
}

/// Returns a published filter without the conjuncts that only prune.
pub(super) fn membership_only(filter: &Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    let current = filter.downcast_ref::<DynamicFilterPhysicalExpr>().map(|it| it.current());
    match current {
        Some(Ok(current)) => membership_predicate(&current),
        _ => filter.clone(),
    }
}

/// One task's state of one filter.
struct LocalFilter {
    filter: Arc<ScanFilter>,
    /// The evaluated predicate; `None` until the filter is published.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    adaptive: AdaptiveFilter,
}

/// The filters of one task of a scan.
pub(super) struct LocalFilters {
    filters: Vec<LocalFilter>,
    metrics: Arc<OperatorMetrics>,
    waited: bool,
}

impl LocalFilters {
    pub(super) fn new(filters: &[Arc<ScanFilter>], metrics: Arc<OperatorMetrics>) -> Self {
        let local = |filter: &Arc<ScanFilter>| LocalFilter {
            filter: filter.clone(),
            predicate: None,
            adaptive: AdaptiveFilter::default(),
        };
        Self { filters: filters.iter().map(local).collect(), metrics, waited: false }
    }

    /// Returns the gate that the scan waits for before it starts, if any.
    pub(super) fn gate(&mut self) -> Option<Gate> {
        let waited_for = self
            .filters
            .iter()
            .map(|local| &local.filter)
            .find(|filter| filter.waits.load(Ordering::Relaxed) && !filter.gate.is_ready())?;
        if !self.waited {
            self.waited = true;
            self.metrics.add("runtime_filter_waits", 1);
        }
        Some(waited_for.gate.clone())
    }

    /// Returns the rows of `batch` that may find a match; `None` if all may.
    pub(super) fn select(&mut self, batch: &RecordBatch) -> RuntimeResult<Option<BooleanBuffer>> {
        let mut selected: Option<BooleanBuffer> = None;
        for local in &mut self.filters {
            let filter = &local.filter;
            let Some(output_filter) = &filter.output_filter else { continue };
            if !filter.drops_rows.load(Ordering::Relaxed) || !filter.gate.is_ready() {
                continue;
            }
            if local.adaptive.should_skip(batch.num_rows()) {
                continue;
            }
            let predicate = local.predicate.get_or_insert_with(|| membership_only(output_filter));
            let keep = evaluate_predicate(predicate.as_ref(), batch)?;
            let dropped = batch.num_rows() - keep.count_set_bits();
            local.adaptive.record(batch.num_rows(), dropped);
            if dropped > 0 {
                self.metrics.add("runtime_filter_pruned_rows", dropped as u64);
                selected = Some(match selected {
                    Some(selected) => &selected & &keep,
                    None => keep,
                });
            }
        }
        Ok(selected)
    }
}
