//! Random queries over generated tables.

use super::{
    aggregates::Aggregates,
    expressions::{Expressions, Named},
    random::Random,
    tables::Table,
    tree::{Body, From, Query, Select, Source},
    types::Class,
};

/// Join types, repeated by weight; those that keep one side only are last.
const JOINS: [&str; 12] = [
    "JOIN",
    "JOIN",
    "JOIN",
    "LEFT JOIN",
    "LEFT JOIN",
    "RIGHT JOIN",
    "FULL JOIN",
    "CROSS JOIN",
    "LEFT SEMI JOIN",
    "LEFT ANTI JOIN",
    "RIGHT SEMI JOIN",
    "RIGHT ANTI JOIN",
];
const SETS: [&str; 6] = ["UNION ALL", "UNION ALL", "UNION", "INTERSECT", "EXCEPT", "EXCEPT ALL"];
/// Upper bound for the estimated rows of a join.
const MAX_ROWS: usize = 60_000;

/// Generates queries.
pub(crate) struct Queries<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) tables: &'a [Table],
    aliases: usize,
}

/// The columns that FROM brings into scope.
#[derive(Default)]
struct Scope {
    columns: Vec<Named>,
    /// Columns that identify a row together; empty if unknown.
    unique: Vec<String>,
}

impl<'a> Queries<'a> {
    pub(crate) fn new(random: &'a mut Random, tables: &'a [Table]) -> Self {
        Self { random, tables, aliases: 0 }
    }

    /// Returns a whole query.
    pub(crate) fn query(&mut self) -> Query {
        if self.random.chance(15) {
            return self.set_query();
        }
        let mut query = Query::default();
        if self.random.chance(10) {
            query.with.push(("w0".to_owned(), self.simple()));
        }
        let (mut select, scope) = self.select(2, query.with.first());
        query.order = self.order(&mut select, &scope);
        query.body = Body::Select(Box::new(select));
        self.limit(&mut query);
        query
    }

    fn limit(&mut self, query: &mut Query) {
        if self.random.chance(30) {
            query.limit = Some(*self.random.one(&[0, 1, 3, 10, 1000]));
        }
        if self.random.chance(12) {
            query.offset = Some(*self.random.one(&[0, 1, 5]));
        }
    }

    /// Bodies with the same types, joined by set operations.
    fn set_query(&mut self) -> Query {
        let classes = [Class::Int, Class::Text, Class::Float, Class::Date, Class::Bool];
        let classes: Vec<_> =
            (0..=self.random.below(3)).map(|_| *self.random.one(&classes)).collect();
        let mut body = self.typed_select(&classes);
        for _ in 0..=self.random.below(2) {
            let operator = self.random.pick(&SETS);
            body = Body::Set(operator, Box::new(body), Box::new(self.typed_select(&classes)));
        }
        let mut query = Query { body, ..Query::default() };
        if self.random.chance(50) {
            query.order = vec!["1".to_owned()];
        }
        self.limit(&mut query);
        query
    }

    fn typed_select(&mut self, classes: &[Class]) -> Body {
        let (from, scope) = self.from(1, None);
        let mut expressions = Expressions { random: self.random, scope: &scope.columns };
        let item = |(place, class): (usize, &Class)| {
            let sql = expressions.of(*class, 1);
            (format!("CAST({sql} AS {})", class.common_type().unwrap()), format!("s{place}"))
        };
        let items = classes.iter().enumerate().map(item).collect();
        let filters = self.filters(&scope.columns, 0);
        let distinct = self.random.chance(20);
        Body::Select(Box::new(Select { items, from, filters, distinct, ..Select::default() }))
    }

    /// One table, some columns, perhaps a condition: for FROM and WITH.
    fn simple(&mut self) -> Query {
        let (from, scope) = self.from(1, None);
        let mut select = Select { from, ..Select::default() };
        select.items = scope
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| (column.sql.clone(), format!("f{place}")))
            .collect();
        select.filters = self.filters(&scope.columns, 0);
        let mut query = Query { body: Body::Select(Box::new(select)), ..Query::default() };
        if self.random.chance(20) && !scope.unique.is_empty() {
            query.order = scope.unique.clone();
            query.limit = Some(1 + self.random.below(20));
        }
        query
    }

    fn select(&mut self, relations: usize, with: Option<&(String, Query)>) -> (Select, Scope) {
        let count = 1 + self.random.below(relations + 1);
        let (from, scope) = self.from(count, with);
        let mut select = Select { from, ..Select::default() };
        select.filters = self.filters(&scope.columns, 2);
        if self.random.chance(40) {
            self.aggregate(&mut select, &scope);
        } else {
            self.project(&mut select, &scope);
            select.distinct = self.random.chance(10);
        }
        (select, scope)
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("r{}", self.aliases)
    }

    fn from(&mut self, count: usize, with: Option<&(String, Query)>) -> (Vec<From>, Scope) {
        let (mut all, mut scope, mut rows) = (Vec::new(), Scope::default(), 1);
        for place in 0..count {
            let table = &self.tables[self.random.below(self.tables.len())];
            let more = rows * table.rows.num_rows().max(1);
            if place > 0 && more > MAX_ROWS {
                break;
            }
            rows = more;
            let alias = self.alias();
            let mut from = self.relation(table, &alias, with.filter(|_| place == 0));
            let (columns, unique) = in_scope(&from.source, table, &alias);
            if place > 0 {
                from.join = self.random.pick(&JOINS);
                self.conditions(&mut from, &scope.columns, &columns);
            }
            match from.join {
                "LEFT SEMI JOIN" | "LEFT ANTI JOIN" => (),
                "RIGHT SEMI JOIN" | "RIGHT ANTI JOIN" => scope = Scope { columns, unique },
                _ => {
                    scope.columns.extend(columns);
                    let known = place == 0 || !scope.unique.is_empty() && !unique.is_empty();
                    scope.unique.extend(unique);
                    if !known {
                        scope.unique.clear();
                    }
                }
            }
            all.push(from);
        }
        (all, scope)
    }

    fn relation(&mut self, table: &Table, alias: &str, with: Option<&(String, Query)>) -> From {
        let source = match with {
            Some((name, query)) => {
                // The columns of a WITH query are those of its body.
                let names = items(query).map(|(_, name)| name.clone()).collect::<Vec<_>>();
                let columns = names.join(", ");
                let items = names.into_iter().map(|name| (name.clone(), name)).collect();
                let mut body = Select { items, ..Select::default() };
                let inner = Source::Named(name.clone());
                body.from = vec![From {
                    join: "",
                    source: inner,
                    alias: format!("w({columns})"),
                    on: vec![],
                }];
                Source::Query(Query { body: Body::Select(Box::new(body)), ..Query::default() })
            }
            None if self.random.chance(12) => {
                let alias = self.alias();
                let items = table.columns.iter();
                let items =
                    items.map(|column| (format!("{alias}.{}", column.name), column.name.clone()));
                let select = Select {
                    items: items.collect(),
                    distinct: self.random.chance(30),
                    from: vec![From {
                        join: "",
                        source: Source::Named(table.name.clone()),
                        alias: alias.clone(),
                        on: vec![],
                    }],
                    ..Select::default()
                };
                Source::Query(Query { body: Body::Select(Box::new(select)), ..Query::default() })
            }
            None => Source::Named(table.name.clone()),
        };
        From { join: "", source, alias: alias.to_owned(), on: Vec::new() }
    }

    /// Equality of keys, sometimes with another condition, or only such a condition.
    fn conditions(&mut self, from: &mut From, left: &[Named], right: &[Named]) {
        if from.join == "CROSS JOIN" {
            return;
        }
        let keys = if self.random.chance(88) { 1 + self.random.below(2) } else { 0 };
        for _ in 0..keys {
            let one = Expressions { random: self.random, scope: right }.any_that(is_join_key);
            let other = Expressions { random: self.random, scope: left }
                .any_that(|class| class == one.class);
            let operator = if self.random.chance(5) { "IS NOT DISTINCT FROM" } else { "=" };
            from.on.push(format!("{} {operator} {}", other.sql, one.sql));
        }
        if keys == 0 || self.random.chance(30) {
            let both: Vec<_> = left.iter().chain(right).cloned().collect();
            let mut expressions = Expressions { random: self.random, scope: &both };
            from.on.push(expressions.condition(1));
        }
    }

    fn filters(&mut self, scope: &[Named], subqueries: usize) -> Vec<String> {
        let mut filters = Vec::new();
        for _ in 0..self.random.below(3) {
            filters.push(Expressions { random: self.random, scope }.condition(2));
        }
        if subqueries > 0 && self.random.chance(20) {
            filters.push(self.subquery(scope));
        }
        filters
    }

    /// A condition with a subquery, correlated or not.
    fn subquery(&mut self, outer: &[Named]) -> String {
        let table = &self.tables[self.random.below(self.tables.len())];
        let alias = self.alias();
        let (columns, _) = in_scope(&Source::Named(table.name.clone()), table, &alias);
        let inner = Expressions { random: self.random, scope: &columns }.any_that(is_join_key);
        let same = |class| class == inner.class;
        let other = Expressions { random: self.random, scope: outer }.any_that(same);
        let correlated = match self.random.chance(50) {
            true => {
                let key =
                    Expressions { random: self.random, scope: &columns }.any_that(is_join_key);
                let same = |class| class == key.class;
                let other = Expressions { random: self.random, scope: outer }.any_that(same);
                format!("{} = {}", key.sql, other.sql)
            }
            false => Expressions { random: self.random, scope: &columns }.condition(1),
        };
        let from = format!("FROM {} {alias} WHERE {correlated}", table.name);
        match self.random.below(5) {
            0 => format!("EXISTS (SELECT 1 {from})"),
            1 => format!("NOT EXISTS (SELECT 1 {from})"),
            2 => format!("{} IN (SELECT {} {from})", other.sql, inner.sql),
            3 => format!("{} NOT IN (SELECT {} {from})", other.sql, inner.sql),
            _ => {
                let function = self.random.pick(&["max", "min"]);
                format!("{} >= (SELECT {function}({}) {from})", other.sql, inner.sql)
            }
        }
    }

    fn project(&mut self, select: &mut Select, scope: &Scope) {
        for place in 0..1 + self.random.below(4) {
            let column = Expressions { random: self.random, scope: &scope.columns }.any();
            let sql = match self.random.below(6) {
                0 | 1 => {
                    let mut expressions =
                        Expressions { random: self.random, scope: &scope.columns };
                    expressions.of(column.class, 2)
                }
                2 => {
                    Aggregates { random: self.random, scope: &scope.columns, unique: &scope.unique }
                        .window()
                }
                _ => column.sql,
            };
            select.items.push((sql, format!("x{place}")));
        }
    }

    fn aggregate(&mut self, select: &mut Select, scope: &Scope) {
        let mut keys = Vec::new();
        for _ in 0..self.random.below(3) {
            let mut expressions = Expressions { random: self.random, scope: &scope.columns };
            let key = expressions.any_that(Class::is_key);
            let sql =
                if expressions.random.chance(20) { expressions.of(key.class, 1) } else { key.sql };
            // A key without a column would be an ordinal.
            if sql.contains('.') && !keys.contains(&sql) {
                keys.push(sql);
            }
        }
        for (place, key) in keys.iter().enumerate() {
            select.items.push((key.clone(), format!("k{place}")));
        }
        let mut aggregates =
            Aggregates { random: self.random, scope: &scope.columns, unique: &scope.unique };
        for place in 0..1 + aggregates.random.below(3) {
            select.items.push((aggregates.aggregate(), format!("a{place}")));
        }
        if !keys.is_empty() {
            if self.random.chance(12) {
                select.having.push("count(*) > 1".to_owned());
            }
            let word = *self.random.one(&["", "", "", "", "", "ROLLUP", "CUBE"]);
            select.groups = Some((word, keys));
        }
    }

    /// Returns an order by items, or by columns that are not selected.
    fn order(&mut self, select: &mut Select, scope: &Scope) -> Vec<String> {
        if !self.random.chance(50) {
            return Vec::new();
        }
        let hidden = select.groups.is_none()
            && !select.distinct
            && select.items.iter().all(|(_, name)| name.starts_with('x'));
        let mut order = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let key = match hidden && self.random.chance(40) {
                true => {
                    let mut expressions =
                        Expressions { random: self.random, scope: &scope.columns };
                    expressions.any_that(Class::is_ordered).sql
                }
                false => self.random.one(&select.items).1.clone(),
            };
            let direction = self.random.pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
            if key != "1" {
                order.push(format!("{key}{direction}"));
            }
        }
        order
    }
}

/// Whether values of the class can be join keys.
fn is_join_key(class: Class) -> bool {
    matches!(
        class,
        Class::Int | Class::Text | Class::Date | Class::Decimal | Class::Float | Class::Bool
    )
}

fn items(query: &Query) -> impl Iterator<Item = &(String, String)> {
    let select = match &query.body {
        Body::Select(select) => select,
        Body::Set(..) => unreachable!("a simple query is one SELECT"),
    };
    select.items.iter()
}

/// Returns the columns of a relation, and those that identify its rows.
fn in_scope(source: &Source, table: &Table, alias: &str) -> (Vec<Named>, Vec<String>) {
    let named = |name: &str, class| Named { sql: format!("{alias}.{name}"), class };
    if let Source::Query(query) = source
        && items(query).next().is_some_and(|(_, name)| name.starts_with('f'))
    {
        // The classes of a WITH query's columns are unknown; they can only be counted and selected.
        let columns = items(query).map(|(_, name)| named(name, Class::Null));
        return (columns.collect(), Vec::new());
    }
    let columns = table.columns.iter().map(|column| named(&column.name, column.class));
    (columns.collect(), vec![format!("{alias}.id")])
}
