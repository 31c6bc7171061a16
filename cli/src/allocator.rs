//! The program's allocator.
//!
//! Batches come and go by the thousand. The system's allocator returns the pages of large ones at
//! once, and mimalloc after 10 ms to 100 ms; each time the kernel clears the pages that come back. Over
//! the 22 queries at scale factor 1, that was a sixth of all processor time. Who sets a memory limit pays
//! it: free pages that are kept count as memory of the process.

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header, in its version 3: milliseconds.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// `mi_option_arena_purge_mult`: how much longer it is for memory that all threads share.
const ARENA_PURGE_MULT: libmimalloc_sys::mi_option_t = 24;

/// Returns free pages to the system after a second; or soon, if memory is `limited`.
pub(crate) fn keep_pages(limited: bool) {
    if limited {
        set(ARENA_PURGE_MULT, 1);
    } else {
        set(PURGE_DELAY, 1000);
    }
}

#[expect(unsafe_code, reason = "options have no safe interface")]
fn set(option: libmimalloc_sys::mi_option_t, value: c_long) {
    // SAFETY: mimalloc wants options to be set by one thread at a time, and no other runs yet.
    unsafe { libmimalloc_sys::mi_option_set(option, value) }
}
