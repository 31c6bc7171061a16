//! A query's stages as text, and as a picture, wherever they run.

use std::{fmt::Write, sync::Arc};

use datafusion::physical_plan::{ExecutionPlan, displayable};

use crate::{PartitioningHandle as Handle, PlanFragment, RemoteSourceExec, SubPlan};

/// Where the tasks of a stage run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageLocation {
    /// On nodes of this process.
    Local,
    /// On workers: the address of that of each task, in their order, as far as it was sent to one.
    Remote(Vec<String>),
}

/// A stage, for those who look at it.
#[derive(Debug, Clone)]
pub struct StageView {
    /// Its number; 0 is the one that gives the result.
    pub id: usize,
    /// Where its tasks run.
    pub location: StageLocation,
    /// How its tasks share what they read, and how many there are: `HASH, 3 tasks`.
    pub distribution: String,
    /// Where its output goes.
    pub output: String,
    /// What each of its tasks runs, down to where it reads other stages.
    pub root: Arc<dyn ExecutionPlan>,
    /// The stage that reads it.
    pub parent: Option<usize>,
}

/// A query as stages, whether nodes of this process or workers run them: a parent before those it reads.
#[derive(Debug, Clone)]
pub struct StageTree {
    /// The stages.
    pub stages: Vec<StageView>,
    reads_others: fn(&dyn ExecutionPlan) -> bool,
}

impl StageTree {
    /// Of stages whose plans end where `reads_others` says so.
    pub(crate) fn new(
        stages: Vec<StageView>,
        reads_others: fn(&dyn ExecutionPlan) -> bool,
    ) -> Self {
        Self { stages, reads_others }
    }

    /// For each stage how many tasks it has and how these share what they read, where they run, where its output
    /// goes, and what each of them runs.
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

    /// The same as a flow chart in [Mermaid](https://mermaid.js.org)'s language, with the names of the operators
    /// only.
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

    /// Names of what a task runs, the last first.
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
    /// The tree of stages on so many nodes.
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

/// `1 task`, `2 tasks`.
pub(crate) fn count_of_tasks(tasks: usize) -> String {
    format!("{tasks} task{}", if tasks == 1 { "" } else { "s" })
}

fn output_target(fragment: &PlanFragment) -> String {
    match fragment.id {
        0 => "the result".to_owned(),
        _ => fragment.output.to_string(),
    }
}

/// Text within quotation marks, where Mermaid takes names of characters.
fn quoted(text: &str) -> String {
    text.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}
