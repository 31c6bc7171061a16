//! The local states of a task, and how they are dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gatework_shared_state::Gate;
use smallvec::SmallVec;

use super::{LocalOperator, LocalSink, LocalSource};

/// The local states of a task; those that have ended are `None`.
#[derive(Default)]
pub(super) struct LocalStates {
    pub(super) source: Option<Box<dyn LocalSource>>,
    pub(super) operators: Vec<Option<Box<dyn LocalOperator>>>,
    pub(super) sink: Option<Box<dyn LocalSink>>,
    /// Whether each operator, and last the sink, has started.
    pub(super) started: Vec<bool>,
    /// Indices of the operators with more output for their current input, nearest to the source
    /// first.
    pub(super) has_more_stack: SmallVec<[usize; 4]>,
    /// The operator that is being flushed.
    pub(super) flushing: Option<usize>,
    /// Gates that become ready when operator `.0` wants no more input; the sink's index is last.
    pub(super) closed: SmallVec<[(usize, Gate); 1]>,
}

impl LocalStates {
    /// Drops the source and the operators through `index`, but never the sink, which must still
    /// finish.
    pub(super) fn drop_through(&mut self, index: usize) {
        self.source = None;
        self.closed.retain(|(closed, _)| *closed > index);
        self.has_more_stack.retain(|more| *more > index);
        for operator in self.operators.iter_mut().take(index + 1) {
            *operator = None;
        }
        for started in self.started.iter_mut().take(index + 1) {
            *started = true;
        }
    }

    /// Aborts and drops all local states, each separately, so that a panic in one spares the
    /// others.
    pub(super) fn abort(self) {
        let contained = |abort: &mut dyn FnMut()| {
            let _ = catch_unwind(AssertUnwindSafe(abort));
        };
        let mut sink = self.sink;
        contained(&mut || {
            if let Some(mut sink) = sink.take() {
                sink.abort();
            }
        });
        for mut operator in self.operators.into_iter().rev() {
            contained(&mut || {
                if let Some(mut operator) = operator.take() {
                    operator.abort();
                }
            });
        }
        let mut source = self.source;
        contained(&mut || {
            if let Some(mut source) = source.take() {
                source.abort();
            }
        });
    }
}
