//! Tests of the scope around the time slices of a query's tasks.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    operators::{Made, batch, numbers},
    *,
};
use crate::{
    hang_guard::guarded,
    pipeline::{DriverContext, LocalSource, OperatorContext, SliceScope, SourceResult},
};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Sets thread-local state during each slice, however the slice ends.
#[derive(Debug, Default)]
struct Here {
    slices: AtomicUsize,
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

impl SliceScope for Here {
    fn run(&self, slice: &mut dyn FnMut()) {
        self.slices.fetch_add(1, Ordering::SeqCst);
        DEPTH.set(DEPTH.get() + 1);
        let _leave = Leave;
        slice();
    }
}

/// Counts calls within the scope and outside it.
#[derive(Debug, Default)]
struct Seen {
    within: AtomicUsize,
    without: AtomicUsize,
}

impl Seen {
    fn look(&self) {
        let count = if DEPTH.get() == 1 { &self.within } else { &self.without };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// How a source ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finishes,
    Fails,
    Panics,
}

struct Looking {
    seen: Arc<Seen>,
    left: usize,
    end: End,
}

impl LocalSource for Looking {
    fn next(&mut self, _: &DriverContext) -> Result<SourceResult> {
        self.seen.look();
        self.left -= 1;
        match self.end {
            _ if self.left > 0 => Ok(SourceResult::Batch(batch([1]))),
            End::Finishes => Ok(SourceResult::Finished),
            End::Fails => Err(Error::operator("the source fails")),
            End::Panics => panic!("the source panics"),
        }
    }

    fn abort(&mut self) {
        self.seen.look();
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.seen.look();
    }
}

/// Dropped with the pipeline.
#[derive(Debug)]
struct Kept(Arc<Seen>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.look();
    }
}

fn looking(seen: &Arc<Seen>, end: End) -> Arc<dyn Source> {
    let kept = Kept(seen.clone());
    Made::<dyn LocalSource>::new("looking", move |_: OperatorContext| {
        kept.0.look();
        Ok(Box::new(Looking { seen: kept.0.clone(), left: 5, end }))
    })
}

fn scoped(scope: Arc<dyn SliceScope>) -> QueryOptions {
    QueryOptions {
        slice_scope: Some(scope),
        time_slice: std::time::Duration::ZERO,
        ..Default::default()
    }
}

#[test]
fn all_of_a_task_is_within_the_scope() {
    guarded(|guard| {
        let executor = executor(2);
        for end in [End::Finishes, End::Fails, End::Panics] {
            let (scope, seen) = (Arc::new(Here::default()), Arc::new(Seen::default()));
            let query = query_with(guard, &executor, scoped(scope.clone()));
            let source = looking(&seen, end);
            let stream = start_one(&query, &no_fault(), 1, source, vec![], 1).remove(0);
            match (end, rows(stream)) {
                (End::Finishes, Ok(rows)) => assert_eq!(rows, [1; 4]),
                (End::Fails, Err(error)) => assert_eq!(error.to_string(), "the source fails"),
                (End::Panics, Err(Error::Panic { message, .. })) => {
                    assert_eq!(message, "the source panics")
                }
                other => panic!("{other:?}"),
            }
            streams::wait(query.idle());
            // Creation, five steps, the abort if any, the drops of the local state and of the
            // pipeline.
            let abort = usize::from(end != End::Finishes);
            let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
            assert_eq!((of(&seen.within), of(&seen.without)), (8 + abort, 0), "{end:?}");
            assert!(of(&scope.slices) > 5, "one slice per step");
        }
    });
}

/// A fault of the scope itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    DoesNotRun,
    RunsTwice,
    Panics,
    Swallows,
}

impl SliceScope for Wrong {
    fn run(&self, slice: &mut dyn FnMut()) {
        match self {
            Self::DoesNotRun => {}
            Self::RunsTwice => {
                slice();
                slice();
            }
            Self::Panics => panic!("the scope panics"),
            Self::Swallows => {
                let _panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(slice));
            }
        }
    }
}

#[test]
fn a_scope_that_goes_wrong_is_the_querys_error() {
    guarded(|guard| {
        let executor = executor(2);
        let run = |wrong: Wrong, end: End| {
            let query = query_with(guard, &executor, scoped(Arc::new(wrong)));
            let source = looking(&Arc::default(), end);
            let answer = rows(start_one(&query, &no_fault(), 2, source, vec![], 1).remove(0));
            streams::wait(query.idle());
            answer.map_err(|error| error.to_string())
        };
        let never = "the scope around a time slice did not run it";
        assert_eq!(run(Wrong::DoesNotRun, End::Finishes).unwrap_err(), never);
        assert_eq!(run(Wrong::RunsTwice, End::Finishes).unwrap().len(), 8);
        assert!(run(Wrong::Panics, End::Finishes).unwrap_err().contains("the scope panics"));
        assert_eq!(run(Wrong::Swallows, End::Panics).unwrap_err(), never);
        // The executor still runs other queries.
        let other = query(guard, &executor);
        let stream = start_one(&other, &no_fault(), 2, numbers(3, 1), vec![], 1).remove(0);
        assert_eq!(rows(stream).unwrap(), [0, 0, 1, 1, 2, 2]);
    });
}
