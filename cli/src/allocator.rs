//! The program's allocator.
//!
//! Batches come and go by the thousand. The system's allocator returns the pages of large ones at once, and the kernel clears
//! those that come back: over the 22 queries at scale factor 1, that was a sixth of all processor time. mimalloc keeps them
//! for a second, in huge pages where the system has some. Who sets a memory limit pays that: free pages that are kept, and
//! huge ones of which little is used, count as memory of the process. So it keeps them for a fortieth of that then, and has
//! no huge ones.

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header, in its version 3: milliseconds.
const PURGE_DELAY_OPTION: libmimalloc_sys::mi_option_t = 15;
const PURGE_DELAY_MS: c_long = 1000;
const PURGE_DELAY_IF_LIMITED_MS: c_long = 25;

/// How much is kept of what is free: less if memory is `limited`.
pub(crate) fn set_purge_delay(limited: bool) {
    set(PURGE_DELAY_OPTION, if limited { PURGE_DELAY_IF_LIMITED_MS } else { PURGE_DELAY_MS });
    if limited {
        without_huge_pages();
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "it has no safe interface")]
fn without_huge_pages() {
    // SAFETY: it takes numbers only. Where it is refused the process is somewhat larger.
    let _refused = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

#[cfg(not(target_os = "linux"))]
fn without_huge_pages() {}

/// Gives free pages back to the system, at once.
#[expect(unsafe_code, reason = "it has no safe interface")]
pub(crate) fn purge() {
    // SAFETY: any thread may call it at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[expect(unsafe_code, reason = "options have no safe interface")]
fn set(option: libmimalloc_sys::mi_option_t, value: c_long) {
    // SAFETY: mimalloc wants options to be set by one thread at a time, and no other runs yet.
    unsafe { libmimalloc_sys::mi_option_set(option, value) }
}
