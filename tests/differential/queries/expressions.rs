//! Random scalar expressions over the columns in scope, by class.

use super::{random::Random, types::Class};

/// A column that expressions can reference.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    /// The name with its relation, as in `a.c0`.
    pub(crate) sql: String,
    pub(crate) class: Class,
}

/// Generates expressions over columns.
pub(crate) struct Expressions<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) scope: &'a [Named],
}

impl Expressions<'_> {
    /// Returns a column of the class, if there is one.
    pub(crate) fn column(&mut self, class: Class) -> Option<String> {
        let columns: Vec<_> = self.scope.iter().filter(|column| column.class == class).collect();
        (!columns.is_empty()).then(|| self.random.one(&columns).sql.clone())
    }

    /// Returns any column.
    pub(crate) fn any(&mut self) -> Named {
        self.random.one(self.scope).clone()
    }

    /// Returns a column that `is_wanted`, or else a numeric one.
    pub(crate) fn any_that(&mut self, is_wanted: impl Fn(Class) -> bool) -> Named {
        let columns: Vec<_> = self.scope.iter().filter(|column| is_wanted(column.class)).collect();
        match columns.is_empty() {
            true => Named { sql: "1".to_owned(), class: Class::Int },
            false => (*self.random.one(&columns)).clone(),
        }
    }

    fn literal(&mut self, class: Class) -> String {
        match class {
            Class::Bool => self.random.pick(&["true", "false", "NULL::boolean"]).to_owned(),
            Class::Int => {
                self.random.pick(&["0", "1", "2", "7", "-1", "NULL::bigint", "100"]).to_owned()
            }
            Class::Float => self
                .random
                .pick(&["0.5::double", "-0.0::double", "'NaN'::double", "1.25::double"])
                .to_owned(),
            Class::Decimal => self.random.pick(&["1.25", "0.5", "-3.75"]).to_owned(),
            Class::Text => self
                .random
                .pick(&[
                    "''",
                    "'t1'",
                    "'a text of more than twelve bytes'",
                    "'T%'",
                    "NULL::varchar",
                ])
                .to_owned(),
            Class::Date => self.random.pick(&["DATE '1970-01-02'", "DATE '1972-01-01'"]).to_owned(),
            Class::Stamp => "TIMESTAMP '2023-11-15 00:00:00'".to_owned(),
            Class::Time => "TIME '00:00:02'".to_owned(),
            Class::Span => "INTERVAL '1 day'".to_owned(),
            Class::Binary => "X'7431'".to_owned(),
            Class::Ints => "make_array(1, NULL, 3)".to_owned(),
            Class::Texts => "make_array('t1', '')".to_owned(),
            Class::Struct => "named_struct('a', 1, 'b', 't1')".to_owned(),
            Class::Map => "MAP {'k0': 1}".to_owned(),
            Class::Null => "NULL".to_owned(),
        }
    }

    /// Returns a column or a literal.
    fn leaf(&mut self, class: Class) -> String {
        match self.column(class) {
            Some(column) if self.random.chance(85) => column,
            _ => self.literal(class),
        }
    }

    /// Returns an expression of the class.
    pub(crate) fn of(&mut self, class: Class, depth: usize) -> String {
        if depth == 0 || self.random.chance(40) {
            return self.leaf(class);
        }
        let depth = depth - 1;
        match class {
            Class::Bool => self.condition(depth),
            _ if self.random.chance(15) => self.choice(class, depth),
            Class::Int => self.int(depth),
            Class::Float => self.float(depth),
            Class::Decimal => {
                let operator = self.random.pick(&["+", "-"]);
                format!("({} {operator} {})", self.leaf(class), self.literal(class))
            }
            Class::Text => self.text(depth),
            Class::Date => {
                let days = self.random.between(0, 40);
                format!("({} + INTERVAL '{days} days')::date", self.leaf(class))
            }
            Class::Stamp => {
                let part = self.random.pick(&["hour", "day", "month"]);
                format!("date_trunc('{part}', {})", self.leaf(class))
            }
            Class::Ints => {
                format!("array_append({}, {})", self.leaf(class), self.of(Class::Int, 0))
            }
            Class::Texts => format!("array_reverse({})", self.leaf(class)),
            _ => self.leaf(class),
        }
    }

    /// CASE, coalesce and nullif.
    fn choice(&mut self, class: Class, depth: usize) -> String {
        let (first, second) = (self.of(class, depth), self.of(class, 0));
        match self.random.below(3) {
            0 => format!("CASE WHEN {} THEN {first} ELSE {second} END", self.condition(depth)),
            1 => format!("coalesce({first}, {second})"),
            _ if class.is_ordered() => format!("nullif({first}, {second})"),
            _ => format!("CASE WHEN {} THEN {first} END", self.condition(depth)),
        }
    }

    fn int(&mut self, depth: usize) -> String {
        match self.random.below(7) {
            0 => format!("({} + {})", self.of(Class::Int, depth), self.literal(Class::Int)),
            1 => format!("({} % 5)", self.of(Class::Int, depth)),
            2 => format!("length({})", self.of(Class::Text, depth)),
            3 => format!("extract(month FROM {})", self.of(Class::Date, 0)),
            4 => format!("array_length({})", self.of(Class::Ints, 0)),
            5 => match self.column(Class::Struct) {
                Some(column) => format!("{column}['a']"),
                None => format!("({} & 6)", self.of(Class::Int, depth)),
            },
            _ => format!("CAST({} AS BIGINT)", self.leaf(Class::Int)),
        }
    }

    fn float(&mut self, depth: usize) -> String {
        match self.random.below(4) {
            0 => format!("({} * 0.5::double)", self.of(Class::Float, depth)),
            1 => format!("({} + {})", self.of(Class::Float, depth), self.leaf(Class::Float)),
            2 => format!("CAST({} AS DOUBLE)", self.of(Class::Int, depth)),
            _ => format!("floor({})", self.of(Class::Float, depth)),
        }
    }

    fn text(&mut self, depth: usize) -> String {
        let inner = self.of(Class::Text, depth);
        match self.random.below(7) {
            0 => format!("({inner} || {})", self.leaf(Class::Text)),
            1 => format!("upper({inner})"),
            2 => format!("substr({inner}, {})", self.random.between(1, 4)),
            3 => format!("replace({inner}, 't', 'uu')"),
            4 => format!("CAST({} AS VARCHAR)", self.of(Class::Int, depth)),
            5 => match self.column(Class::Struct) {
                Some(column) => format!("{column}['b']"),
                None => format!("left({inner}, 2)"),
            },
            _ => format!("btrim({inner})"),
        }
    }

    /// Returns a condition.
    pub(crate) fn condition(&mut self, depth: usize) -> String {
        match self.random.below(10) {
            0 if depth > 0 => {
                let word = self.random.pick(&["AND", "OR"]);
                format!("({} {word} {})", self.condition(depth - 1), self.condition(depth - 1))
            }
            1 if depth > 0 => format!("(NOT {})", self.condition(depth - 1)),
            2 => {
                let word = self.random.pick(&["IS NULL", "IS NOT NULL"]);
                format!("({} {word})", self.any().sql)
            }
            3 => {
                let operator = self.random.pick(&["LIKE", "NOT LIKE", "ILIKE", "~"]);
                let pattern = self.random.pick(&["'t%'", "'%text%'", "'t_'", "''", "'%e'"]);
                format!("({} {operator} {pattern})", self.of(Class::Text, depth.min(1)))
            }
            4 => {
                let word = self.random.pick(&["IN", "NOT IN"]);
                let class = *self.random.one(&[Class::Int, Class::Text]);
                let (first, second) = (self.literal(class), self.literal(class));
                format!("({} {word} ({first}, {second}))", self.of(class, depth.min(1)))
            }
            5 => {
                let inner = self.of(Class::Int, depth.min(1));
                format!("({inner} BETWEEN {} AND 20)", self.literal(Class::Int))
            }
            _ => self.comparison(depth.min(1)),
        }
    }

    fn comparison(&mut self, depth: usize) -> String {
        let class = self.any_that(Class::is_ordered).class;
        let operators = ["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "="];
        let operator = self.random.pick(&operators);
        format!("({} {operator} {})", self.of(class, depth), self.of(class, 0))
    }
}
