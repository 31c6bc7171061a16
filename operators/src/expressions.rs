//! Expressions over other columns than those they were written for.

use std::sync::Arc;

use datafusion_common::{
    Result, internal_datafusion_err,
    tree_node::{Transformed, TransformedResult, TreeNode},
};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};

/// Returns `expr`, written over a table's columns, rewritten over the subset `columns`: column
/// `columns[n]` of the table becomes column `n`.
///
/// # Errors
/// If `expr` refers to a column that is not in `columns`.
pub fn remap_columns(
    expr: Arc<dyn PhysicalExpr>,
    columns: &[usize],
) -> Result<Arc<dyn PhysicalExpr>> {
    expr.transform_down(|node| {
        let Some(column) = node.downcast_ref::<Column>() else {
            return Ok(Transformed::no(node));
        };
        let index = columns.iter().position(|known| *known == column.index());
        let index = index
            .ok_or_else(|| internal_datafusion_err!("column {column} is not among those read"))?;
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as _))
    })
    .data()
}
