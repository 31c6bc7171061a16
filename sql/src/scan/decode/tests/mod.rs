//! What is decoded equals what was written; what was not written by anybody does no harm.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod corrupt;
mod damaged;
mod pages;
mod sweep;
