//! Search for the cheapest order of a group's joins.

use std::cell::RefCell;
use std::collections::HashMap;

use super::{
    MAX_COST_RATIO, MAX_EXHAUSTIVE,
    graph::{Inputs, JoinGraph, Tree},
};

/// Cost of a row that a join builds, beside one that it emits.
const BUILD_COST: f64 = 2.0;
/// Cost of a row that a join looks up, beside one that it emits.
const PROBE_COST: f64 = 0.5;
/// Cost of looking up several keys, beside one: a single number is found by its rank, without a
/// hash, and its runtime filter costs a bit test.
const SEVERAL_KEYS: f64 = 2.0;
/// Fraction of pairs that pass a predicate other than an equality.
const RESIDUAL_SELECTIVITY: f64 = 0.5;

/// Row counts of the joins of a graph.
pub(super) struct JoinRows<'a> {
    graph: &'a JoinGraph,
    /// Per class of keys, its inputs.
    classes: Vec<Inputs>,
    /// Per pair of inputs with several keys, the factor by which the product of the keys'
    /// selectivities is too small: together, they have at most as many values as rows.
    corrections: Vec<(usize, usize, f64)>,
    known: RefCell<HashMap<Inputs, f64>>,
}

impl<'a> JoinRows<'a> {
    pub(super) fn new(graph: &'a JoinGraph) -> Self {
        let mut corrections = Vec::new();
        for right in 0..graph.inputs.len() {
            for left in 0..right {
                let (mut keys, mut kept) = (0, 1.0);
                for class in &graph.classes {
                    let of = |input| class.iter().find(|key| key.input == input);
                    if let (Some(left), Some(right)) = (of(left), of(right)) {
                        kept *= left.values.selectivity(right.values);
                        keys += 1;
                    }
                }
                let least = 1.0 / graph.inputs[left].rows.max(graph.inputs[right].rows);
                if keys > 1 && kept < least {
                    corrections.push((left, right, least / kept));
                }
            }
        }
        let inputs = graph
            .classes
            .iter()
            .map(|class| class.iter().fold(0, |inputs, key| inputs | 1 << key.input));
        Self { graph, classes: inputs.collect(), corrections, known: RefCell::default() }
    }

    /// Returns the rows of the join of `inputs`, which do not depend on its order.
    pub(super) fn of(&self, inputs: Inputs) -> f64 {
        if let Some(rows) = self.known.borrow().get(&inputs) {
            return *rows;
        }
        let has = |input: usize| inputs >> input & 1 == 1;
        let mut rows = 1.0;
        for (index, input) in self.graph.inputs.iter().enumerate() {
            if !has(index) {
                continue;
            }
            rows *= input.rows;
            let corrections = self.corrections.iter();
            let own = corrections.filter(|(left, right, _)| *right == index && has(*left));
            rows *= own.map(|(.., factor)| *factor).fold(1.0, f64::max);
        }
        for class in &self.graph.classes {
            let members: Vec<_> = class.iter().filter(|key| has(key.input)).collect();
            for pair in members.windows(2) {
                rows *= pair[0].values.selectivity(pair[1].values);
            }
        }
        let residuals = self.graph.residuals.iter();
        let tested = residuals.filter(|residual| residual.inputs & !inputs == 0).count();
        let rows = (rows * RESIDUAL_SELECTIVITY.powi(tested as i32)).max(1.0);
        self.known.borrow_mut().insert(inputs, rows);
        rows
    }

    /// Returns the cost of one join.
    fn cost(&self, left: Inputs, right: Inputs) -> f64 {
        let (left_rows, right_rows) = (self.of(left), self.of(right));
        let joins = |class: &&Inputs| *class & left != 0 && *class & right != 0;
        let several = self.classes.iter().filter(joins).nth(1).is_some();
        let probe_cost = if several { SEVERAL_KEYS * PROBE_COST } else { PROBE_COST };
        self.of(left | right)
            + BUILD_COST * left_rows.min(right_rows)
            + probe_cost * left_rows.max(right_rows)
    }

    fn cost_of(&self, tree: &Tree) -> f64 {
        match tree {
            Tree::Input(_) => 0.0,
            Tree::Join(left, right) => {
                let below = self.cost_of(left) + self.cost_of(right);
                below + self.cost(left.inputs(), right.inputs())
            }
        }
    }
}

/// Returns an order that costs clearly less than the written one, if there is one.
pub(super) fn best_tree(graph: &JoinGraph, rows: &JoinRows<'_>) -> Option<Tree> {
    let are_joined = |left: Inputs, right: Inputs| {
        rows.classes.iter().any(|class| class & left != 0 && class & right != 0)
    };
    let best = match graph.inputs.len() {
        ..=MAX_EXHAUSTIVE => exhaustive(graph.inputs.len(), rows, are_joined)?,
        _ => greedy(graph.inputs.len(), rows, are_joined)?,
    };
    let is_better = rows.cost_of(&best) < MAX_COST_RATIO * rows.cost_of(&graph.written);
    is_better.then_some(best)
}

/// Compares all orders without cross products.
fn exhaustive(
    count: usize,
    rows: &JoinRows<'_>,
    are_joined: impl Fn(Inputs, Inputs) -> bool,
) -> Option<Tree> {
    // Per set of inputs, the cost of its best order and the inputs of the left side.
    let mut best: Vec<Option<(f64, Inputs)>> = vec![None; 1 << count];
    (0..count).for_each(|input| best[1 << input] = Some((0.0, 0)));
    for inputs in 1_usize..1 << count {
        if (inputs as Inputs).count_ones() < 2 {
            continue;
        }
        // Each division once: the side with the lowest input is the left one.
        let lowest = inputs & inputs.wrapping_neg();
        let mut left = (inputs - 1) & inputs;
        while left != 0 {
            let right = inputs & !left;
            if left & lowest != 0
                && let (Some((left_cost, _)), Some((right_cost, _))) = (best[left], best[right])
                && are_joined(left as Inputs, right as Inputs)
            {
                let cost = left_cost + right_cost + rows.cost(left as Inputs, right as Inputs);
                if best[inputs].is_none_or(|(known, _)| cost < known) {
                    best[inputs] = Some((cost, left as Inputs));
                }
            }
            left = (left - 1) & inputs;
        }
    }
    tree_of(&best, (1 << count) - 1)
}

fn tree_of(best: &[Option<(f64, Inputs)>], inputs: usize) -> Option<Tree> {
    let (_, left) = best[inputs]?;
    if left == 0 {
        return Some(Tree::Input(inputs.trailing_zeros() as usize));
    }
    let (left, right) = (left as usize, inputs & !(left as usize));
    Some(Tree::Join(Box::new(tree_of(best, left)?), Box::new(tree_of(best, right)?)))
}

/// Joins the cheapest pair until one tree is left.
fn greedy(
    count: usize,
    rows: &JoinRows<'_>,
    are_joined: impl Fn(Inputs, Inputs) -> bool,
) -> Option<Tree> {
    let mut trees: Vec<Tree> = (0..count).map(Tree::Input).collect();
    while trees.len() > 1 {
        let mut cheapest: Option<(f64, usize, usize)> = None;
        for right in 0..trees.len() {
            for left in 0..right {
                let (l, r) = (trees[left].inputs(), trees[right].inputs());
                if !are_joined(l, r) {
                    continue;
                }
                let cost = rows.cost(l, r);
                if cheapest.is_none_or(|(known, ..)| cost < known) {
                    cheapest = Some((cost, left, right));
                }
            }
        }
        let (_, left, right) = cheapest?;
        // The right one has the higher index, so the left one stays in place.
        let right = trees.swap_remove(right);
        let left_tree = std::mem::replace(&mut trees[left], Tree::Input(0));
        trees[left] = Tree::Join(Box::new(left_tree), Box::new(right));
    }
    trees.pop()
}
