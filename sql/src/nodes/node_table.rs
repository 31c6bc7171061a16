//! A table whose rows a plan node makes, of another table's rows or of nothing.

use std::{fmt, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    error::Result,
    logical_expr::{Expr, TableType},
    physical_expr::expressions::col,
    physical_plan::{ExecutionPlan, projection::ProjectionExec},
};

type MakeNode =
    dyn Fn(Option<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> + Send + Sync;

/// A table whose rows a plan node makes: of the rows of another table, or of nothing.
///
/// The node has all columns of its input; a projection above it keeps those that a query needs.
///
/// ```
/// # use std::sync::Arc;
/// # use gatework_operators::limit::Limit;
/// # use gatework_sql::nodes::{NodeOperators, NodeTable, OperatorExec};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> datafusion::error::Result<()> {
/// let executor = gatework_runtime::Executor::builder().threads(2).build().unwrap();
/// let session = gatework_sql::session(&executor);
/// session.sql("CREATE TABLE numbers(n INT) AS VALUES (1), (2), (3), (4)").await?;
/// let head = NodeTable::over(session.table_provider("numbers").await?, |input| {
///     let schema = input.schema();
///     let node = OperatorExec::new("HeadExec", vec![input], schema, |_context| {
///         Ok(NodeOperators::operator(Limit::new(0, Some(3))))
///     });
///     Ok(node.into_plan())
/// });
/// session.register_table("head", Arc::new(head))?;
/// let rows = session.sql("SELECT count(*) FROM head").await?.collect().await?;
/// assert_eq!(format!("{:?}", rows[0].column(0)), "PrimitiveArray<Int64>\n[\n  3,\n]");
/// # Ok(())
/// # }
/// ```
pub struct NodeTable {
    schema: SchemaRef,
    input: Option<Arc<dyn TableProvider>>,
    make: Box<MakeNode>,
}

impl fmt::Debug for NodeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTable").field("input", &self.input).finish_non_exhaustive()
    }
}

impl NodeTable {
    /// Creates a table of the rows that a node makes of those of `table`, with the same columns.
    pub fn over<F>(table: Arc<dyn TableProvider>, make: F) -> Self
    where
        F: Fn(Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> + Send + Sync + 'static,
    {
        let make = move |input: Option<Arc<dyn ExecutionPlan>>| match input {
            Some(input) => make(input),
            None => datafusion::common::internal_err!("a node over a table has no input"),
        };
        Self { schema: table.schema(), input: Some(table), make: Box::new(make) }
    }

    /// Creates a table of the rows of a leaf node.
    pub fn leaf(
        schema: SchemaRef,
        make: impl Fn() -> Result<Arc<dyn ExecutionPlan>> + Send + Sync + 'static,
    ) -> Self {
        Self { schema, input: None, make: Box::new(move |_input| make()) }
    }
}

#[async_trait]
impl TableProvider for NodeTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = match &self.input {
            Some(table) => Some(table.scan(session, None, &[], None).await?),
            None => None,
        };
        let node = (self.make)(input)?;
        let Some(columns) = projection else { return Ok(node) };
        let schema = node.schema();
        let column = |index: &usize| {
            let name = schema.field(*index).name();
            Ok((col(name, &schema)?, name.clone()))
        };
        let columns = columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, node)?))
    }
}
