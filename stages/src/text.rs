//! Stages as text.

use std::fmt::Write;

use datafusion::physical_plan::displayable;

use crate::SubPlan;

impl SubPlan {
    /// The tree of stages on so many nodes: for each how many tasks it has and how these share what they read,
    /// where its output goes, and what each of them runs.
    pub fn text(&self, nodes: usize) -> String {
        let mut text = String::new();
        for fragment in self.fragments() {
            let tasks = fragment.tasks(nodes);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "Stage {} [{}, {tasks} task{}] gives {}",
                fragment.id,
                fragment.partitioning,
                if tasks == 1 { "" } else { "s" },
                if fragment.id == 0 {
                    "the result".to_owned()
                } else {
                    fragment.output.to_string()
                },
            );
            for line in displayable(fragment.root.as_ref()).indent(false).to_string().lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        text
    }
}
