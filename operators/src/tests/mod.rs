//! Properties of every operator that reads values: encoded columns, long texts and volatile
//! expressions, tested in graphs of the real operators.

mod encoded;
mod expression;
mod graphs;
mod texts;
mod volatile;
