//! Operators of one's own, from a filter to a breaker that spills, each with its test in every mode
//! of the harness. `cargo run --release --example own_operators`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

pub mod broadcast;
pub mod distinct_count;
pub mod feed;
pub mod filter;
pub mod hold;

fn main() {
    println!("filter\n{}", filter::test());
    println!("source fed from outside\n{}", feed::test());
    println!("distinct count\n{}", distinct_count::test());
    println!("broadcast\n{}", broadcast::test());
    println!("hold\n{}", hold::test());
}
