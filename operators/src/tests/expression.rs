//! Expression made from a closure, so that a test sees its inputs.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::{DataType, Schema},
};
use datafusion_common::Result;
use datafusion_expr::ColumnarValue;
use datafusion_physical_expr::{PhysicalExpr, expressions::Column};

type Evaluate = dyn Fn(&RecordBatch) -> Result<ArrayRef> + Send + Sync;

pub(super) struct Watched {
    kind: DataType,
    volatile: bool,
    children: Vec<Arc<dyn PhysicalExpr>>,
    evaluate: Arc<Evaluate>,
}

/// Creates an expression over `columns` with values of type `kind`.
pub(super) fn watched(
    kind: DataType,
    columns: &[usize],
    evaluate: impl Fn(&RecordBatch) -> Result<ArrayRef> + Send + Sync + 'static,
) -> Arc<dyn PhysicalExpr> {
    let children = columns.iter().map(|column| Arc::new(Column::new("c", *column)) as _);
    let (children, evaluate) = (children.collect(), Arc::new(evaluate));
    Arc::new(Watched { kind, volatile: false, children, evaluate })
}

/// Creates a volatile expression that returns `value` of 0, 1, 2 and so on, and a counter of its
/// values.
pub(super) fn draws(value: fn(i64) -> i64) -> (Arc<AtomicI64>, Arc<dyn PhysicalExpr>) {
    let drawn = Arc::new(AtomicI64::new(0));
    let next = drawn.clone();
    let evaluate = move |rows: &RecordBatch| -> Result<ArrayRef> {
        let count = rows.num_rows() as i64;
        let first = next.fetch_add(count, Ordering::Relaxed);
        Ok(Arc::new(Int64Array::from_iter_values((first..first + count).map(value))))
    };
    let (kind, evaluate) = (DataType::Int64, Arc::new(evaluate));
    let draws = Watched { kind, volatile: true, children: Vec::new(), evaluate };
    (drawn, Arc::new(draws))
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "watched")
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "watched")
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.evaluate, &other.evaluate)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

impl PhysicalExpr for Watched {
    fn data_type(&self, _input: &Schema) -> Result<DataType> {
        Ok(self.kind.clone())
    }

    fn nullable(&self, _input: &Schema) -> Result<bool> {
        Ok(true)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Array((self.evaluate)(batch)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.children.iter().collect()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let (kind, evaluate) = (self.kind.clone(), self.evaluate.clone());
        Ok(Arc::new(Self { kind, volatile: self.volatile, children, evaluate }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }

    fn is_volatile_node(&self) -> bool {
        self.volatile
    }
}
