//! pp-agent refuses, in the kernel, connections of AI agents' processes to
//! industrial equipment until a person has signed a receipt for them.

#![deny(unsafe_code)]

mod api;
mod causes;
pub mod cli;
mod clock;
mod compiled;
pub mod config;
mod confine;
mod control;
mod daemon;
mod database;
mod delegates;
mod escape;
mod events;
mod flows;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the suite has the same file as a public module")]
#[path = "../../tests/src/golden.rs"]
mod golden;
mod guarded;
mod helpers;
pub mod identity;
mod journal;
mod json;
pub mod kernel;
pub mod keyring;
mod matcher;
mod metrics;
pub mod name;
mod neighbours;
mod net;
mod notify;
pub mod os;
mod policy;
mod probe;
pub mod receipt;
mod recorded;
mod services;
mod session;
mod state;
mod tools;
pub mod trusted;
