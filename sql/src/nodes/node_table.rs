//! A table whose rows a plan node makes, of another table's rows or of nothing.

use std::{fmt, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{internal_err, plan_err},
    error::Result,
    logical_expr::{Expr, TableType},
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{ExecutionPlan, projection::ProjectionExec},
};

type MakeNode =
    dyn Fn(Option<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> + Send + Sync;

/// A table whose rows a plan node makes: of the rows of another table, or of nothing.
///
/// The node has the columns of the table; a projection above it keeps those that a query needs. A
/// query fails if the node has others.
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
            None => internal_err!("a node over a table has no input"),
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
        TableType::Base
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
        let columns = |schema: &Schema| {
            let columns = schema.fields().iter();
            columns.map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        let (declared, actual): (Vec<_>, Vec<_>) = (columns(&self.schema), columns(&node.schema()));
        if declared != actual {
            return plan_err!(
                "{} has the columns {actual:?}, but its table has {declared:?}",
                node.name()
            );
        }
        let Some(projection) = projection else { return Ok(node) };
        let column = |index: &usize| {
            let name = &declared[*index].0;
            (Arc::new(Column::new(name, *index)) as Arc<dyn PhysicalExpr>, name.clone())
        };
        let columns: Vec<_> = projection.iter().map(column).collect();
        Ok(Arc::new(ProjectionExec::try_new(columns, node)?))
    }
}
