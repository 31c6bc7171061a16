//! Estimates of row counts and of distinct values, for the choice of join orders and build sides.
//!
//! DataFusion's own estimates know little of filters (one row in five, for every predicate) and
//! nothing of the selectivity of joins. Here:
//!
//! * A column has the distinct values that its statistics name, or at most as many as its range has
//!   integers. Otherwise it is taken for a key.
//! * A predicate keeps the rows of the values that it names: one distinct value, or a part of the
//!   range. Where neither is known, the fraction depends on the kind of predicate.
//! * The values of one side of a join are among those of the other, as far as both tables go. So a
//!   filter on one side keeps a part of the other. (Containment: Selinger et al., "Access Path
//!   Selection in a Relational Database Management System", 1979; Swami and Schiefer, "On the
//!   Estimation of Join Result Sizes", 1994.)
//!
//! Results never depend on estimates. Where the row count of a table is unknown, there is none.

use std::{collections::HashMap, sync::Arc};

use datafusion::{
    common::{ColumnStatistics, JoinType, ScalarValue},
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{
            BinaryExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal,
            NotExpr,
        },
        split_conjunction,
    },
    physical_plan::{
        ExecutionPlan,
        aggregates::AggregateExec,
        filter::FilterExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec},
        projection::ProjectionExec,
        statistics::{StatisticsArgs, StatisticsContext},
        union::UnionExec,
    },
};

use super::shared_subplans::SharedRowsExec;

/// Minimum number of rows per group: a range may have more values than the table has rows, and
/// few queries group by a key.
const ROWS_PER_GROUP: f64 = 4.0;

/// Estimated output of a node.
#[derive(Debug, Clone)]
pub(super) struct Estimate {
    pub(super) rows: f64,
    pub(super) columns: Vec<ColumnEstimate>,
}

/// Estimated values of a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnEstimate {
    /// Number of distinct values.
    distinct: f64,
    /// Number of distinct values in the whole table.
    domain: f64,
    /// Whether statistics bound the number; otherwise the column is taken for a key.
    is_known: bool,
    /// The smallest and the greatest value of a number or date.
    range: Option<(f64, f64)>,
}

impl ColumnEstimate {
    fn key(rows: f64) -> Self {
        let distinct = rows.max(1.0);
        Self { distinct, domain: distinct, is_known: false, range: None }
    }

    fn of(statistics: &ColumnStatistics, rows: f64) -> Self {
        let (low, high) = (statistics.min_value.get_value(), statistics.max_value.get_value());
        let range = low.and_then(number).zip(high.and_then(number));
        let range = range.filter(|(low, high)| low <= high);
        let steps = match low {
            Some(value) if is_discrete(value) => range.map(|(low, high)| high - low + 1.0),
            _ => None,
        };
        let counted = statistics.distinct_count.get_value().map(|count| *count as f64);
        let known = counted.or(steps);
        let distinct = known.unwrap_or(rows).clamp(1.0, rows.max(1.0));
        Self { distinct, domain: distinct, is_known: known.is_some(), range }
    }

    fn at_most(self, rows: f64) -> Self {
        Self { distinct: self.distinct.min(rows.max(1.0)), ..self }
    }

    /// Returns the smallest and the greatest value of a whole table, if they are known.
    pub(super) fn range_of_table(self) -> Option<(f64, f64)> {
        self.range.filter(|_| self.is_known)
    }

    /// Returns whether no predicate restricts the column.
    pub(super) fn is_whole(self) -> bool {
        self.distinct >= self.domain
    }

    /// Returns the estimate for a part of the table.
    pub(super) fn narrowed(self, fraction: f64) -> Self {
        let part = |values: f64| (values * fraction).max(1.0);
        Self { distinct: part(self.distinct), domain: part(self.domain), ..self }
    }

    /// Returns the number of distinct values that may equal one of `other`.
    fn distinct_in(self, other: Self) -> f64 {
        if self.is_known { self.distinct } else { self.distinct.min(other.domain) }
    }

    /// Returns the fraction of all pairs of rows in which this column equals `other`.
    pub(super) fn selectivity(self, other: Self) -> f64 {
        let shared = self.domain.min(other.domain);
        1.0 / self.distinct_in(other).max(other.distinct_in(self)).max(shared)
    }

    /// Returns the fraction of rows whose value is one of `other`.
    fn found_in(self, other: Self) -> f64 {
        (other.distinct_in(self) / self.domain.min(other.domain)).min(1.0)
    }
}

impl Estimate {
    /// Estimates the output of `node`; `None` if the rows of a table below it are unknown.
    pub(super) fn of(node: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let estimate = Self::before_fetch(node)?;
        let rows = node.fetch().map_or(estimate.rows, |fetch| estimate.rows.min(fetch as f64));
        // A node of another kind may have other columns than its input.
        let columns = node.schema().fields().len();
        Some(estimate.with(rows, columns))
    }

    fn before_fetch(node: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        if let Some(reader) = node.downcast_ref::<SharedRowsExec>() {
            let all = Self::of(reader.subplan().definition())?;
            let columns = reader.columns().iter().map(|index| all.columns[*index]).collect();
            return Some(Self { rows: all.rows, columns });
        }
        if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            let (left, right) = (Self::of(join.left())?, Self::of(join.right())?);
            let joined = Self::joined(&left, &right, join);
            return Some(joined.project(join.projection.as_deref()));
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            let filtered = Self::of(filter.input())?.filter(filter.predicate());
            return Some(filtered.project(filter.projection().as_deref()));
        }
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            let input = Self::of(projection.input())?;
            let columns = projection.expr().iter().map(|column| input.key(&column.expr));
            return Some(Self { rows: input.rows, columns: columns.collect() });
        }
        if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
            return Some(Self::of(aggregate.input())?.aggregate(aggregate));
        }
        let children = node.children();
        if children.is_empty() {
            let arguments = StatisticsArgs::new();
            let statistics = StatisticsContext::new().compute(node.as_ref(), &arguments).ok()?;
            let rows = *statistics.num_rows.get_value()? as f64;
            let columns = statistics.column_statistics.iter();
            let columns = columns.map(|column| ColumnEstimate::of(column, rows)).collect();
            return Some(Self { rows, columns });
        }
        let inputs: Vec<Self> = children.into_iter().map(Self::of).collect::<Option<_>>()?;
        if node.is::<UnionExec>() {
            let rows = inputs.iter().map(|input| input.rows).sum();
            let columns = inputs.into_iter().next()?.columns;
            return Some(Self { rows, columns });
        }
        match <[Self; 2]>::try_from(inputs) {
            Ok([left, right]) => {
                let is_pair = node.is::<CrossJoinExec>() || node.is::<NestedLoopJoinExec>();
                is_pair.then(|| Self {
                    rows: left.rows * right.rows,
                    columns: [left.columns, right.columns].concat(),
                })
            }
            Err(inputs) => <[Self; 1]>::try_from(inputs).ok().map(|[input]| input),
        }
    }

    /// Returns the estimate with `rows` and this number of columns.
    fn with(mut self, rows: f64, columns: usize) -> Self {
        self.columns.resize(columns, ColumnEstimate::key(rows));
        self.columns.iter_mut().for_each(|column| *column = column.at_most(rows));
        Self { rows, ..self }
    }

    fn project(self, projection: Option<&[usize]>) -> Self {
        let Some(projection) = projection else { return self };
        let columns = projection.iter().filter_map(|index| self.columns.get(*index).copied());
        Self { rows: self.rows, columns: columns.collect() }
    }

    /// Estimates the rows that pass `predicate`.
    pub(super) fn filter(mut self, predicate: &Arc<dyn PhysicalExpr>) -> Self {
        let (kept, columns) = self.conjunction(predicate);
        for (index, column) in columns {
            self.columns[index] = column;
        }
        let (rows, columns) = (self.rows * kept, self.columns.len());
        self.with(rows, columns)
    }

    /// Returns the fraction of rows that pass a conjunction, and the columns that it restricts.
    fn conjunction(
        &self,
        predicate: &Arc<dyn PhysicalExpr>,
    ) -> (f64, HashMap<usize, ColumnEstimate>) {
        let (mut kept, mut columns) = (1.0, HashMap::new());
        for conjunct in split_conjunction(predicate) {
            let Some((index, op, value)) = comparison(conjunct) else {
                let (fraction, restricted) = self.conjunct(conjunct);
                kept *= fraction;
                columns.extend(restricted);
                continue;
            };
            let Some(known) = self.columns.get(index) else { continue };
            let column = columns.entry(index).or_insert(*known);
            kept *= restrict(column, op, value);
        }
        (kept, columns)
    }

    /// Returns the fraction of rows that pass a conjunct other than a comparison with a constant.
    fn conjunct(&self, conjunct: &Arc<dyn PhysicalExpr>) -> (f64, Option<(usize, ColumnEstimate)>) {
        let unrestricted = |fraction| (fraction, None);
        if let Some(binary) = conjunct.downcast_ref::<BinaryExpr>() {
            return unrestricted(match binary.op() {
                Operator::Or => {
                    let kept = |side| self.conjunction(side).0;
                    (kept(binary.left()) + kept(binary.right())).min(1.0)
                }
                Operator::Eq => {
                    let distinct = |side| {
                        let column = self.columns.get(column_of(side)?)?;
                        column.is_known.then_some(column.distinct)
                    };
                    match (distinct(binary.left()), distinct(binary.right())) {
                        (Some(left), Some(right)) => 1.0 / left.max(right),
                        _ => 0.1,
                    }
                }
                Operator::NotEq => 0.9,
                _ => 0.5,
            });
        }
        if let Some(list) = conjunct.downcast_ref::<InListExpr>() {
            let values = list.list().len() as f64;
            let column = column_of(list.expr()).and_then(|index| {
                self.columns
                    .get(index)
                    .filter(|column| column.is_known)
                    .map(|known| (index, *known))
            });
            return match column {
                Some((_, known)) if list.negated() => {
                    unrestricted((1.0 - values / known.distinct).max(0.1))
                }
                Some((index, known)) => {
                    let kept = (values / known.distinct).min(1.0);
                    (kept, Some((index, known.at_most(values))))
                }
                None if list.negated() => unrestricted(1.0 - (0.05 * values).min(0.5)),
                None => unrestricted((0.05 * values).min(0.5)),
            };
        }
        if let Some(like) = conjunct.downcast_ref::<LikeExpr>() {
            return unrestricted(if like.negated() { 0.9 } else { 0.1 });
        }
        if let Some(not) = conjunct.downcast_ref::<NotExpr>() {
            return unrestricted(1.0 - self.conjunction(not.arg()).0);
        }
        unrestricted(match () {
            () if conjunct.is::<IsNullExpr>() => 0.1,
            () if conjunct.is::<IsNotNullExpr>() => 0.9,
            () => 0.5,
        })
    }

    /// Estimates the values of an expression over the columns.
    pub(super) fn key(&self, expr: &Arc<dyn PhysicalExpr>) -> ColumnEstimate {
        let column = column_of(expr).and_then(|index| self.columns.get(index).copied());
        column.unwrap_or_else(|| ColumnEstimate::key(self.rows))
    }

    fn aggregate(self, aggregate: &AggregateExec) -> Self {
        let groups = aggregate.group_expr();
        if groups.is_true_no_grouping() {
            return Self { rows: 1.0, columns: Vec::new() };
        }
        let columns = groups.expr().iter().map(|(expr, _)| self.key(expr));
        let columns: Vec<ColumnEstimate> = columns.collect();
        let distinct: f64 = columns.iter().map(|column| column.distinct).product();
        let rows = distinct.min(self.rows / ROWS_PER_GROUP).max(1.0);
        Self { rows, columns }
    }

    fn joined(left: &Self, right: &Self, join: &HashJoinExec) -> Self {
        let (mut kept, mut found_left, mut found_right) = (1.0, 1.0, 1.0);
        for (left_key, right_key) in join.on() {
            let (l, r) = (left.key(left_key), right.key(right_key));
            kept *= l.selectivity(r);
            found_left *= l.found_in(r);
            found_right *= r.found_in(l);
        }
        // Several keys together have at most as many values as the larger side has rows.
        let least = 1.0 / left.rows.max(right.rows).max(1.0);
        let pairs =
            left.rows * right.rows * if join.on().len() > 1 { kept.max(least) } else { kept };
        let rows = match join.join_type() {
            JoinType::Inner => pairs,
            JoinType::Left => left.rows.max(pairs),
            JoinType::Right => right.rows.max(pairs),
            JoinType::Full => left.rows.max(right.rows).max(pairs),
            JoinType::LeftSemi => left.rows * found_left,
            JoinType::RightSemi => right.rows * found_right,
            JoinType::LeftAnti => left.rows * (1.0 - found_left).max(0.1),
            JoinType::RightAnti => right.rows * (1.0 - found_right).max(0.1),
            JoinType::LeftMark => left.rows,
            JoinType::RightMark => right.rows,
        };
        let columns = match join.join_type() {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left.columns.clone(),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                right.columns.clone()
            }
            _ => [left.columns.as_slice(), right.columns.as_slice()].concat(),
        };
        let mut joined = Self { rows, columns };
        if join.join_type() == &JoinType::LeftMark || join.join_type() == &JoinType::RightMark {
            let (distinct, domain) = (2.0, 2.0);
            joined.columns.push(ColumnEstimate { distinct, domain, is_known: true, range: None });
        }
        let columns = joined.columns.len();
        joined.with(rows, columns)
    }
}

/// Returns the index of the column that `expr` is, perhaps of another type.
pub(super) fn column_of(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    match expr.downcast_ref::<CastExpr>() {
        Some(cast) => column_of(cast.expr()),
        None => expr.downcast_ref::<Column>().map(Column::index),
    }
}

/// Returns a comparison of a column with a constant, with the column first.
fn comparison(expr: &Arc<dyn PhysicalExpr>) -> Option<(usize, Operator, Option<f64>)> {
    use Operator::{Eq, Gt, GtEq, Lt, LtEq};
    let binary = expr.downcast_ref::<BinaryExpr>()?;
    let literal = |side: &Arc<dyn PhysicalExpr>| {
        let literal = side.downcast_ref::<Literal>();
        literal.map(|literal| number(literal.value()))
    };
    let op = *binary.op();
    if !matches!(op, Eq | Lt | LtEq | Gt | GtEq) {
        return None;
    }
    match (literal(binary.left()), literal(binary.right())) {
        (None, Some(value)) => Some((column_of(binary.left())?, op, value)),
        (Some(value), None) => Some((column_of(binary.right())?, op.swap()?, value)),
        _ => None,
    }
}

/// Restricts `column` by a comparison with `value`. Returns the fraction of rows that are left.
fn restrict(column: &mut ColumnEstimate, op: Operator, value: Option<f64>) -> f64 {
    if op == Operator::Eq {
        let kept = if column.is_known { 1.0 / column.distinct } else { 0.05 };
        let range = value.map(|value| (value, value));
        *column = ColumnEstimate { distinct: 1.0, is_known: true, range, ..*column };
        return kept;
    }
    // Without a range, a comparison bounds one side; two of them make a range.
    let (Some((low, high)), Some(value)) = (column.range, value) else { return 0.5 };
    let (new_low, new_high) = match op {
        Operator::Lt | Operator::LtEq => (low, high.min(value)),
        _ => (low.max(value), high),
    };
    let (before, after) = (high - low, (new_high - new_low).max(0.0));
    let least = 1.0 / column.distinct;
    let kept = if before > 0.0 { (after / before).clamp(least, 1.0) } else { 1.0 };
    column.distinct = (column.distinct * kept).max(1.0);
    column.range = Some((new_low, new_high.max(new_low)));
    kept
}

/// Returns a number or date as a number: of units, days or ticks.
fn number(value: &ScalarValue) -> Option<f64> {
    use ScalarValue as V;
    match value {
        V::Int8(value) => value.map(f64::from),
        V::Int16(value) => value.map(f64::from),
        V::Int32(value) | V::Date32(value) => value.map(f64::from),
        V::Int64(value)
        | V::Date64(value)
        | V::TimestampSecond(value, _)
        | V::TimestampMillisecond(value, _)
        | V::TimestampMicrosecond(value, _)
        | V::TimestampNanosecond(value, _) => value.map(|value| value as f64),
        V::UInt8(value) => value.map(f64::from),
        V::UInt16(value) => value.map(f64::from),
        V::UInt32(value) => value.map(f64::from),
        V::UInt64(value) => value.map(|value| value as f64),
        V::Float32(value) => value.map(f64::from),
        V::Float64(value) => *value,
        V::Decimal32(value, _, scale) => value.map(|v| f64::from(v) / 10_f64.powi((*scale).into())),
        V::Decimal64(value, _, scale) => value.map(|v| v as f64 / 10_f64.powi((*scale).into())),
        V::Decimal128(value, _, scale) => value.map(|v| v as f64 / 10_f64.powi((*scale).into())),
        _ => None,
    }
}

/// Returns whether values of this type are whole numbers or days.
fn is_discrete(value: &ScalarValue) -> bool {
    use ScalarValue as V;
    matches!(
        value,
        V::Int8(_)
            | V::Int16(_)
            | V::Int32(_)
            | V::Int64(_)
            | V::UInt8(_)
            | V::UInt16(_)
            | V::UInt32(_)
            | V::UInt64(_)
            | V::Date32(_)
    )
}
