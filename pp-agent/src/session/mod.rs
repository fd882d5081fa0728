//! Sessions of processes that already run: marking and releasing them.

pub(crate) mod adopt;
mod released;

pub(crate) use released::Released;
