//! The gate: what each hook does. Left out of the host's build and of the one that `cargo xtask bench` compares with.

mod behaviour;
mod call;
mod count;
mod delegate;
mod entry;
mod event;
mod exec;
mod far;
mod fmod;
mod guard;
mod hook;
mod identity;
mod kernel;
mod lsm;
mod maps;
mod mark;
mod moves;
mod near;
mod packet;
mod passed;
mod pids;
mod protect;
mod reach;
mod socket;
mod tasks;
mod tools;
