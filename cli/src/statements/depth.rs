//! Nesting depth of statements, and its limits.
//!
//! Parser, planner and expressions recurse, so depth takes stack: `a OR b OR c` is nested as deeply
//! as it is long. A stack overflow ends the process, so statements that are too deep are refused.
//! Text is checked before parsing, and plans before optimization, since views and common table
//! expressions make plans deeper than their text.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::large_stack;

/// Maximum operators in a chain of text: an upper bound for the levels of an expression, and for
/// the parser's stack.
const MAX_OPERATORS: usize = 20_000;
/// Maximum levels of an expression. At 5,000 DataFusion plans for half a minute; at 10,000 memory
/// runs out.
const MAX_EXPRESSION_DEPTH: usize = 5_000;
/// Maximum nodes of a plan between its root and a table. At 5,000 DataFusion plans for a minute.
const MAX_PLAN_DEPTH: usize = 5_000;
/// Levels or nodes above which a plan's thread ends after it, since its stack has taken memory.
const DEEP: usize = 100;

/// Refuses text with too long a chain of operators. Text that cannot be tokenized is left to the
/// parser.
pub(super) fn check_text(sql: &str) -> Result<()> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    let depth = text_depth(&tokens);
    match depth > MAX_OPERATORS {
        true => Err(too_deep("it has a chain of", depth, "operators", MAX_OPERATORS)),
        false => Ok(()),
    }
}

/// Refuses a plan that is too deep, or has an expression that is. Called on the thread that works
/// on the plan, which ends afterwards if the plan is deep.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<()> {
    let (nodes, levels) = plan_depth(plan)?;
    if nodes.max(levels) > DEEP {
        large_stack::end_after_work();
    }
    if nodes > MAX_PLAN_DEPTH {
        return Err(too_deep("its plan has", nodes, "levels", MAX_PLAN_DEPTH));
    }
    match levels > MAX_EXPRESSION_DEPTH {
        true => Err(too_deep("an expression has", levels, "levels", MAX_EXPRESSION_DEPTH)),
        false => Ok(()),
    }
}

fn too_deep(has: &str, depth: usize, of_what: &str, max: usize) -> DataFusionError {
    DataFusionError::Plan(format!(
        "the statement is nested too deeply: {has} {depth} {of_what}, but at most {max} are \
         possible; use IN (…) or a join with VALUES, or split the statement with \
         CREATE TABLE … AS"
    ))
}

/// An upper bound for the depth of the syntax tree: operators between two commas of the same
/// brackets, plus those around the brackets.
fn text_depth(tokens: &[Token]) -> usize {
    let (mut open, mut sum, mut deepest) = (vec![0], 0, 0);
    for token in tokens {
        match step(token) {
            Step::Open => open.push(0),
            Step::Close => {
                sum -= open.pop().unwrap_or(0);
                if open.is_empty() {
                    open.push(0);
                }
            }
            Step::Next => sum -= open.last_mut().map_or(0, std::mem::take),
            Step::Operator => {
                *open.last_mut().unwrap_or(&mut 0) += 1;
                sum += 1;
                deepest = deepest.max(sum);
            }
            Step::Other => {}
        }
    }
    deepest
}

enum Step {
    Open,
    Close,
    /// The next item of a list.
    Next,
    Operator,
    Other,
}

fn step(token: &Token) -> Step {
    match token {
        Token::LParen | Token::LBracket | Token::LBrace => Step::Open,
        Token::RParen | Token::RBracket | Token::RBrace => Step::Close,
        Token::Comma | Token::SemiColon => Step::Next,
        Token::Word(word) => match word.keyword {
            Keyword::CASE => Step::Open,
            Keyword::END => Step::Close,
            Keyword::WHEN | Keyword::THEN | Keyword::ELSE => Step::Next,
            Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::IS => Step::Operator,
            Keyword::LIKE | Keyword::ILIKE | Keyword::COLLATE => Step::Operator,
            Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => Step::Operator,
            Keyword::JOIN => Step::Operator,
            _ => Step::Other,
        },
        Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::Mod => Step::Operator,
        Token::Eq | Token::Neq | Token::Lt | Token::Gt | Token::LtEq | Token::GtEq => {
            Step::Operator
        }
        Token::StringConcat | Token::DoubleColon | Token::Pipe | Token::Ampersand => Step::Operator,
        Token::Caret | Token::Arrow | Token::LongArrow => Step::Operator,
        _ => Step::Other,
    }
}

/// The number of nodes between the root of a plan and its deepest table, including subqueries, and
/// the depth of its deepest expression. Not recursive.
fn plan_depth(plan: &LogicalPlan) -> Result<(usize, usize)> {
    let (mut deepest, mut levels) = (0, 0);
    let mut pending = vec![(plan.clone(), 1)];
    while let Some((plan, depth)) = pending.pop() {
        deepest = deepest.max(depth);
        pending.extend(plan.inputs().into_iter().map(|input| (input.clone(), depth + 1)));
        plan.apply_expressions(|expr| {
            levels = levels.max(expr_depth(expr, depth, &mut pending)?);
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok((deepest, levels))
}

/// The depth of an expression. Adds the plans of its subqueries to `plans`.
fn expr_depth(expr: &Expr, depth: usize, plans: &mut Vec<(LogicalPlan, usize)>) -> Result<usize> {
    let mut deepest = 0;
    let mut pending = vec![(expr, 1)];
    while let Some((expr, level)) = pending.pop() {
        deepest = deepest.max(level);
        let subquery = match expr {
            Expr::ScalarSubquery(subquery) => Some(subquery),
            Expr::Exists(exists) => Some(&exists.subquery),
            Expr::InSubquery(within) => Some(&within.subquery),
            _ => None,
        };
        plans.extend(subquery.map(|subquery| (subquery.subquery.as_ref().clone(), depth + 1)));
        expr.apply_children(|child| {
            pending.push((child, level + 1));
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(deepest)
}

#[cfg(test)]
mod tests;
