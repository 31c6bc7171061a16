//! An open pipeline: a source and operators, without a sink.

use std::sync::Arc;

use gatework_runtime::pipeline::{Operator, PipelineId, Source};
use gatework_shared_state::BufferLimit;

use crate::scan::ScanFilter;

/// A bounded buffer that the pipeline's source reads.
pub(super) struct Buffer {
    pub(super) producer: PipelineId,
    pub(super) limit: BufferLimit,
}

/// `source → operator*`, to be closed by a sink.
pub(super) struct PipelineBuilder {
    pub(super) name: String,
    pub(super) num_tasks: usize,
    pub(super) source: (Arc<dyn Source>, Option<usize>),
    pub(super) operators: Vec<(Arc<dyn Operator>, Option<usize>)>,
    /// Pipelines that must end before this one can make progress.
    pub(super) dependencies: Vec<PipelineId>,
    pub(super) buffers: Vec<Buffer>,
    /// Runtime filters that this pipeline's tasks publish, the one next to the source first.
    pub(super) published_filters: Vec<u64>,
    /// Runtime filters that this pipeline's source waits for.
    pub(super) filter_waits: Vec<(u64, Arc<ScanFilter>)>,
}

impl PipelineBuilder {
    pub(super) fn new(
        name: impl Into<String>,
        num_tasks: usize,
        source: Arc<dyn Source>,
        tag: Option<usize>,
    ) -> Self {
        Self {
            name: name.into(),
            num_tasks,
            source: (source, tag),
            operators: Vec::new(),
            dependencies: Vec::new(),
            buffers: Vec::new(),
            published_filters: Vec::new(),
            filter_waits: Vec::new(),
        }
    }

    /// Appends `operator`.
    pub(super) fn push_operator(
        mut self,
        operator: impl Operator + 'static,
        tag: Option<usize>,
    ) -> Self {
        self.operators.push((Arc::new(operator), tag));
        self
    }

    /// Declares that this pipeline makes no progress before `producer` has ended.
    pub(super) fn depends_on(mut self, producer: PipelineId) -> Self {
        self.dependencies.push(producer);
        self
    }
}
