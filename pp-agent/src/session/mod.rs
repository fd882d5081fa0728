//! Sessions of processes that already run: marking them, and letting them go.

pub mod adopt;
mod released;

pub use released::Released;
