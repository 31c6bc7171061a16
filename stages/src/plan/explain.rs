//! A query's stages as text and as a diagram, whether nodes or workers run them.

use std::{fmt::Write, sync::Arc};

use datafusion::physical_plan::{ExecutionPlan, displayable};

use crate::{PartitioningHandle as Handle, PlanFragment, RemoteSourceExec, SubPlan};

/// Where the tasks of a stage run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageLocation {
    /// On nodes of this process.
    Local,
    /// On workers: the addresses by task, for the tasks that have been sent.
    Remote(Vec<String>),
}

/// Description of a stage.
#[derive(Debug, Clone)]
pub struct StageView {
    /// Number of the stage; the stage with the result is 0.
    pub id: usize,
    /// Where its tasks run.
    pub location: StageLocation,
    /// Distribution and number of its tasks, such as `HASH, 3 tasks`.
    pub distribution: String,
    /// Destination of its output.
    pub output: String,
    /// Plan of each of its tasks, down to its inputs from other stages.
    pub root: Arc<dyn ExecutionPlan>,
    /// The stage that reads it.
    pub parent: Option<usize>,
}

/// A query's stages, on nodes of this process or on workers. A parent comes before its children.
#[derive(Debug, Clone)]
pub struct StageTree {
    /// The stages.
    pub stages: Vec<StageView>,
    reads_others: fn(&dyn ExecutionPlan) -> bool,
}

impl StageTree {
    /// `reads_others` tells the nodes at which a stage's plan ends.
    pub(crate) fn new(
        stages: Vec<StageView>,
        reads_others: fn(&dyn ExecutionPlan) -> bool,
    ) -> Self {
        Self { stages, reads_others }
    }

    /// Describes each stage: distribution and number of its tasks, where they run, destination of
    /// the output, and plan.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for stage in &self.stages {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} gives {}", stage.title(), stage.output);
            self.lines(&stage.root, 1, &mut text);
        }
        text
    }

    fn lines(&self, node: &Arc<dyn ExecutionPlan>, depth: usize, text: &mut String) {
        let line = displayable(node.as_ref()).one_line().to_string();
        let _ = writeln!(text, "{:indent$}{}", "", line.trim_end(), indent = 2 * depth + 2);
        if !(self.reads_others)(node.as_ref()) {
            node.children().into_iter().for_each(|child| self.lines(child, depth + 1, text));
        }
    }

    /// Returns the same as a flow chart in [Mermaid](https://mermaid.js.org)'s language, with
    /// operator names only.
    ///
    /// ```
    /// # use datafusion::prelude::SessionContext;
    /// # use gatework_stages::{StageOptions, plan_stages};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> datafusion::error::Result<()> {
    /// let query = SessionContext::new().sql("SELECT 6 * 7 AS answer").await?;
    /// let (state, plan) = query.into_parts();
    /// let stages = plan_stages(&state, &plan, &StageOptions::with_nodes(4)).await?;
    /// assert!(stages.tree(4).mermaid().starts_with("flowchart BT\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn mermaid(&self) -> String {
        let mut text = String::from("flowchart BT\n");
        for stage in &self.stages {
            let mut lines = vec![quoted(&stage.title())];
            self.operators(&stage.root, &mut lines);
            let _ = writeln!(text, "    s{}[\"{}\"]", stage.id, lines.join("<br/>"));
        }
        for stage in &self.stages {
            let Some(parent) = stage.parent else { continue };
            let label = quoted(&stage.output);
            let _ = writeln!(text, "    s{} -->|\"{label}\"| s{parent}", stage.id);
        }
        text
    }

    /// Appends the operator names below `node`, top down.
    fn operators(&self, node: &Arc<dyn ExecutionPlan>, names: &mut Vec<String>) {
        if (self.reads_others)(node.as_ref()) {
            return;
        }
        names.push(node.name().trim_end_matches("Exec").to_owned());
        node.children().into_iter().for_each(|child| self.operators(child, names));
    }
}

impl StageView {
    fn title(&self) -> String {
        let Self { id, location, distribution, .. } = self;
        let mut workers = match location {
            StageLocation::Local => return format!("Stage {id} [{distribution}]"),
            StageLocation::Remote(workers) => workers.clone(),
        };
        workers.dedup();
        match workers.is_empty() {
            true => format!("Stage {id} [{distribution} on workers]"),
            false => format!("Stage {id} [{distribution} on {}]", workers.join(", ")),
        }
    }
}

impl SubPlan {
    /// The stages of this plan on `nodes` nodes.
    pub fn tree(&self, nodes: usize) -> StageTree {
        let mut stages = Vec::new();
        self.views(nodes, None, &mut stages);
        StageTree::new(stages, |node| node.is::<RemoteSourceExec>())
    }

    fn views(&self, nodes: usize, parent: Option<usize>, views: &mut Vec<StageView>) {
        let fragment = &self.fragment;
        views.push(StageView {
            id: fragment.id,
            location: StageLocation::Local,
            distribution: distribution(fragment, nodes),
            output: output_target(fragment),
            root: fragment.root.clone(),
            parent,
        });
        self.children.iter().for_each(|child| child.views(nodes, Some(fragment.id), views));
    }
}

fn distribution(fragment: &PlanFragment, nodes: usize) -> String {
    let min_tasks = if fragment.partitioning == Handle::ScaledWriter { "1 to " } else { "" };
    let groups = match fragment.buckets {
        Some(count) if fragment.grouped_execution => format!(", {count} groups"),
        Some(count) => format!(", {count} buckets"),
        None => String::new(),
    };
    let tasks = count_of_tasks(fragment.tasks(nodes));
    format!("{}, {min_tasks}{tasks}{groups}", fragment.partitioning)
}

/// Such as `1 task` or `2 tasks`.
pub(crate) fn count_of_tasks(tasks: usize) -> String {
    format!("{tasks} task{}", if tasks == 1 { "" } else { "s" })
}

fn output_target(fragment: &PlanFragment) -> String {
    match fragment.id {
        0 => "the result".to_owned(),
        _ => fragment.output.to_string(),
    }
}

/// Escapes text for a quoted Mermaid label.
fn quoted(text: &str) -> String {
    text.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}
