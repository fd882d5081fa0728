//! pp-agent refuses, in the kernel, connections of AI agents' processes to
//! industrial equipment until a person has signed a receipt for them.

#![deny(unsafe_code)]

pub mod api;
pub mod cli;
pub mod clock;
mod compiled;
pub mod config;
pub mod confine;
pub mod control;
pub mod daemon;
mod database;
pub mod delegates;
pub mod draft;
pub mod escape;
pub mod events;
pub mod flows;
#[cfg(test)]
#[path = "../../tests/src/golden.rs"]
pub mod golden;
pub mod guarded;
pub mod identity;
pub mod journal;
mod json;
pub mod kernel;
pub mod keyring;
pub mod metrics;
pub mod name;
pub mod neighbours;
pub mod net;
pub mod notify;
pub mod os;
pub mod policy;
pub mod probe;
pub mod receipt;
pub mod services;
pub mod session;
pub mod state;
pub mod suggest;
pub mod tools;
pub mod trusted;
