//! Decoded values equal the written ones; malformed bytes do no harm.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod corrupt;
mod damaged;
mod pages;
mod sweep;
