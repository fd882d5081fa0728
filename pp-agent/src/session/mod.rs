//! Sessions of processes that already run: marking them, and letting them go.

pub(crate) mod adopt;
mod released;

pub(crate) use released::Released;
