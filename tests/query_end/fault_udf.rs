//! The SQL function `fuse`: it returns its argument. At a chosen call it fails, panics, or blocks
//! its task until the test resumes it.

use std::{
    panic,
    sync::{
        Arc, Barrier, Mutex, Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arrow::datatypes::DataType;
use datafusion::{
    common::exec_err,
    error::Result,
    logical_expr::{ColumnarValue, Volatility, create_udf},
    prelude::SessionContext,
};

/// Error text of the function.
pub(crate) const MESSAGE: &str = "fault injected by `fuse`";

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Error,
    Panic,
    /// The call blocks until the test resumes it.
    Hold,
}

/// State of the function `fuse`.
pub(crate) struct FaultUdf {
    calls: AtomicUsize,
    /// The chosen call, counted from 1; 0 for none.
    pub(crate) at: AtomicUsize,
    kind: Mutex<FaultKind>,
    triggered: AtomicBool,
    /// Barriers of the call and the test: the call is reached, and the call is resumed.
    pub(crate) reached: Barrier,
    pub(crate) resumed: Barrier,
}

impl FaultUdf {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            at: AtomicUsize::new(0),
            kind: Mutex::new(FaultKind::Error),
            triggered: AtomicBool::new(false),
            reached: Barrier::new(2),
            resumed: Barrier::new(2),
        })
    }

    /// Chooses the fault and its call; restarts counting.
    pub(crate) fn set(&self, kind: FaultKind, at: usize) {
        *self.kind.lock().unwrap() = kind;
        self.at.store(at, Ordering::SeqCst);
        self.triggered.store(false, Ordering::SeqCst);
        self.calls.store(0, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn was_triggered(&self) -> bool {
        self.triggered.load(Ordering::SeqCst)
    }

    pub(crate) fn call(&self) -> Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call != self.at.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.triggered.store(true, Ordering::SeqCst);
        let kind = *self.kind.lock().unwrap();
        match kind {
            FaultKind::Error => exec_err!("{MESSAGE}"),
            FaultKind::Panic => panic!("{MESSAGE}"),
            FaultKind::Hold => {
                self.reached.wait();
                self.resumed.wait();
                Ok(())
            }
        }
    }
}

/// Keeps expected panics out of the test's output.
pub(crate) fn mute_expected_panics() {
    static MUTED: Once = Once::new();
    MUTED.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.payload_as_str().is_none_or(|message| message != MESSAGE) {
                report(info);
            }
        }));
    });
}

/// Registers `fuse` in `session`.
pub(crate) fn register_fault_udf(session: &SessionContext, fault: &Arc<FaultUdf>) {
    let fault_udf = fault.clone();
    let call = move |arguments: &[ColumnarValue]| {
        fault_udf.call()?;
        Ok(arguments[0].clone())
    };
    let int = DataType::Int64;
    let udf = create_udf("fuse", vec![int.clone()], int, Volatility::Immutable, Arc::new(call));
    session.register_udf(udf);
}
