//! What kernel and user space agree on: the layout of map keys, values and
//! records, the folding of addresses, and [`decide::decide`], the only code
//! that decides. The same functions run in the eBPF programs, in the daemon's
//! `check` and `why`, and in the host's tests.

#![no_std]

pub mod abi;
pub mod behaviour;
mod codes;
pub mod decide;
pub mod delegate;
pub mod dest;
pub mod family;
pub mod line;
pub mod maps;
pub mod net_admin;
pub mod protect;
pub mod record;
pub mod tamper;
pub mod tools;
pub mod trouble;
pub mod turns;
