//! Tests of the pool that denies reservations by a seed.

use gatework_runtime::pipeline::MemoryPool;

use crate::harness::RandomDenialPool;

/// A hash partition that is denied memory at every level makes its query fail, which must not
/// happen in tests with denied reservations.
#[test]
fn a_pool_denies_some_requests_and_never_many_in_a_row() {
    const WINDOW: usize = 16;
    for seed in 0..100 {
        let pool = RandomDenialPool::new(seed);
        let denied: Vec<bool> = (0..400).map(|_| pool.try_grow("a test", 1).is_err()).collect();
        let count = |window: &[bool]| window.iter().filter(|refused| **refused).count();
        assert!(denied.windows(WINDOW).all(|window| count(window) <= 4), "{denied:?}");
        assert!(count(&denied) >= 50, "{denied:?}");
        assert_eq!(pool.reserved(), 400 - count(&denied));
    }
}
