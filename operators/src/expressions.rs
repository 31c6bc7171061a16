//! Expressions over other columns than they were written for.

use std::sync::Arc;

use datafusion_common::{
    Result, internal_datafusion_err,
    tree_node::{Transformed, TransformedResult, TreeNode},
};
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};

/// `expr`, which is over a table's columns, over `columns` of these: column `columns[n]` of the table
/// becomes column `n`.
///
/// # Errors
/// If it names a column that is not one of `columns`.
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
            .ok_or_else(|| internal_datafusion_err!("column {column} is not one that is read"))?;
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as _))
    })
    .data()
}
