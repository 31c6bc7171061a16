//! The program's allocator.
//!
//! Batches are allocated and freed by the thousand. The system's allocator returns the pages of
//! large ones at once, and the kernel zeroes them on the next use. Over the 22 queries at scale
//! factor 1, that took a sixth of all processor time. mimalloc keeps free pages for ten seconds, in
//! huge pages where the system has some: with one second, groups of many texts took a quarter
//! longer, since mimalloc returns all pages that are free when the time is over, also those that
//! the running query would use next. With a memory limit that counts: kept pages and sparsely used
//! huge pages are memory of the process. With a limit it therefore keeps them for 25 ms, and uses
//! no huge pages.

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header, in its version 3, in milliseconds.
const PURGE_DELAY_OPTION: libmimalloc_sys::mi_option_t = 15;
const PURGE_DELAY_MS: c_long = 10_000;
const PURGE_DELAY_IF_LIMITED_MS: c_long = 25;

/// Sets how long free pages are kept: shorter if memory is `limited`. Called once, at the start.
pub(crate) fn set_purge_delay(limited: bool) {
    set(PURGE_DELAY_OPTION, if limited { PURGE_DELAY_IF_LIMITED_MS } else { PURGE_DELAY_MS });
    if limited {
        without_huge_pages();
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the call has no safe interface")]
fn without_huge_pages() {
    // SAFETY: the call takes numbers only. If the kernel refuses it, the process is somewhat
    // larger.
    let _refused = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

#[cfg(not(target_os = "linux"))]
fn without_huge_pages() {}

/// Returns free pages to the system at once.
#[expect(unsafe_code, reason = "the call has no safe interface")]
pub(crate) fn purge() {
    // SAFETY: any thread may call `mi_collect` at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[expect(unsafe_code, reason = "options have no safe interface")]
fn set(option: libmimalloc_sys::mi_option_t, value: c_long) {
    // SAFETY: mimalloc requires that one thread at a time sets options, and no other thread runs
    // yet.
    unsafe { libmimalloc_sys::mi_option_set(option, value) }
}
