//! gatework
