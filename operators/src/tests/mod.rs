//! What holds for every operator that looks at values: encoded columns, long texts, volatile
//! expressions, each through graphs of the operators as they are.

mod encoded;
mod expression;
mod graphs;
mod texts;
mod volatile;
