//! Random aggregates and window functions with a result that SQL determines.

use super::{
    expressions::{Expressions, Named},
    random::Random,
    types::Class,
};

/// Frames of single rows; they need an order without ties.
const ROWS_FRAMES: [&str; 5] = [
    "ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
    "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
    "ROWS BETWEEN 2 FOLLOWING AND 5 FOLLOWING",
    "ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
    "ROWS BETWEEN 3 PRECEDING AND 1 PRECEDING",
];
const TIED_FRAMES: [&str; 4] = [
    "",
    "RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
    "GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
    "RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
];

/// Generates aggregates over columns.
pub(crate) struct Aggregates<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) scope: &'a [Named],
    /// Columns that identify a row together.
    pub(crate) unique: &'a [String],
}

impl Aggregates<'_> {
    fn expressions(&mut self) -> Expressions<'_> {
        Expressions { random: self.random, scope: self.scope }
    }

    fn of(&mut self, class: Class) -> String {
        self.expressions().of(class, 1)
    }

    fn any_ordered(&mut self) -> String {
        self.expressions().any_that(Class::is_ordered).sql
    }

    /// Returns an argument of `min` or `max` without NaN: DataFusion's minimum of NaN and numbers
    /// depends on the order of the rows.
    fn any_without_nan(&mut self) -> String {
        let value = self.expressions().any_that(Class::is_ordered);
        match value.class {
            Class::Float => format!("CASE WHEN isnan({0}) THEN NULL ELSE {0} END", value.sql),
            _ => value.sql,
        }
    }

    fn number(&mut self) -> String {
        let class = *self.random.one(&[Class::Int, Class::Int, Class::Float, Class::Decimal]);
        self.of(class)
    }

    /// Returns an aggregate, sometimes DISTINCT or with a FILTER.
    pub(crate) fn aggregate(&mut self) -> String {
        let mut sql = match self.random.below(16) {
            0 => "count(*)".to_owned(),
            1 => format!("count({})", self.expressions().any().sql),
            2 => format!("count(DISTINCT {})", self.any_ordered()),
            3 => format!("sum({})", self.number()),
            4 => format!("avg({})", self.number()),
            5 => format!("min({})", self.any_without_nan()),
            6 => format!("max({})", self.any_without_nan()),
            7 => format!("sum(DISTINCT {})", self.of(Class::Int)),
            8 => {
                let function = self.random.pick(&["bool_and", "bool_or"]);
                format!("{function}({})", self.expressions().condition(1))
            }
            9 => {
                let function = self.random.pick(&["bit_and", "bit_or", "bit_xor"]);
                format!("{function}({})", self.of(Class::Int))
            }
            10 => {
                let function = self.random.pick(&["stddev", "var_pop", "median"]);
                format!("{function}({})", self.of(Class::Int))
            }
            11 => {
                let value = self.any_ordered();
                format!("array_agg({value} ORDER BY {value})")
            }
            12 => {
                let value = self.of(Class::Text);
                format!("string_agg({value}, ',' ORDER BY {value})")
            }
            13 => {
                let function = self.random.pick(&["first_value", "last_value"]);
                let value = self.any_ordered();
                format!("{function}({value} ORDER BY {value} DESC)")
            }
            14 => format!("corr({}, {})", self.of(Class::Int), self.of(Class::Float)),
            _ => format!("approx_distinct({})", self.of(Class::Int)),
        };
        if self.random.chance(15) {
            let condition = self.expressions().condition(1);
            sql = format!("{sql} FILTER (WHERE {condition})");
        }
        sql
    }

    /// Returns a window function.
    pub(crate) fn window(&mut self) -> String {
        let total = !self.unique.is_empty() && self.random.chance(60);
        let function = match total {
            true => self.function_of_rows(),
            false => self.function_of_ties(),
        };
        let mut over = Vec::new();
        if self.random.chance(60) {
            let key = self.expressions().any_that(Class::is_key).sql;
            over.push(format!("PARTITION BY {key}"));
        }
        let direction = self.random.pick(&["", " DESC", " NULLS FIRST"]);
        let key = self.any_ordered();
        match total {
            true => {
                let unique = self.unique.join(", ");
                over.push(format!("ORDER BY {key}{direction}, {unique}"));
                if self.random.chance(50) && takes_frames(&function) {
                    over.push(self.random.pick(&ROWS_FRAMES).to_owned());
                }
            }
            false if self.random.chance(80) => {
                over.push(format!("ORDER BY {key}{direction}"));
                if takes_frames(&function) {
                    over.push(self.random.pick(&TIED_FRAMES).to_owned());
                }
            }
            false => (),
        }
        format!("{function} OVER ({})", over.join(" "))
    }

    fn function_of_rows(&mut self) -> String {
        let value = self.expressions().any().sql;
        match self.random.below(8) {
            0 => "row_number()".to_owned(),
            1 => format!("lag({value})"),
            2 => format!("lead({value}, 2)"),
            3 => format!("first_value({value})"),
            4 => format!("last_value({value})"),
            5 => format!("nth_value({value}, 2)"),
            6 => "ntile(3)".to_owned(),
            _ => self.function_of_ties(),
        }
    }

    fn function_of_ties(&mut self) -> String {
        match self.random.below(9) {
            0 => "rank()".to_owned(),
            1 => "dense_rank()".to_owned(),
            2 => "percent_rank()".to_owned(),
            3 => "cume_dist()".to_owned(),
            4 => "count(*)".to_owned(),
            5 => format!("sum({})", self.of(Class::Int)),
            6 => format!("min({})", self.any_without_nan()),
            7 => format!("max({})", self.any_without_nan()),
            _ => format!("avg({})", self.of(Class::Int)),
        }
    }
}

/// Whether the function depends on its frame.
fn takes_frames(function: &str) -> bool {
    ["sum", "min", "max", "avg", "count", "first_value", "last_value", "nth_value"]
        .iter()
        .any(|name| function.starts_with(name))
}
