//! The pool that refuses memory by a seed.

use gatework_runtime::pipeline::MemoryPool;

use crate::harness::Moody;

/// A hash partition that is refused memory at every level makes its query fail, which a test of
/// short memory must not.
#[test]
fn a_moody_pool_refuses_some_requests_and_never_many_in_a_row() {
    const WINDOW: usize = 16;
    for seed in 0..100 {
        let pool = Moody::new(seed);
        let refused: Vec<bool> = (0..400).map(|_| pool.try_grow("a test", 1).is_err()).collect();
        let count = |window: &[bool]| window.iter().filter(|refused| **refused).count();
        assert!(refused.windows(WINDOW).all(|window| count(window) <= 4), "{refused:?}");
        assert!(count(&refused) >= 50, "{refused:?}");
        assert_eq!(pool.reserved(), 400 - count(&refused));
    }
}
