//! A token simulation of a plan: instances with one-slot buffers, and an adversary that picks who
//! steps next, where rows go, and which input a consumer insists on.

use std::collections::HashMap;

use super::{Link, Plan, TakenBack};

/// xorshift: the runs must be the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A buffer that an instance reads: from all producers, or from those it merges one by one.
struct Input {
    buffer: usize,
    ordered: bool,
    producers: Vec<usize>,
}

/// A buffer that an instance fills; every reading pipeline gets each row in one of its instances.
struct Output {
    buffer: usize,
    readers: Vec<Vec<usize>>,
}

#[derive(Default)]
struct Instance {
    /// Those that must have ended before it starts.
    after: Vec<usize>,
    /// Those that must have ended before it reads: they collect what its filters are made of.
    filters: Vec<usize>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    started: bool,
    ended: bool,
    /// Rows it makes itself, if it has no input.
    rows_left: usize,
    /// The input, and for an ordered one the producer, it insists on.
    insists_on: Option<(usize, Option<usize>)>,
    /// Outputs it has yet to push the current row to.
    to_push: Vec<usize>,
    /// The buffer it waits for room in.
    wants_room: Option<usize>,
    /// Where most of its rows go.
    favourite: usize,
}

struct Simulation<'a> {
    instances: Vec<Instance>,
    taken: &'a TakenBack,
    ordered: Vec<bool>,
    /// Rows in buffers, by buffer, producer and consumer.
    rows: HashMap<(usize, usize, usize), usize>,
    random: Random,
}

/// Runs `plan` until all instances ended, or tells who is stuck.
pub(super) fn simulate(plan: &Plan, taken: &TakenBack, seed: u64) -> Result<(), String> {
    let mut run = Simulation::new(plan, taken, seed);
    loop {
        let count = run.instances.len();
        let first = run.random.below(count);
        // Some run far ahead, others hardly at all.
        let moved = (0..count).any(|offset| {
            let who = (first + offset) % count;
            let steps = 1 + run.random.below(8);
            (0..steps).filter(|_| run.step(who)).count() > 0
        });
        if run.instances.iter().all(|instance| instance.ended) {
            return Ok(());
        }
        if !moved {
            return Err(run.stuck());
        }
    }
}

impl<'a> Simulation<'a> {
    fn new(plan: &Plan, taken: &'a TakenBack, seed: u64) -> Self {
        let mut this = Self {
            instances: Vec::new(),
            taken,
            ordered: vec![false; plan.buffers],
            rows: HashMap::new(),
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        };
        let pipelines: Vec<Vec<usize>> =
            plan.instances.iter().map(|&count| this.add(count)).collect();
        let mut filters = 0;
        for link in &plan.links {
            match *link {
                Link::Breaker { producer, consumer } => {
                    this.start_after(&pipelines[consumer], &pipelines[producer]);
                }
                Link::Buffer { producer, consumer, buffer, ordered } => {
                    this.connect(&pipelines[producer], &pipelines[consumer], buffer, ordered);
                }
                Link::Partitions { producer, partitions, buffer } => {
                    let readers = this.add(partitions);
                    this.connect(&pipelines[producer], &readers, buffer, false);
                    for (place, reader) in readers.iter().enumerate() {
                        this.start_after(&[*reader], &readers[..place]);
                    }
                }
                Link::Filter { build, scan } => {
                    if !taken.filters[filters] {
                        for &instance in &pipelines[scan] {
                            this.instances[instance].filters.extend(&pipelines[build]);
                        }
                    }
                    filters += 1;
                }
            }
        }
        for instance in &mut this.instances {
            instance.favourite = this.random.below(6);
            instance.rows_left = 8;
        }
        this
    }

    fn add(&mut self, count: usize) -> Vec<usize> {
        let first = self.instances.len();
        self.instances.resize_with(first + count, Instance::default);
        (first..first + count).collect()
    }

    fn start_after(&mut self, later: &[usize], earlier: &[usize]) {
        for &instance in later {
            self.instances[instance].after.extend(earlier);
        }
    }

    fn connect(&mut self, producers: &[usize], consumers: &[usize], buffer: usize, ordered: bool) {
        self.ordered[buffer] = ordered;
        for &producer in producers {
            let outputs = &mut self.instances[producer].outputs;
            match outputs.iter_mut().find(|output| output.buffer == buffer) {
                Some(output) => output.readers.push(consumers.to_vec()),
                None => outputs.push(Output { buffer, readers: vec![consumers.to_vec()] }),
            }
        }
        for &consumer in consumers {
            let inputs = &mut self.instances[consumer].inputs;
            match inputs.iter_mut().find(|input| input.buffer == buffer) {
                Some(input) => input.producers.extend(producers),
                None => inputs.push(Input { buffer, ordered, producers: producers.to_vec() }),
            }
        }
    }

    fn is_full(&self, buffer: usize, producer: usize) -> bool {
        let counts = |&(at, from, _): &(usize, usize, usize)| {
            at == buffer && (!self.ordered[buffer] || from == producer)
        };
        let held = self.rows.iter().any(|(key, &rows)| rows > 0 && counts(key));
        held && !self.taken.buffers[buffer]
    }

    /// Lets instance `who` do one thing. `false` if it cannot.
    fn step(&mut self, who: usize) -> bool {
        let instance = &self.instances[who];
        if instance.ended {
            return false;
        }
        if !instance.started {
            let may = instance.after.iter().all(|&other| self.instances[other].ended);
            self.instances[who].started = may;
            return may;
        }
        if !instance.filters.iter().all(|&other| self.instances[other].ended) {
            return false;
        }
        if let Some(buffer) = instance.wants_room {
            if self.is_full(buffer, who) {
                return false;
            }
            self.instances[who].wants_room = None;
            return true;
        }
        if let Some(output) = self.instances[who].to_push.pop() {
            self.push(who, output);
            return true;
        }
        if self.instances[who].inputs.is_empty() {
            let left = &mut self.instances[who].rows_left;
            if *left == 0 {
                self.instances[who].ended = true;
            } else {
                *left -= 1;
                self.emit(who);
            }
            return true;
        }
        self.read(who)
    }

    /// Takes a row from the input it insists on; picks one if it does not yet.
    fn read(&mut self, who: usize) -> bool {
        let Some((input, producer)) = self.instances[who].insists_on else {
            let open = self.open_inputs(who);
            if open.is_empty() {
                self.instances[who].ended = true;
            } else {
                let chosen = open[self.random.below(open.len())];
                self.instances[who].insists_on = Some(chosen);
            }
            return true;
        };
        let Input { buffer, ref producers, .. } = self.instances[who].inputs[input];
        let froms = producers.iter().copied().filter(|&from| producer.is_none_or(|p| p == from));
        let with_rows: Vec<usize> = froms
            .filter(|&from| self.rows.get(&(buffer, from, who)).is_some_and(|&n| n > 0))
            .collect();
        if with_rows.is_empty() {
            let over = !self.open_inputs(who).contains(&(input, producer));
            if over {
                self.instances[who].insists_on = None;
            }
            return over;
        }
        let from = with_rows[self.random.below(with_rows.len())];
        *self.rows.entry((buffer, from, who)).or_default() -= 1;
        self.instances[who].insists_on = None;
        self.emit(who);
        true
    }

    /// What an instance may still wait for.
    fn open_inputs(&self, who: usize) -> Vec<(usize, Option<usize>)> {
        let mut open = Vec::new();
        for (place, input) in self.instances[who].inputs.iter().enumerate() {
            let is_open = |&&from: &&usize| {
                !self.instances[from].ended
                    || self.rows.get(&(input.buffer, from, who)).is_some_and(|&rows| rows > 0)
            };
            let producers: Vec<usize> = input.producers.iter().filter(is_open).copied().collect();
            if input.ordered {
                open.extend(producers.iter().map(|&producer| (place, Some(producer))));
            } else if !producers.is_empty() {
                open.push((place, None));
            }
        }
        open
    }

    /// Decides to which outputs the current row goes.
    fn emit(&mut self, who: usize) {
        let outputs = self.instances[who].outputs.len();
        let chosen = (0..outputs).filter(|_| !self.random.one_in(5)).collect();
        self.instances[who].to_push = chosen;
    }

    fn push(&mut self, who: usize, output: usize) {
        let Output { buffer, ref readers } = self.instances[who].outputs[output];
        let mut to = Vec::new();
        for readers in readers {
            let favourite = !self.random.one_in(4);
            let place =
                if favourite { self.instances[who].favourite } else { self.random.below(6) };
            to.push(readers[place % readers.len()]);
        }
        for reader in to {
            *self.rows.entry((buffer, who, reader)).or_default() += 1;
        }
        if self.is_full(buffer, who) {
            self.instances[who].wants_room = Some(buffer);
        }
    }

    fn stuck(&self) -> String {
        let stuck = self.instances.iter().enumerate().filter(|(_, instance)| !instance.ended);
        let say = |(who, instance): (usize, &Instance)| match (instance, instance.wants_room) {
            (Instance { started: false, after, .. }, _) => format!("{who} starts after {after:?}"),
            (_, Some(buffer)) => format!("{who} wants room in {buffer}"),
            (Instance { insists_on: None, filters, .. }, _) => format!("{who} after {filters:?}"),
            _ => format!("{who} wants data of {:?}", instance.insists_on),
        };
        stuck.map(say).collect::<Vec<_>>().join(", ")
    }
}
