//! The eight tables: their names, sizes and generators.

use arrow::record_batch::RecordBatchReader;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

/// Suppliers per part.
const SUPPLIERS_PER_PART: i64 = 4;

/// Average line items per order; the exact number is known only after generation.
const LINES_PER_ORDER: i64 = 4;

/// A table of TPC-H.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Lineitem,
    Orders,
    Partsupp,
    Customer,
    Part,
    Supplier,
    Nation,
    Region,
}

impl Table {
    /// All tables, the largest first.
    pub(super) const ALL: [Self; 8] = [
        Self::Lineitem,
        Self::Orders,
        Self::Partsupp,
        Self::Customer,
        Self::Part,
        Self::Supplier,
        Self::Nation,
        Self::Region,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lineitem => "lineitem",
            Self::Orders => "orders",
            Self::Partsupp => "partsupp",
            Self::Customer => "customer",
            Self::Part => "part",
            Self::Supplier => "supplier",
            Self::Nation => "nation",
            Self::Region => "region",
        }
    }

    /// The approximate number of rows.
    pub(super) fn rows(self, scale: f64) -> i64 {
        match self {
            Self::Lineitem => LINES_PER_ORDER * OrderGenerator::calculate_row_count(scale, 1, 1),
            Self::Orders => OrderGenerator::calculate_row_count(scale, 1, 1),
            Self::Partsupp => SUPPLIERS_PER_PART * PartGenerator::calculate_row_count(scale, 1, 1),
            Self::Customer => CustomerGenerator::calculate_row_count(scale, 1, 1),
            Self::Part => PartGenerator::calculate_row_count(scale, 1, 1),
            Self::Supplier => SupplierGenerator::calculate_row_count(scale, 1, 1),
            Self::Nation => 25,
            Self::Region => 5,
        }
    }

    /// Whether [`rows`](Self::rows) is exact and grows with the scale, so that it determines the
    /// scale of a file.
    pub(super) fn tells_scale(self) -> bool {
        matches!(self, Self::Orders | Self::Partsupp | Self::Customer | Self::Part | Self::Supplier)
    }

    /// The rows of part number `part` of `parts`, from 1.
    pub(super) fn reader(self, scale: f64, part: i32, parts: i32) -> Box<dyn RecordBatchReader> {
        match self {
            Self::Lineitem => {
                Box::new(LineItemArrow::new(LineItemGenerator::new(scale, part, parts)))
            }
            Self::Orders => Box::new(OrderArrow::new(OrderGenerator::new(scale, part, parts))),
            Self::Partsupp => {
                Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts)))
            }
            Self::Customer => {
                Box::new(CustomerArrow::new(CustomerGenerator::new(scale, part, parts)))
            }
            Self::Part => Box::new(PartArrow::new(PartGenerator::new(scale, part, parts))),
            Self::Supplier => {
                Box::new(SupplierArrow::new(SupplierGenerator::new(scale, part, parts)))
            }
            Self::Nation => Box::new(NationArrow::new(NationGenerator::new(scale, part, parts))),
            Self::Region => Box::new(RegionArrow::new(RegionGenerator::new(scale, part, parts))),
        }
    }
}
