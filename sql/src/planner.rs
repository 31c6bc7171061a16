//! The query planner and the physical rule that put shells over DataFusion's plans.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::config::ConfigOptions,
    error::Result,
    execution::{SessionState, context::QueryPlanner},
    logical_expr::LogicalPlan,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
};

use crate::{engine::Engine, shell};

/// Plans for one partition, whatever the session says: how many tasks a pipeline has is decided when
/// it runs, and a serial plan has no exchanges that we would have to fold away again.
pub struct GateworkPlanner {
    inner: Option<Arc<dyn QueryPlanner + Send + Sync>>,
}

impl GateworkPlanner {
    /// A planner around `inner`, or around DataFusion's own.
    pub fn new(inner: Option<Arc<dyn QueryPlanner + Send + Sync>>) -> Self {
        Self { inner }
    }
}

impl fmt::Debug for GateworkPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateworkPlanner").field("inner", &self.inner).finish()
    }
}

#[async_trait]
impl QueryPlanner for GateworkPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let serial = session.as_any().downcast_ref::<SessionState>().map(|state| {
            let mut state = state.clone();
            state.config_mut().options_mut().execution.target_partitions = 1;
            state
        });
        let session = match &serial {
            Some(state) => state as &dyn Session,
            None => session,
        };
        match &self.inner {
            Some(inner) => inner.create_physical_plan(plan, session).await,
            None => DefaultPhysicalPlanner::default().create_physical_plan(plan, session).await,
        }
    }
}

/// The last physical rule: wraps every node that we cover in a shell. Being a rule, and not a step
/// after planning, it is seen by EXPLAIN as well.
#[derive(Debug)]
pub struct ShellRule {
    engine: Engine,
}

impl ShellRule {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl PhysicalOptimizerRule for ShellRule {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        shell::cover(plan, &self.engine)
    }

    fn name(&self) -> &str {
        "gatework_shells"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
