//! What the operating system is asked outside `bpf(2)`: processes, sockets, mounts, namespaces, the host.

#![allow(unsafe_code, reason = "system calls that no library offers safely; each has its SAFETY line")]

pub mod diag;
pub mod host;
pub mod mounts;
pub mod namespaces;
pub(crate) mod netlink;
pub mod netns;
pub mod peer;
pub mod process;
pub mod sockets;
