//! Lowering of shared subplans: one pipeline of the definition, and a source for each reader.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    common::internal_err,
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::ExecutionPlan,
};
use gatework_operators::{
    projection::Projection,
    shared_rows::{self, SharedRowsReader},
};
use gatework_runtime::pipeline::PipelineId;

use super::{Lowering, pipeline_builder::PipelineBuilder};
use crate::plan::{
    exec::{GateworkExec, as_gatework_exec},
    shared_subplans::SharedRowsExec,
};

/// The shared subplans of a region, by their ids.
#[derive(Default)]
pub(super) struct SharedSubplans {
    /// Number of readers in the region. A subplan with readers in several regions runs in each.
    readers: HashMap<usize, usize>,
    /// The pipelines of the definitions that are lowered, and their remaining readers.
    lowered: HashMap<usize, (PipelineId, Vec<SharedRowsReader>)>,
}

impl SharedSubplans {
    /// Counts the readers in the region below `exec`.
    pub(super) fn count_readers(&mut self, exec: &GateworkExec) {
        let Some(reader) = exec.inner().downcast_ref::<SharedRowsExec>() else {
            let children = exec.children().iter();
            let children = children.filter_map(|child| as_gatework_exec(child.as_ref()));
            return children.for_each(|child| self.count_readers(child));
        };
        let readers = self.readers.entry(reader.subplan().id()).or_default();
        *readers += 1;
        let definition = reader.subplan().definition();
        if *readers == 1
            && let Some(definition) = as_gatework_exec(definition.as_ref())
        {
            self.count_readers(definition);
        }
    }
}

impl Lowering {
    pub(super) fn shared_rows(
        &mut self,
        exec: &GateworkExec,
        reader: &SharedRowsExec,
        tag: Option<usize>,
    ) -> Result<PipelineBuilder> {
        let (subplan, schema) = (reader.subplan(), exec.schema());
        let readers = self.shared.readers.get(&subplan.id()).copied().unwrap_or(1);
        if readers == 1 {
            // As if it were written in place.
            let definition = subplan.definition();
            let input = definition.schema();
            let columns = reader.columns().iter().map(|index| {
                let column: Arc<dyn PhysicalExpr> =
                    Arc::new(Column::new(input.field(*index).name(), *index));
                column
            });
            let projection = Projection::new(columns.collect(), schema);
            return Ok(self.child(definition, false)?.push_operator(projection, tag));
        }
        if !self.shared.lowered.contains_key(&subplan.id()) {
            // The subplan refers to no subquery above this reader. One of these may read it, too.
            let start_after = std::mem::take(&mut self.start_after);
            let pipeline = self.child(subplan.definition(), false);
            self.start_after = start_after;
            let pipeline = pipeline?;
            let (sink, sources) = shared_rows::new(pipeline.num_tasks, readers, self.max_tasks);
            let producer = self.add_pipeline(pipeline, Arc::new(sink), tag)?;
            self.shared.lowered.insert(subplan.id(), (producer, sources));
        }
        let lowered = self.shared.lowered.get_mut(&subplan.id());
        let source = lowered.and_then(|(producer, sources)| Some((*producer, sources.pop()?)));
        let Some((producer, source)) = source else {
            return internal_err!("a shared subplan has more readers than were counted");
        };
        let source = Arc::new(source.source(reader.columns().clone(), schema));
        Ok(self.source("shared rows", self.max_tasks, source, tag).depends_on(producer))
    }
}
