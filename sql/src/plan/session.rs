//! Sessions whose queries run on gatework.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    execution::session_state::SessionStateBuilder,
    prelude::{SessionConfig, SessionContext},
};
use gatework_runtime::Executor;

use crate::{
    lower::UniqueNamePushdown,
    plan::{
        file_order::ProvenFileOrder,
        float_bounds::FloatBounds,
        join_order::JoinOrder,
        join_selection::BuildSideSelection,
        planner::{GateworkPlanner, GateworkRule},
        settings::Settings,
        shared_subplans::SharedSubplans,
        table_factory::GateworkTableFactory,
    },
    run::engine::Engine,
    scan::MemoryFilterPushdown,
};

/// Name of DataFusion's rule that pushes runtime filters down to scans.
pub const RUNTIME_FILTER_RULE: &str = "FilterPushdown(Post)";

/// Name of DataFusion's rule for the option `datafusion.optimizer.enable_window_topn`.
const WINDOW_TOP_N_RULE: &str = "WindowTopN";

/// Adds gatework to an application's own session state in one line.
pub trait SessionStateBuilderExt: Sized {
    /// Runs this session's queries on `executor`.
    ///
    /// Must be called last: it wraps the query planner that is set, and its rule must come after
    /// all other physical rules. Adds the default [`Settings`] to the configuration if there are
    /// none, so that SQL can change them.
    ///
    /// ```
    /// use datafusion::{execution::session_state::SessionStateBuilder, prelude::*};
    /// use gatework_sql::SessionStateBuilderExt;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let executor = gatework_runtime::Executor::builder().threads(2).build()?;
    /// let state =
    ///     SessionStateBuilder::new().with_default_features().with_gatework(&executor).build();
    /// let context = SessionContext::new_with_state(state);
    /// # let _ = context;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    fn with_gatework(self, executor: &Executor) -> Self;
}

impl SessionStateBuilderExt for SessionStateBuilder {
    fn with_gatework(mut self, executor: &Executor) -> Self {
        let engine = Engine::new(executor.clone());
        Settings::add_defaults(self.config().get_or_insert_default());
        let planner = GateworkPlanner::new(executor, self.query_planner().take());
        add_planning_rules(&mut self, BuildSideSelection::single_process());
        let rules = &mut self.physical_optimizers().get_or_insert_default().rules;
        // After filter pushdown, and before the build sides are selected.
        if let Some(index) = rules.iter().position(|rule| rule.name() == BuildSideSelection::NAME) {
            rules.insert(index, Arc::new(JoinOrder));
        }
        // A filter on row numbers gets a ranking filter when it is lowered, whatever the option.
        rules.retain(|rule| rule.name() != WINDOW_TOP_N_RULE);
        // Tables in memory accept runtime filters too.
        if let Some(index) = rules.iter().position(|rule| rule.name() == RUNTIME_FILTER_RULE) {
            rules[index] = Arc::new(MemoryFilterPushdown::new(rules[index].clone()));
        }
        for factory in self.table_factories().iter_mut().flat_map(HashMap::values_mut) {
            *factory = Arc::new(GateworkTableFactory::new(factory.clone()));
        }
        self.with_analyzer_rule(Arc::new(SharedSubplans))
            .with_query_planner(Arc::new(planner))
            .with_physical_optimizer_rule(Arc::new(GateworkRule::new(engine)))
    }
}

/// Adds gatework's planning rules to the sessions of `builder`; their plans are otherwise
/// DataFusion's.
///
/// * Hash joins build the smaller side, by estimates that account for filters and joins.
/// * An ordering of several files is used only where the bounds of the files prove it.
/// * Bounds of float columns are treated as estimates.
pub fn add_planning_rules(
    builder: &mut SessionStateBuilder,
    build_side_selection: BuildSideSelection,
) {
    let rules = &mut builder.physical_optimizers().get_or_insert_default().rules;
    // After filter pushdown: a swapped join has a projection above it, and filter pushdown looks
    // columns up by name through projections. Before the rules for exchanges and runtime filters,
    // which depend on the build side.
    let position_of = |name| rules.iter().position(|rule| rule.name() == name);
    let pushdown = position_of(UniqueNamePushdown::NAME);
    if let Some(index) = pushdown.or_else(|| position_of("join_selection")) {
        rules.insert(index + 1, Arc::new(build_side_selection));
    }
    if let Some(index) = pushdown {
        rules[index] = Arc::new(UniqueNamePushdown::new(rules[index].clone()));
    }
    // Before any rule that removes a sort or answers from statistics.
    rules.insert(0, Arc::new(ProvenFileOrder));
    rules.insert(0, Arc::new(FloatBounds));
}

/// Returns a session with DataFusion's defaults whose queries run on `executor`.
pub fn session(executor: &Executor) -> SessionContext {
    session_with(executor, SessionConfig::new())
}

/// Returns a session with `config` whose queries run on `executor`.
pub fn session_with(executor: &Executor, config: SessionConfig) -> SessionContext {
    let builder = SessionStateBuilder::new().with_config(config).with_default_features();
    SessionContext::new_with_state(builder.with_gatework(executor).build())
}
