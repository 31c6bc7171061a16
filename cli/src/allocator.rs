//! The program's allocator.
//!
//! Batches come and go by the thousand. The system's allocator returns the pages of large ones at
//! once, and mimalloc after 10 ms; each time the kernel clears the pages that come back. Over the 22
//! queries at scale factor 1, that was a sixth of all processor time.

use std::ffi::c_long;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header, in its versions 2 and 3.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const MILLISECONDS: c_long = 1000;

/// Returns free pages to the system after a second.
#[expect(unsafe_code, reason = "the option has no safe interface")]
pub(crate) fn keep_pages() {
    // SAFETY: mimalloc wants options to be set by one thread at a time, and no other runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS) }
}
