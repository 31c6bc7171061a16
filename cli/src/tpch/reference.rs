//! The first oracle: the results of plain DataFusion for the same statements over the same files.

use arrow::array::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use gatework::verify::{Comparison, Difference, ResultOrder, without_limit};

use crate::error::Error;
use crate::statements;

use super::queries::Query;

/// The expected result of one statement.
pub(super) struct Expected {
    pub(super) order: ResultOrder,
    batches: Vec<RecordBatch>,
    /// The same query without its limit, for results with other rows of a tie.
    unlimited: Option<LogicalPlan>,
}

/// The expected results of a query's statements, for those that return rows.
pub(super) struct Reference {
    session: SessionContext,
    pub(super) expected: Vec<Expected>,
}

impl Reference {
    /// Runs a query in a session of plain DataFusion that has the tables.
    pub(super) async fn run(query: &Query, session: SessionContext) -> Result<Self, Error> {
        let query_error = |error| Error::query(&error, &session);
        let mut expected = Vec::new();
        for statement in statements::parse(&query.sql).map_err(query_error)? {
            let planned = statements::plan(&session, statement, None, None).await?;
            if planned.has_result() {
                let collected = statements::collect(&session, planned.frame, None, None).await?;
                let batches = collected.batches;
                let order = ResultOrder::of(&planned.logical);
                expected.push(Expected {
                    order,
                    batches,
                    unlimited: without_limit(&planned.logical),
                });
            }
        }
        Ok(Self { session, expected })
    }

    /// Compares the result of the statement at this position with the expected one.
    pub(super) async fn check(
        &self,
        position: usize,
        actual: &[RecordBatch],
    ) -> Result<(), String> {
        let Some(expected) = self.expected.get(position) else {
            return Err("the reference has no result number {position}".to_owned());
        };
        let comparison = Comparison::new(&expected.order);
        let result = match (comparison.check(actual, &expected.batches), &expected.unlimited) {
            (Err(difference), Some(plan)) if difference.needs_unlimited() => {
                let unlimited = self.unlimited(plan.clone()).await?;
                comparison.unlimited(&unlimited).check(actual, &expected.batches)
            }
            (result, _) => result,
        };
        result.map_err(|difference: Difference| difference.to_string())
    }

    async fn unlimited(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>, String> {
        let frame = DataFrame::new(self.session.state(), plan);
        let collected = statements::collect(&self.session, frame, None, None).await;
        let failed = |error: Error| error.sentence().unwrap_or_default();
        collected.map(|collected| collected.batches).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
