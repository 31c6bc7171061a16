//! A group of inner joins as a graph: inputs, classes of equal keys, and other predicates.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::{
    common::{
        JoinSide, JoinType, NullEquality, internal_datafusion_err,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column},
        utils::collect_columns,
    },
    physical_plan::{
        ExecutionPlan,
        filter::FilterExec,
        joins::{
            HashJoinExec, JoinOn, PartitionMode,
            utils::{ColumnIndex, JoinFilter},
        },
        projection::ProjectionExec,
    },
};

use super::{
    super::estimates::{ColumnEstimate, Estimate},
    MAX_INPUTS,
};

/// Number of rows from which on a build side is planned for partitions of its own. Lowering builds
/// one table in either case; DataFusion's nodes differ.
const COLLECTED_ROWS: f64 = 100_000.0;

/// A set of inputs, as bits.
pub(super) type Inputs = u64;

/// An order of joins.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    Input(usize),
    Join(Box<Tree>, Box<Tree>),
}

impl Tree {
    pub(super) fn inputs(&self) -> Inputs {
        match self {
            Self::Input(index) => 1 << index,
            Self::Join(left, right) => left.inputs() | right.inputs(),
        }
    }
}

/// An input of the group. Columns are numbered through all inputs.
pub(super) struct Input {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    /// Number of its first column.
    first: usize,
    columns: usize,
    pub(super) rows: f64,
    estimate: Estimate,
}

/// A key of an input: an expression over numbered columns.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) input: usize,
    expr: Arc<dyn PhysicalExpr>,
    pub(super) values: ColumnEstimate,
}

/// Predicate over numbered columns of several inputs.
pub(super) struct Residual {
    pub(super) inputs: Inputs,
    expr: Arc<dyn PhysicalExpr>,
}

pub(super) struct JoinGraph {
    pub(super) inputs: Vec<Input>,
    /// Keys that are equal in the result, at most one of each input.
    pub(super) classes: Vec<Vec<Member>>,
    pub(super) residuals: Vec<Residual>,
    /// The columns of the group's output.
    output: Vec<usize>,
    pub(super) written: Tree,
}

/// Returns the join if `plan` is part of a group of inner joins.
fn inner_join(plan: &Arc<dyn ExecutionPlan>) -> Option<&HashJoinExec> {
    plan.downcast_ref::<HashJoinExec>().filter(|join| {
        join.join_type() == &JoinType::Inner
            && join.null_equality() == NullEquality::NullEqualsNothing
            && !join.null_aware
            && join.fetch().is_none()
    })
}

/// Returns the child of a filter or of a projection of plain columns that lies on inner joins.
fn passed_through(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let child = if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        filter.fetch().is_none().then(|| filter.input())
    } else {
        let projection = plan.downcast_ref::<ProjectionExec>()?;
        let plain = projection.expr().iter().all(|column| column.expr.is::<Column>());
        plain.then(|| projection.input())
    };
    child.filter(|child| inner_join(child).is_some() || passed_through(child).is_some())
}

/// Replaces the inputs of the group at `plan`, in the order in which the graph has them.
pub(super) fn with_inputs(
    plan: &Arc<dyn ExecutionPlan>,
    inputs: &mut impl Iterator<Item = Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if inner_join(plan).is_none() && passed_through(plan).is_none() {
        let missing = || internal_datafusion_err!("a group of joins has more inputs than before");
        return inputs.next().ok_or_else(missing);
    }
    let children = plan.children().into_iter().map(|child| with_inputs(child, inputs));
    super::with_children(plan, children.collect::<Result<Vec<_>>>()?)
}

impl JoinGraph {
    /// Returns the graph of the group whose topmost node is `plan`, if it is a group of at least
    /// three inputs with estimates.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        if inner_join(plan).is_none() && passed_through(plan).is_none() {
            return None;
        }
        let mut graph = Self {
            inputs: Vec::new(),
            classes: Vec::new(),
            residuals: Vec::new(),
            output: Vec::new(),
            written: Tree::Input(0),
        };
        (graph.output, graph.written) = graph.add(plan)?;
        let one_of_each = |class: &Vec<Member>| {
            let inputs = class.iter().fold(0, |inputs: Inputs, member| inputs | 1 << member.input);
            inputs.count_ones() as usize == class.len()
        };
        graph.narrow();
        let fits = (3..=MAX_INPUTS).contains(&graph.inputs.len());
        (fits && graph.classes.iter().all(one_of_each)).then_some(graph)
    }

    /// Adds the group below `plan`. Returns the columns of its output, and its order.
    fn add(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Option<(Vec<usize>, Tree)> {
        if let Some(join) = inner_join(plan) {
            let (left, left_tree) = self.add(join.left())?;
            let (right, right_tree) = self.add(join.right())?;
            for (left_key, right_key) in join.on() {
                let keys = [(left_key, &left), (right_key, &right)];
                let [left_key, right_key] = keys.map(|(key, columns)| self.member(key, columns));
                self.add_equal(left_key?, right_key?);
            }
            if let Some(filter) = join.filter() {
                let sources = filter.column_indices().iter().map(|source| match source.side {
                    JoinSide::Left => left.get(source.index).copied(),
                    JoinSide::Right => right.get(source.index).copied(),
                    JoinSide::None => None,
                });
                let sources = sources.collect::<Option<Vec<_>>>()?;
                self.add_residual(filter.expression(), &sources)?;
            }
            let columns = [left, right].concat();
            let columns = projected(columns, join.projection.as_deref());
            return Some((columns, Tree::Join(Box::new(left_tree), Box::new(right_tree))));
        }
        if passed_through(plan).is_some() {
            if let Some(filter) = plan.downcast_ref::<FilterExec>() {
                let (columns, tree) = self.add(filter.input())?;
                self.add_residual(filter.predicate(), &columns)?;
                return Some((projected(columns, filter.projection().as_deref()), tree));
            }
            let projection = plan.downcast_ref::<ProjectionExec>()?;
            let (columns, tree) = self.add(projection.input())?;
            let column = |expr: &Arc<dyn PhysicalExpr>| {
                columns.get(expr.downcast_ref::<Column>()?.index()).copied()
            };
            let columns = projection.expr().iter().map(|projected| column(&projected.expr));
            return Some((columns.collect::<Option<_>>()?, tree));
        }
        let first = self.inputs.last().map_or(0, |input| input.first + input.columns);
        let columns = plan.schema().fields().len();
        let estimate = Estimate::of(plan)?;
        let rows = estimate.rows.max(1.0);
        self.inputs.push(Input { plan: plan.clone(), first, columns, rows, estimate });
        Some(((first..first + columns).collect(), Tree::Input(self.inputs.len() - 1)))
    }

    /// Leaves out the rows of whole tables that match nothing: those whose key lies outside the
    /// range of the other side. A table of the dates of two centuries has five years for sales of
    /// five years. Predicates on a table usually mean the rows that match, so others are not
    /// narrowed.
    fn narrow(&mut self) {
        for class in 0..self.classes.len() {
            let ranges = self.classes[class].iter().map(|key| key.values.range_of_table());
            let shared = ranges.flatten().reduce(|a, b| (a.0.max(b.0), a.1.min(b.1)));
            let Some((low, high)) = shared.filter(|(low, high)| low <= high) else { continue };
            for member in 0..self.classes[class].len() {
                let Member { input, values, .. } = &self.classes[class][member];
                let (input, values) = (*input, *values);
                let Some((least, greatest)) = values.range_of_table() else { continue };
                let fraction = (high - low + 1.0) / (greatest - least + 1.0);
                if !values.is_whole() || fraction >= 1.0 {
                    continue;
                }
                self.inputs[input].rows = (self.inputs[input].rows * fraction).max(1.0);
                let keys = self.classes.iter_mut().flatten().filter(|key| key.input == input);
                keys.for_each(|key| key.values = key.values.narrowed(fraction));
            }
        }
    }

    /// Returns the inputs whose columns `expr` names.
    fn inputs_of(&self, expr: &Arc<dyn PhysicalExpr>) -> Inputs {
        let input_of = |column: Column| {
            self.inputs.partition_point(|input| input.first + input.columns <= column.index())
        };
        collect_columns(expr).into_iter().fold(0, |inputs, column| inputs | 1 << input_of(column))
    }

    /// Returns a key over `columns` of one input.
    fn member(&self, key: &Arc<dyn PhysicalExpr>, columns: &[usize]) -> Option<Member> {
        let expr = numbered(key, columns)?;
        let inputs = self.inputs_of(&expr);
        let input = inputs.trailing_zeros() as usize;
        if inputs.count_ones() != 1 || is_volatile(&expr) {
            return None;
        }
        let first = self.inputs[input].first;
        let own = renumbered(&expr, |number| Some(Column::new("", number.checked_sub(first)?)))?;
        Some(Member { input, expr, values: self.inputs[input].estimate.key(&own) })
    }

    fn add_equal(&mut self, left: Member, right: Member) {
        let mut merged = vec![left, right];
        let is_same = |a: &Member, b: &Member| a.input == b.input && a.expr.eq(&b.expr);
        self.classes.retain_mut(|class| {
            let meets = class.iter().any(|known| merged.iter().any(|new| is_same(known, new)));
            if meets {
                for member in class.drain(..) {
                    if !merged.iter().any(|known| is_same(known, &member)) {
                        merged.push(member);
                    }
                }
            }
            !meets
        });
        self.classes.push(merged);
    }

    fn add_residual(&mut self, expr: &Arc<dyn PhysicalExpr>, columns: &[usize]) -> Option<()> {
        let expr = numbered(expr, columns)?;
        let inputs = self.inputs_of(&expr);
        if inputs == 0 || is_volatile(&expr) {
            return None;
        }
        self.residuals.push(Residual { inputs, expr });
        Some(())
    }

    /// Returns the plan of `tree`, with the columns of `schema`.
    pub(super) fn build(
        &self,
        tree: &Tree,
        rows: &impl Fn(Inputs) -> f64,
        schema: &SchemaRef,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (plan, columns) = self.build_tree(tree, rows)?;
        let column = |(number, field): (&usize, &FieldRef)| {
            let index = position(&columns, *number)?;
            let input = plan.schema();
            let column: Arc<dyn PhysicalExpr> =
                Arc::new(Column::new(input.field(index).name(), index));
            Ok((column, field.name().clone()))
        };
        let columns = self.output.iter().zip(schema.fields()).map(column);
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
    }

    /// Returns the plan of `tree`, and the numbers of its columns.
    fn build_tree(
        &self,
        tree: &Tree,
        rows: &impl Fn(Inputs) -> f64,
    ) -> Result<(Arc<dyn ExecutionPlan>, Vec<usize>)> {
        let (one, other) = match tree {
            Tree::Input(index) => {
                let input = &self.inputs[*index];
                let columns = input.first..input.first + input.columns;
                return Ok((input.plan.clone(), columns.collect()));
            }
            Tree::Join(one, other) => (one, other),
        };
        // The smaller side is built.
        let swap = rows(one.inputs()) > rows(other.inputs());
        let (left, right) = if swap { (other, one) } else { (one, other) };
        let (left_inputs, right_inputs) = (left.inputs(), right.inputs());
        let (left_plan, left_columns) = self.build_tree(left, rows)?;
        let (right_plan, right_columns) = self.build_tree(right, rows)?;
        let all = left_inputs | right_inputs;
        let (left_schema, right_schema) = (left_plan.schema(), right_plan.schema());
        let on = self.keys(
            (left_inputs, &left_columns, left_schema.fields()),
            (right_inputs, &right_columns, right_schema.fields()),
        )?;
        let columns = [left_columns.as_slice(), &right_columns].concat();
        let fields = [left_schema.fields().as_ref(), right_schema.fields()].concat();
        let tested = |tree: &Tree, residual: &Residual| {
            matches!(tree, Tree::Join(..)) && residual.inputs & !tree.inputs() == 0
        };
        let residuals = self.residuals.iter().filter(|residual| {
            residual.inputs & !all == 0 && !tested(left, residual) && !tested(right, residual)
        });
        let filter = residuals
            .map(|residual| residual.expr.clone())
            .reduce(|a, b| Arc::new(BinaryExpr::new(a, Operator::And, b)) as Arc<dyn PhysicalExpr>);
        let filter =
            filter.map(|filter| join_filter(&filter, &columns, left_columns.len(), &fields));
        let needed: Vec<usize> =
            (0..columns.len()).filter(|place| self.is_needed_above(columns[*place], all)).collect();
        let kept = needed.iter().map(|place| columns[*place]).collect();
        let projection = (needed.len() < columns.len()).then_some(needed);
        let mode = match rows(left_inputs) < COLLECTED_ROWS {
            true => PartitionMode::CollectLeft,
            false => PartitionMode::Partitioned,
        };
        let join = HashJoinExec::try_new(
            left_plan,
            right_plan,
            on,
            filter.transpose()?,
            &JoinType::Inner,
            projection,
            mode,
            NullEquality::NullEqualsNothing,
            false,
        )?;
        Ok((Arc::new(join), kept))
    }

    /// Returns the keys of a join of two sides, each with its inputs, the numbers of its columns,
    /// and their fields.
    fn keys(
        &self,
        (left_inputs, left_columns, left_fields): (Inputs, &[usize], &[FieldRef]),
        (right_inputs, right_columns, right_fields): (Inputs, &[usize], &[FieldRef]),
    ) -> Result<JoinOn> {
        let mut on = Vec::new();
        for class in &self.classes {
            let first_in = |inputs: Inputs| class.iter().find(|key| inputs >> key.input & 1 == 1);
            if let (Some(left), Some(right)) = (first_in(left_inputs), first_in(right_inputs)) {
                let left = localized(&left.expr, left_columns, left_fields)?;
                on.push((left, localized(&right.expr, right_columns, right_fields)?));
            }
        }
        Ok(on)
    }

    /// Returns whether a join above one of `inputs`, or the output, reads column `number`.
    fn is_needed_above(&self, number: usize, inputs: Inputs) -> bool {
        let names = |expr: &Arc<dyn PhysicalExpr>| {
            collect_columns(expr).iter().any(|column| column.index() == number)
        };
        let outside = |others: Inputs| others & !inputs != 0;
        let is_key = |class: &Vec<Member>| {
            outside(class.iter().fold(0, |all, key| all | 1 << key.input))
                && class.iter().any(|key| names(&key.expr))
        };
        self.output.contains(&number)
            || self.classes.iter().any(is_key)
            || self.residuals.iter().any(|filter| outside(filter.inputs) && names(&filter.expr))
    }
}

/// Returns `filter` as the predicate of a join whose columns have these numbers and fields; the
/// first `left` of them are those of the left side.
fn join_filter(
    filter: &Arc<dyn PhysicalExpr>,
    columns: &[usize],
    left: usize,
    fields: &[FieldRef],
) -> Result<JoinFilter> {
    let mut used: Vec<usize> =
        collect_columns(filter).into_iter().map(|column| column.index()).collect();
    used.sort_unstable();
    used.dedup();
    let places = used.iter().map(|number| position(columns, *number));
    let places = places.collect::<Result<Vec<_>>>()?;
    let source = |place: &usize| match place.checked_sub(left) {
        Some(index) => ColumnIndex { index, side: JoinSide::Right },
        None => ColumnIndex { index: *place, side: JoinSide::Left },
    };
    let sources = places.iter().map(source).collect();
    let fields: Vec<_> = places.iter().map(|place| fields[*place].clone()).collect();
    let filter = localized(filter, &used, &fields)?;
    Ok(JoinFilter::new(filter, sources, Arc::new(Schema::new(fields))))
}

fn projected(columns: Vec<usize>, projection: Option<&[usize]>) -> Vec<usize> {
    match projection {
        Some(projection) => projection.iter().map(|index| columns[*index]).collect(),
        None => columns,
    }
}

fn position(columns: &[usize], number: usize) -> Result<usize> {
    let position = columns.iter().position(|column| *column == number);
    position.ok_or_else(|| internal_datafusion_err!("a join does not have column {number}"))
}

/// Returns `expr` over the columns of a plan that have these numbers and fields.
fn localized(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &[usize],
    fields: &[FieldRef],
) -> Result<Arc<dyn PhysicalExpr>> {
    let local = renumbered(expr, |number| {
        let index = columns.iter().position(|column| *column == number)?;
        Some(Column::new(fields[index].name(), index))
    });
    local.ok_or_else(|| internal_datafusion_err!("a join does not have the columns of {expr}"))
}

/// Returns `expr` with other columns in place of its own; `None` if there is none for one.
fn renumbered(
    expr: &Arc<dyn PhysicalExpr>,
    column: impl Fn(usize) -> Option<Column>,
) -> Option<Arc<dyn PhysicalExpr>> {
    let mut missing = false;
    let renumbered = expr.clone().transform(|node| {
        let Some(old) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
        let new = column(old.index());
        missing |= new.is_none();
        let new = new.map(|new| Arc::new(new) as Arc<dyn PhysicalExpr>);
        Ok(new.map_or_else(|| Transformed::no(node.clone()), Transformed::yes))
    });
    renumbered.data().ok().filter(|_| !missing)
}

/// Returns `expr` over columns with the numbers `columns`. Names of numbered columns mean nothing.
fn numbered(expr: &Arc<dyn PhysicalExpr>, columns: &[usize]) -> Option<Arc<dyn PhysicalExpr>> {
    renumbered(expr, |index| columns.get(index).map(|number| Column::new("", *number)))
}

fn is_volatile(expr: &Arc<dyn PhysicalExpr>) -> bool {
    expr.is_volatile_node() || expr.children().into_iter().any(is_volatile)
}
