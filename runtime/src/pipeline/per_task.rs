//! One value per task of a pipeline; each task takes its own once.

use std::fmt;

use parking_lot::Mutex;

use super::{LocalOperator, LocalSink, LocalSource, Operator, OperatorContext, Sink, Source};
use crate::{Error, Result};

/// One value per task. An operator stores its shared-state tokens in it until its tasks take them.
/// Tokens that no task takes are dropped with the operator, which ends their protocol.
///
/// If the values are local states, it is the source, operator or sink itself. (If their creation
/// needs the task's context, for example to reserve memory, see
/// [`with_context`](Self::with_context).)
///
/// ```
/// use gatework_runtime::{Result, pipeline::*};
/// struct Numbers(std::ops::Range<u32>);
/// impl LocalSource for Numbers {
///     fn next(&mut self, _task: &DriverContext) -> Result<SourceResult> {
///         # let batch = |_| unreachable!();
///         Ok(self.0.next().map_or(SourceResult::Finished, |n| SourceResult::Batch(batch(n))))
///     }
/// }
/// let source = PerTask::new("numbers", [Numbers(0..10), Numbers(10..20)]); // for two tasks
/// assert_eq!(source.name(), "numbers");
/// ```
pub struct PerTask<T> {
    name: String,
    values: Mutex<Vec<Option<T>>>,
}

impl<T> PerTask<T> {
    /// Creates the container from one value per task, in order of `task_index`. `name` is the
    /// operator's name in profiles and errors.
    pub fn new(name: impl Into<String>, values: impl IntoIterator<Item = T>) -> Self {
        Self { name: name.into(), values: Mutex::new(values.into_iter().map(Some).collect()) }
    }

    /// Returns the operator's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the value of the task of `context`.
    ///
    /// # Errors
    /// If the value was taken already, or the pipeline's number of tasks differs from the number of
    /// values. In the latter case, rows for a task that does not exist would be lost.
    pub fn take(&self, context: &OperatorContext) -> Result<T> {
        let mut values = self.values.lock();
        let (made, tasks) = (values.len(), context.num_tasks());
        let value = values.get_mut(context.task_index()).filter(|_| made == tasks);
        value.and_then(Option::take).ok_or_else(|| {
            Error::InvalidConfiguration(format!(
                "{}: a shared state made for {made} tasks in a pipeline of {tasks}: make it for \
                 the pipeline's number of tasks, and use it in one pipeline only",
                self.name
            ))
        })
    }

    /// Returns a source, operator or sink whose tasks create their local states with `create`, from
    /// their value and their context.
    pub fn with_context<L, F>(self, create: F) -> PerTaskWithContext<T, F>
    where
        F: Fn(T, OperatorContext) -> Result<L> + Send + Sync,
    {
        PerTaskWithContext { values: self, create }
    }
}

impl<T> fmt::Debug for PerTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {} tasks", self.name, self.values.lock().len())
    }
}

/// A source, operator or sink made by [`PerTask::with_context`].
pub struct PerTaskWithContext<T, F> {
    values: PerTask<T>,
    create: F,
}

impl<T, F> fmt::Debug for PerTaskWithContext<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values.fmt(f)
    }
}

/// A source, operator or sink whose local states need nothing but their context.
struct FromFn<F> {
    name: String,
    create: F,
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Implements a role for values that are local states, for values from which they are created, and
/// for functions that create them.
macro_rules! role {
    ($role:ident, $local:ident, $(#[$doc:meta])* $from_fn:ident) => {
        impl<T: $local + 'static> $role for PerTask<T> {
            fn name(&self) -> &str {
                &self.name
            }

            fn local(&self, context: OperatorContext) -> Result<Box<dyn $local>> {
                Ok(Box::new(self.take(&context)?))
            }
        }

        impl<T: Send, L: $local + 'static, F> $role for PerTaskWithContext<T, F>
        where
            F: Fn(T, OperatorContext) -> Result<L> + Send + Sync,
        {
            fn name(&self) -> &str {
                &self.values.name
            }

            fn local(&self, context: OperatorContext) -> Result<Box<dyn $local>> {
                let value = self.values.take(&context)?;
                Ok(Box::new((self.create)(value, context)?))
            }
        }

        impl<L: $local + 'static, F> $role for FromFn<F>
        where
            F: Fn(OperatorContext) -> Result<L> + Send + Sync,
        {
            fn name(&self) -> &str {
                &self.name
            }

            fn local(&self, context: OperatorContext) -> Result<Box<dyn $local>> {
                Ok(Box::new((self.create)(context)?))
            }
        }

        $(#[$doc])*
        pub fn $from_fn<L: $local + 'static>(
            name: impl Into<String>,
            create: impl Fn(OperatorContext) -> Result<L> + Send + Sync + 'static,
        ) -> impl $role + 'static {
            FromFn { name: name.into(), create }
        }
    };
}

role! {
    Source, LocalSource,
    /// Returns a source whose tasks create their local states with `create`.
    source_from_fn
}
role! {
    Operator, LocalOperator,
    /// Returns an operator whose tasks create their local states with `create`.
    ///
    /// ```
    /// use gatework_runtime::{Result, pipeline::*};
    /// struct Pass;
    /// impl LocalOperator for Pass {
    ///     fn execute(
    ///         &mut self,
    ///         input: Option<Batch>,
    ///         _: &DriverContext,
    ///     ) -> Result<OperatorResult> {
    ///         Ok(input.map_or(OperatorResult::NeedInput, OperatorResult::Batch))
    ///     }
    /// }
    /// let operator = operator_from_fn("pass", |_context| Ok(Pass));
    /// assert_eq!(operator.name(), "pass");
    /// ```
    operator_from_fn
}
role! {
    Sink, LocalSink,
    /// Returns a sink whose tasks create their local states with `create`.
    sink_from_fn
}
