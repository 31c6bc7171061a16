//! Generated queries as trees whose clauses can be removed, and their SQL.

use std::fmt::{self, Display, Formatter};

/// A query with its order and limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pub(crate) with: Vec<(String, Query)>,
    pub(crate) body: Body,
    pub(crate) order: Vec<String>,
    pub(crate) limit: Option<usize>,
    pub(crate) offset: Option<usize>,
}

/// The body of a query.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Select(Box<Select>),
    /// An operator such as `UNION ALL` between two bodies.
    Set(&'static str, Box<Body>, Box<Body>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Select(Box::default())
    }
}

/// One SELECT.
#[derive(Debug, Clone, Default)]
pub(crate) struct Select {
    pub(crate) distinct: bool,
    /// Expressions, each with the name of its column.
    pub(crate) items: Vec<(String, String)>,
    pub(crate) from: Vec<From>,
    /// Conjuncts of WHERE.
    pub(crate) filters: Vec<String>,
    /// The word before the keys, such as `ROLLUP`, and the keys.
    pub(crate) groups: Option<(&'static str, Vec<String>)>,
    /// Conjuncts of HAVING.
    pub(crate) having: Vec<String>,
}

/// A relation of FROM, and how it is joined to those before it.
#[derive(Debug, Clone)]
pub(crate) struct From {
    /// Join type; empty for the first relation.
    pub(crate) join: &'static str,
    pub(crate) source: Source,
    pub(crate) alias: String,
    /// Conjuncts of ON; none for a cross join.
    pub(crate) on: Vec<String>,
}

/// A relation.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Named(String),
    Query(Query),
}

fn list(f: &mut Formatter<'_>, word: &str, parts: &[String], between: &str) -> fmt::Result {
    if parts.is_empty() {
        return Ok(());
    }
    write!(f, " {word} {}", parts.join(between))
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (place, (name, query)) in self.with.iter().enumerate() {
            let word = if place == 0 { "WITH " } else { ", " };
            write!(f, "{word}{name} AS ({query})")?;
        }
        if !self.with.is_empty() {
            f.write_str(" ")?;
        }
        self.body.fmt(f)?;
        list(f, "ORDER BY", &self.order, ", ")?;
        if let Some(limit) = self.limit {
            write!(f, " LIMIT {limit}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " OFFSET {offset}")?;
        }
        Ok(())
    }
}

impl Display for Body {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Select(select) => select.fmt(f),
            Self::Set(operator, left, right) => {
                write!(f, "({left}) {operator} ({right})")
            }
        }
    }
}

impl Display for Select {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.distinct { "SELECT DISTINCT " } else { "SELECT " })?;
        for (place, (expression, name)) in self.items.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{expression} AS {name}")?;
        }
        for from in &self.from {
            let word = if from.join.is_empty() { " FROM" } else { from.join };
            write!(f, "{}{word} ", if from.join.is_empty() { "" } else { " " })?;
            match &from.source {
                Source::Named(name) => write!(f, "{name} {}", from.alias)?,
                Source::Query(query) => write!(f, "({query}) {}", from.alias)?,
            }
            list(f, "ON", &from.on, " AND ")?;
        }
        list(f, "WHERE", &self.filters, " AND ")?;
        match &self.groups {
            Some((word, keys)) if !keys.is_empty() => {
                write!(f, " GROUP BY {word}({})", keys.join(", "))?;
            }
            _ => (),
        }
        list(f, "HAVING", &self.having, " AND ")
    }
}

/// All queries with one clause less.
pub(crate) fn smaller(query: &Query) -> Vec<Query> {
    let mut all = Vec::new();
    let mut keep = |change: &dyn Fn(&mut Query)| {
        let mut copy = query.clone();
        change(&mut copy);
        all.push(copy);
    };
    (0..query.with.len()).for_each(|place| keep(&|query| drop(query.with.remove(place))));
    if !query.order.is_empty() {
        keep(&|query| query.order.clear());
    }
    (0..query.order.len()).for_each(|place| keep(&|query| drop(query.order.remove(place))));
    if query.limit.is_some() {
        keep(&|query| query.limit = None);
    }
    if query.offset.is_some() {
        keep(&|query| query.offset = None);
    }
    for (place, (_, inner)) in query.with.iter().enumerate() {
        for inner in smaller(inner) {
            keep(&|query| query.with[place].1 = inner.clone());
        }
    }
    for body in smaller_bodies(&query.body) {
        keep(&|query| query.body = body.clone());
    }
    all
}

fn smaller_bodies(body: &Body) -> Vec<Body> {
    match body {
        Body::Select(select) => {
            let selects = smaller_selects(select).into_iter();
            selects.map(|select| Body::Select(Box::new(select))).collect()
        }
        Body::Set(operator, left, right) => {
            let mut all = vec![left.as_ref().clone(), right.as_ref().clone()];
            let with = |left: &Body, right: &Body| {
                Body::Set(operator, Box::new(left.clone()), Box::new(right.clone()))
            };
            all.extend(smaller_bodies(left).iter().map(|left| with(left, right)));
            all.extend(smaller_bodies(right).iter().map(|right| with(left, right)));
            all
        }
    }
}

fn smaller_selects(select: &Select) -> Vec<Select> {
    let mut all = Vec::new();
    let mut keep = |change: &dyn Fn(&mut Select)| {
        let mut copy = select.clone();
        change(&mut copy);
        all.push(copy);
    };
    for place in (1..select.from.len()).rev() {
        keep(&|select| drop(select.from.remove(place)));
    }
    if select.from.len() > 1 {
        keep(&|select| {
            select.from.remove(0);
            select.from[0].join = "";
            select.from[0].on.clear();
        });
    }
    if !select.filters.is_empty() {
        keep(&|select| select.filters.clear());
    }
    if select.items.len() > 2 {
        let half = select.items.len() / 2;
        keep(&|select| drop(select.items.drain(..half)));
        keep(&|select| select.items.truncate(half));
    }
    if select.distinct {
        keep(&|select| select.distinct = false);
    }
    (0..select.filters.len()).for_each(|place| keep(&|select| drop(select.filters.remove(place))));
    (0..select.having.len()).for_each(|place| keep(&|select| drop(select.having.remove(place))));
    if select.items.len() > 1 {
        (0..select.items.len()).for_each(|place| keep(&|select| drop(select.items.remove(place))));
    }
    if let Some((word, keys)) = &select.groups {
        keep(&|select| select.groups = None);
        if !word.is_empty() {
            keep(&|select| select.groups.as_mut().unwrap().0 = "");
        }
        (0..keys.len()).for_each(|place| {
            keep(&|select| drop(select.groups.as_mut().unwrap().1.remove(place)))
        });
    }
    for (place, from) in select.from.iter().enumerate() {
        if from.on.len() > 1 {
            (0..from.on.len())
                .for_each(|conjunct| keep(&|select| drop(select.from[place].on.remove(conjunct))));
        }
        if let Source::Query(inner) = &from.source {
            for inner in smaller(inner) {
                keep(&|select| select.from[place].source = Source::Query(inner.clone()));
            }
        }
    }
    all
}
