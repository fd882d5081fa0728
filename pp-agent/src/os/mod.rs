//! The operating system apart from `bpf(2)`: processes, sockets, mounts, namespaces, the host.

#![allow(unsafe_code, reason = "system calls that no library offers safely; each has its SAFETY line")]

pub(crate) mod accounts;
pub(crate) mod diag;
pub mod host;
pub mod isolation;
pub(crate) mod listeners;
pub mod mounts;
pub(crate) mod namespaces;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod sockets;
pub(crate) mod terminal;
