//! The four cardinalities, each in the smallest possible shared state.

use gatework_shared_state::{ManyToMany, ManyToOne, OneToMany, OneToOne};

use crate::{
    mailbox::{self, Fault, Gates},
    stream::{Plan, Reach, run},
    support::check_all,
};

fn cardinality<G: Gates>(reach: Reach, gates: fn() -> G) {
    check_all(move |ending| {
        let gates = gates();
        let plan = Plan::new(ending, reach, gates.sinks().len(), gates.sources().len());
        let (sinks, sources) = mailbox::new(gates, reach, plan.limit_bytes, Fault::None);
        run(plan, sinks, sources);
    });
}

#[test]
fn one_to_one() {
    cardinality(Reach::Routed, || OneToOne::new("1:1"));
}

#[test]
fn one_to_many() {
    cardinality(Reach::Copied, || OneToMany::new("1:N", 3));
}

#[test]
fn many_to_one() {
    cardinality(Reach::Routed, || ManyToOne::new("N:1", 3));
}

#[test]
fn many_to_many() {
    cardinality(Reach::Routed, || ManyToMany::new("N:N", 2, 3));
}
