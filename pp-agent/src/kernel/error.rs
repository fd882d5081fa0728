//! Errors between the daemon and the kernel.

use std::{io, path::PathBuf};

use crate::os::mounts::Cgroup2Error;

/// Why the gate could not be put in place, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not root, or without the capabilities.
    #[error("loading programs into the kernel needs root; run the daemon as root, as its systemd unit does")]
    NotRoot,
    /// `CONFIG_DEBUG_INFO_BTF` is off.
    #[error(
        "{path}: the running kernel has no type information (BTF); boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian, Ubuntu, Fedora and RHEL ship"
    )]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
    },
    /// The BTF lacks a member.
    #[error("the kernel's type information has no {member}; this kernel is not supported, please report its version with this message")]
    NoMember {
        /// `structure.member`
        member: &'static str,
    },
    /// The BTF could not be parsed.
    #[error("the kernel's type information is not readable: {0}")]
    Btf(String),
    /// No cgroup2 mount.
    #[error(transparent)]
    NoCgroup2(#[from] Cgroup2Error),
    /// There is no bpffs, and none can be mounted.
    #[error("{path}: no bpf file system can be mounted there: {source}; mount one by hand (mount -t bpf bpf {path})")]
    NoBpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object or one of its maps was refused.
    #[error("the kernel programs could not be loaded: {0}")]
    Load(String),
    /// A program that every backend needs was refused.
    #[error("program {program} was refused by this kernel, nothing is enforced: {reason}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel and its verifier said.
        reason: String,
    },
    /// A program of another owner is alone at a hook.
    #[error("program {program} cannot be attached: {by}; then start again")]
    HookTaken {
        /// Ours.
        program: &'static str,
        /// Theirs, and what to do.
        by: String,
    },
    /// Another daemon works with the pins.
    #[error("pins in {dir}: {holder} works with them; stop that daemon first, or choose another directory with --bpffs")]
    PinsInUse {
        /// The directory.
        dir: PathBuf,
        /// Who, as far as it is known.
        holder: String,
    },
    /// The pin of a map is gone, but programs that use the map are still attached.
    #[error(
        "{path}: gone, but the programs that use this map are attached and go on refusing by it; run pp-agent uninstall-hooks, which ends all sessions, and start again"
    )]
    LostMap {
        /// The pin.
        path: PathBuf,
    },
    /// A map operation failed.
    #[error("map {map}: {reason}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A table has no room.
    #[error("map {map} has room for {room} entries a generation, the policy and receipts need {needed}; make them smaller")]
    Full {
        /// Its name.
        map: &'static str,
        /// Entries it holds.
        room: usize,
        /// Entries wanted.
        needed: usize,
    },
    /// A system call or an access to a file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was done to what.
        what: String,
        /// Why it did not work.
        source: io::Error,
    },
}

impl KernelError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
