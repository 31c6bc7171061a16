//! Stages as text, and as a picture.

use std::{fmt::Write, sync::Arc};

use datafusion::physical_plan::{ExecutionPlan, displayable};

use crate::{PartitioningHandle as Handle, PlanFragment, RemoteSourceExec, SubPlan};

impl SubPlan {
    /// The tree of stages on so many nodes: for each how many tasks it has and how these share what they read,
    /// where its output goes, and what each of them runs.
    pub fn text(&self, nodes: usize) -> String {
        let mut text = String::new();
        for fragment in self.fragments() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} gives {}", title(fragment, nodes), goes_to(fragment));
            for line in displayable(fragment.root.as_ref()).indent(false).to_string().lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        text
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
    /// let stages = plan_stages(&state, &plan, &StageOptions::of_nodes(4)).await?;
    /// assert!(stages.mermaid(4).starts_with("flowchart BT\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn mermaid(&self, nodes: usize) -> String {
        let mut text = String::from("flowchart BT\n");
        self.draw(nodes, &mut text);
        text
    }

    fn draw(&self, nodes: usize, text: &mut String) {
        let own = self.fragment.id;
        let mut lines = vec![quoted(&title(&self.fragment, nodes))];
        operators(&self.fragment.root, &mut lines);
        let _ = writeln!(text, "    s{own}[\"{}\"]", lines.join("<br/>"));
        for child in &self.children {
            child.draw(nodes, text);
            let id = child.fragment.id;
            let way = quoted(&goes_to(&child.fragment));
            let _ = writeln!(text, "    s{id} -->|\"{way}\"| s{own}");
        }
    }
}

fn title(fragment: &PlanFragment, nodes: usize) -> String {
    let tasks = fragment.tasks(nodes);
    let plural = if tasks == 1 { "" } else { "s" };
    let least = if fragment.partitioning == Handle::ScaledWriter { "1 to " } else { "" };
    let (id, handle) = (fragment.id, fragment.partitioning);
    let groups = match fragment.buckets {
        Some(count) if fragment.grouped => format!(", {count} groups"),
        Some(count) => format!(", {count} buckets"),
        None => String::new(),
    };
    format!("Stage {id} [{handle}, {least}{tasks} task{plural}{groups}]")
}

fn goes_to(fragment: &PlanFragment) -> String {
    match fragment.id {
        0 => "the result".to_owned(),
        _ => fragment.output.to_string(),
    }
}

/// Names of what a task runs, the last first.
fn operators(node: &Arc<dyn ExecutionPlan>, names: &mut Vec<String>) {
    if node.downcast_ref::<RemoteSourceExec>().is_none() {
        names.push(node.name().trim_end_matches("Exec").to_owned());
    }
    node.children().into_iter().for_each(|child| operators(child, names));
}

/// Text within quotation marks, where Mermaid takes names of characters.
fn quoted(text: &str) -> String {
    text.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}
