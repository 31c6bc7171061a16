//! A token simulation of a plan: tasks with one-slot buffers, and an adversary. The adversary picks
//! the task that steps next, where rows go, and the input that a consumer insists on.

use std::collections::HashMap;

use super::{DroppedWaits, Link, Plan};

/// xorshift: the runs must be the same on every machine.
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

/// A buffer that a task reads: from all producers, or from those it merges one by one.
struct Input {
    buffer: usize,
    ordered: bool,
    producers: Vec<usize>,
}

/// A buffer that a task fills; each reading pipeline gets each row in one of its tasks.
struct Output {
    buffer: usize,
    readers: Vec<Vec<usize>>,
}

#[derive(Default)]
struct Task {
    /// Tasks that must have ended before this one starts.
    after: Vec<usize>,
    /// Tasks that must have ended before this one reads: they collect the build sides of its
    /// filters.
    filters: Vec<usize>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    started: bool,
    ended: bool,
    /// The number of rows that a task without input still emits.
    rows_left: usize,
    /// The input that the task insists on, and its producer if the input is ordered.
    insists_on: Option<(usize, Option<usize>)>,
    /// Outputs to which the current row must still be pushed.
    to_push: Vec<usize>,
    /// The buffer whose capacity the task waits for.
    awaited_buffer: Option<usize>,
    /// The reader that gets most of the task's rows.
    favourite: usize,
}

struct Simulation<'a> {
    tasks: Vec<Task>,
    dropped_waits: &'a DroppedWaits,
    ordered: Vec<bool>,
    /// Rows in buffers, by buffer, producer and consumer.
    rows: HashMap<(usize, usize, usize), usize>,
    random: Random,
}

/// Runs `plan` until all tasks have ended; an error describes the stuck tasks.
pub(super) fn simulate(plan: &Plan, dropped_waits: &DroppedWaits, seed: u64) -> Result<(), String> {
    let mut run = Simulation::new(plan, dropped_waits, seed);
    loop {
        let count = run.tasks.len();
        let first = run.random.below(count);
        // Some tasks run far ahead, others hardly at all.
        let moved = (0..count).any(|offset| {
            let task = (first + offset) % count;
            let steps = 1 + run.random.below(8);
            (0..steps).filter(|_| run.step(task)).count() > 0
        });
        if run.tasks.iter().all(|task| task.ended) {
            return Ok(());
        }
        if !moved {
            return Err(run.stuck());
        }
    }
}

impl<'a> Simulation<'a> {
    fn new(plan: &Plan, dropped_waits: &'a DroppedWaits, seed: u64) -> Self {
        let mut this = Self {
            tasks: Vec::new(),
            dropped_waits,
            ordered: vec![false; plan.buffers],
            rows: HashMap::new(),
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        };
        let pipelines: Vec<Vec<usize>> =
            plan.num_tasks.iter().map(|&count| this.add(count)).collect();
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
                    for (index, reader) in readers.iter().enumerate() {
                        this.start_after(&[*reader], &readers[..index]);
                    }
                }
                Link::Filter { build, scan } => {
                    if !dropped_waits.filters[filters] {
                        for &task in &pipelines[scan] {
                            this.tasks[task].filters.extend(&pipelines[build]);
                        }
                    }
                    filters += 1;
                }
            }
        }
        for task in &mut this.tasks {
            task.favourite = this.random.below(6);
            task.rows_left = 8;
        }
        this
    }

    fn add(&mut self, count: usize) -> Vec<usize> {
        let first = self.tasks.len();
        self.tasks.resize_with(first + count, Task::default);
        (first..first + count).collect()
    }

    fn start_after(&mut self, later: &[usize], earlier: &[usize]) {
        for &task in later {
            self.tasks[task].after.extend(earlier);
        }
    }

    fn connect(&mut self, producers: &[usize], consumers: &[usize], buffer: usize, ordered: bool) {
        self.ordered[buffer] = ordered;
        for &producer in producers {
            let outputs = &mut self.tasks[producer].outputs;
            match outputs.iter_mut().find(|output| output.buffer == buffer) {
                Some(output) => output.readers.push(consumers.to_vec()),
                None => outputs.push(Output { buffer, readers: vec![consumers.to_vec()] }),
            }
        }
        for &consumer in consumers {
            let inputs = &mut self.tasks[consumer].inputs;
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
        let has_rows = self.rows.iter().any(|(key, &rows)| rows > 0 && counts(key));
        has_rows && !self.dropped_waits.buffers[buffer]
    }

    /// Lets a task take one step. Returns `false` if it cannot.
    fn step(&mut self, task_index: usize) -> bool {
        let task = &self.tasks[task_index];
        if task.ended {
            return false;
        }
        if !task.started {
            let can_start = task.after.iter().all(|&other| self.tasks[other].ended);
            self.tasks[task_index].started = can_start;
            return can_start;
        }
        if !task.filters.iter().all(|&other| self.tasks[other].ended) {
            return false;
        }
        if let Some(buffer) = task.awaited_buffer {
            if self.is_full(buffer, task_index) {
                return false;
            }
            self.tasks[task_index].awaited_buffer = None;
            return true;
        }
        if let Some(output) = self.tasks[task_index].to_push.pop() {
            self.push(task_index, output);
            return true;
        }
        if self.tasks[task_index].inputs.is_empty() {
            let left = &mut self.tasks[task_index].rows_left;
            if *left == 0 {
                self.tasks[task_index].ended = true;
            } else {
                *left -= 1;
                self.emit(task_index);
            }
            return true;
        }
        self.read(task_index)
    }

    /// Takes a row from the input that the task insists on; picks an input if there is none yet.
    fn read(&mut self, task_index: usize) -> bool {
        let Some((input, producer)) = self.tasks[task_index].insists_on else {
            let open = self.open_inputs(task_index);
            if open.is_empty() {
                self.tasks[task_index].ended = true;
            } else {
                let chosen = open[self.random.below(open.len())];
                self.tasks[task_index].insists_on = Some(chosen);
            }
            return true;
        };
        let Input { buffer, ref producers, .. } = self.tasks[task_index].inputs[input];
        let froms = producers.iter().copied().filter(|&from| producer.is_none_or(|p| p == from));
        let with_rows: Vec<usize> = froms
            .filter(|&from| self.rows.get(&(buffer, from, task_index)).is_some_and(|&n| n > 0))
            .collect();
        if with_rows.is_empty() {
            let ended = !self.open_inputs(task_index).contains(&(input, producer));
            if ended {
                self.tasks[task_index].insists_on = None;
            }
            return ended;
        }
        let from = with_rows[self.random.below(with_rows.len())];
        *self.rows.entry((buffer, from, task_index)).or_default() -= 1;
        self.tasks[task_index].insists_on = None;
        self.emit(task_index);
        true
    }

    /// Returns the inputs that a task may still wait for.
    fn open_inputs(&self, task_index: usize) -> Vec<(usize, Option<usize>)> {
        let mut open = Vec::new();
        for (index, input) in self.tasks[task_index].inputs.iter().enumerate() {
            let is_open = |&&from: &&usize| {
                !self.tasks[from].ended
                    || self
                        .rows
                        .get(&(input.buffer, from, task_index))
                        .is_some_and(|&rows| rows > 0)
            };
            let producers: Vec<usize> = input.producers.iter().filter(is_open).copied().collect();
            if input.ordered {
                open.extend(producers.iter().map(|&producer| (index, Some(producer))));
            } else if !producers.is_empty() {
                open.push((index, None));
            }
        }
        open
    }

    /// Picks the outputs that get the current row.
    fn emit(&mut self, task_index: usize) {
        let outputs = self.tasks[task_index].outputs.len();
        let chosen = (0..outputs).filter(|_| !self.random.one_in(5)).collect();
        self.tasks[task_index].to_push = chosen;
    }

    fn push(&mut self, task_index: usize, output: usize) {
        let Output { buffer, ref readers } = self.tasks[task_index].outputs[output];
        let mut to = Vec::new();
        for readers in readers {
            let favourite = !self.random.one_in(4);
            let index =
                if favourite { self.tasks[task_index].favourite } else { self.random.below(6) };
            to.push(readers[index % readers.len()]);
        }
        for reader in to {
            *self.rows.entry((buffer, task_index, reader)).or_default() += 1;
        }
        if self.is_full(buffer, task_index) {
            self.tasks[task_index].awaited_buffer = Some(buffer);
        }
    }

    fn stuck(&self) -> String {
        let stuck = self.tasks.iter().enumerate().filter(|(_, task)| !task.ended);
        let say = |(who, task): (usize, &Task)| match (task, task.awaited_buffer) {
            (Task { started: false, after, .. }, _) => format!("{who} starts after {after:?}"),
            (_, Some(buffer)) => format!("{who} waits for capacity in {buffer}"),
            (Task { insists_on: None, filters, .. }, _) => format!("{who} after {filters:?}"),
            _ => format!("{who} waits for data of {:?}", task.insists_on),
        };
        stuck.map(say).collect::<Vec<_>>().join(", ")
    }
}
