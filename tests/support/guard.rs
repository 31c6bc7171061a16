//! A case that exceeds a time limit fails, and reports what it hangs on.

use std::{
    any::Any,
    fmt::Write as _,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use datafusion::physical_plan::{ExecutionPlan, displayable};

/// Limit of one case, not of a whole test: large enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

enum Message {
    Case(String),
    Plan(Arc<dyn ExecutionPlan>),
    Dump(Dump),
    Ended(Result<(), Box<dyn Any + Send>>),
}

/// Describes what a query does.
type Dump = Box<dyn Fn() -> String + Send>;

/// Reports the current case to the guard.
#[derive(Clone)]
pub(crate) struct Case(Sender<Message>);

impl Case {
    /// Starts a case.
    pub(crate) fn begin(&self, name: impl Into<String>) {
        let _nobody_listens = self.0.send(Message::Case(name.into()));
    }

    /// Reports a running query that `dump` describes.
    pub(crate) fn watch_by(&self, dump: impl Fn() -> String + Send + 'static) {
        let _nobody_listens = self.0.send(Message::Dump(Box::new(dump)));
    }

    /// Reports a plan that is about to be executed.
    pub(crate) fn watch(&self, plan: &Arc<dyn ExecutionPlan>) {
        let _nobody_listens = self.0.send(Message::Plan(plan.clone()));
    }
}

/// Runs `body` in a thread of its own, with an async runtime; fails if a case takes too long.
pub(crate) fn guarded<F, R>(body: F)
where
    F: FnOnce(Case) -> R + Send + 'static,
    R: Future<Output = ()>,
{
    let (sender, receiver) = mpsc::channel();
    let case = Case(sender.clone());
    thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.unwrap().block_on(body(case));
        }));
        let _nobody_waits = sender.send(Message::Ended(result));
    });
    let (mut case, mut plans) = (String::from("setting up"), Vec::new());
    let mut dump: Option<Dump> = None;
    loop {
        match receiver.recv_timeout(LIMIT) {
            Ok(Message::Case(name)) => {
                case = name;
                plans.clear();
                dump = None;
            }
            Ok(Message::Dump(newer)) => dump = Some(newer),
            Ok(Message::Plan(plan)) => {
                // The latest plans suffice; a sweep executes hundreds in one case.
                plans.truncate(3);
                plans.insert(0, plan);
            }
            Ok(Message::Ended(Ok(()))) => return,
            Ok(Message::Ended(Err(panic))) => {
                eprintln!("failed in: {case}");
                resume_unwind(panic);
            }
            Err(_) => {
                let dump = dump.map_or_else(String::new, |dump| dump());
                panic!("hangs: {case}\n{}{dump}", report(&plans));
            }
        }
    }
}

fn report(plans: &[Arc<dyn ExecutionPlan>]) -> String {
    let mut text = String::new();
    for plan in plans {
        let _infallible = writeln!(text, "{}", displayable(plan.as_ref()).indent(false));
        let dump = gatework::query(plan).map(|query| query.dump());
        text.push_str(dump.as_deref().unwrap_or("not being executed\n"));
    }
    text
}
