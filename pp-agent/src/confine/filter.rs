//! The system calls that a confined command is refused, as two seccomp filters.
//!
//! One returns EPERM, as the gate does. The other returns ENOSYS for `clone3`, since no filter can read its arguments; the C library then
//! uses `clone`. Calls that are not named here stay allowed.

use seccompiler::BpfProgram;

use super::ConfineError;

/// The filters, in the order in which they are installed.
///
/// # Errors
/// This architecture has none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn programs() -> Result<Vec<BpfProgram>, ConfineError> {
    Err(ConfineError::Architecture(std::env::consts::ARCH))
}

/// The filters, in the order in which they are installed.
///
/// # Errors
/// The library refuses the rules.
#[cfg(target_arch = "x86_64")]
pub(super) fn programs() -> Result<Vec<BpfProgram>, ConfineError> {
    Ok(x86_64::programs()?)
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::collections::BTreeMap;

    use libc::{c_int, c_long};
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
        sock_filter,
    };

    /// Refused whatever their arguments are.
    const REFUSED: [c_long; 25] = [
        // Other processes: their memory, their registers, their open files.
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        // Filters do not see requests through a ring.
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_bpf,
        // Mounts and namespaces.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        OPEN_TREE_ATTR,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        // Code in the kernel.
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        CREATE_MODULE,
    ];

    /// `open_tree_attr` and `create_module` of `asm/unistd_64.h`.
    const OPEN_TREE_ATTR: c_long = 467;
    const CREATE_MODULE: c_long = 174;

    /// Families of sockets that the gate checks, or that stay on this host.
    const FAMILIES: [c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    /// `SOCK_TYPE_MASK` of `linux/net.h`: the other bits are flags.
    const TYPE_MASK: u64 = 0xf;
    /// With this type the kernel makes a packet socket of an IPv4 one (`SOCK_PACKET` of `linux/net.h`).
    const OLD_PACKET: u64 = 10;

    /// Flags that make a namespace. For `clone`, `CLONE_NEWTIME` is in the bits of the signal, but no signal has its number.
    const NAMESPACES: [c_int; 8] = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        NEW_TIME,
    ];
    /// `CLONE_NEWTIME` of `linux/sched.h`.
    const NEW_TIME: c_int = 0x80;

    /// Requests that put input into a terminal as if it were typed. The shell that reads it may be outside of the session.
    const TYPING: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

    /// The bit in the numbers of x32 calls (`__X32_SYSCALL_BIT` of `asm/unistd.h`). A filter sees them as calls of the same architecture
    /// with other numbers.
    const X32: u32 = 0x4000_0000;

    pub(super) fn programs() -> Result<Vec<BpfProgram>, BackendError> {
        let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        Ok(vec![program(unknown, libc::ENOSYS)?, program(refused()?, libc::EPERM)?])
    }

    /// A filter that returns this error number for these calls, and EPERM for x32 calls. It ends a process that makes 32-bit calls.
    fn program(rules: BTreeMap<c_long, Vec<SeccompRule>>, error: c_int) -> Result<BpfProgram, BackendError> {
        let errno = SeccompAction::Errno(error.cast_unsigned());
        let compiled: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?.try_into()?;
        Ok(no_x32().into_iter().chain(compiled).collect())
    }

    /// The instructions for x32 calls, since the library ignores that bit. They can be inserted before its code, whose jumps are relative.
    fn no_x32() -> [sock_filter; 3] {
        const NUMBER: u32 = 0;
        let instruction = |code: u32, jf: u8, k: u32| {
            // The codes of classic BPF have eight bits.
            let code = u16::try_from(code).unwrap_or(u16::MAX);
            sock_filter { code, jt: 0, jf, k }
        };
        [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER),
            instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        ]
    }

    fn refused() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
        let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
        let _new = rules.insert(libc::SYS_socket, sockets()?);
        let _new = rules.insert(libc::SYS_socketpair, vec![other_family()?]);
        for call in [libc::SYS_unshare, libc::SYS_clone] {
            let any: Result<_, _> = NAMESPACES.into_iter().map(|flag| has_bit(0, flag)).collect();
            let _new = rules.insert(call, any?);
        }
        let typing: Result<_, _> = TYPING.into_iter().map(|request| rule(&[(1, SeccompCmpOp::Eq, request)])).collect();
        let _new = rules.insert(libc::SYS_ioctl, typing?);
        Ok(rules)
    }

    /// Refuses other families, and raw sockets of IP. Those also need capabilities, but the filter does not rely on that.
    fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
        let is_type = |kind: u64| (1, SeccompCmpOp::MaskedEq(TYPE_MASK), kind);
        let is_family = |family: c_int| (0, SeccompCmpOp::Eq, number(family));
        let raw = number(libc::SOCK_RAW);
        Ok(vec![
            other_family()?,
            rule(&[is_type(OLD_PACKET)])?,
            rule(&[is_family(libc::AF_INET), is_type(raw)])?,
            rule(&[is_family(libc::AF_INET6), is_type(raw)])?,
        ])
    }

    fn other_family() -> Result<SeccompRule, BackendError> {
        rule(&FAMILIES.map(|family| (0, SeccompCmpOp::Ne, number(family))))
    }

    fn has_bit(argument: u8, flag: c_int) -> Result<SeccompRule, BackendError> {
        rule(&[(argument, SeccompCmpOp::MaskedEq(number(flag)), number(flag))])
    }

    /// A rule with all of these conditions. The kernel reads each of these arguments as an `int`, so the upper half does not matter.
    fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
        let condition = |(argument, operator, value): &(u8, SeccompCmpOp, u64)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
        };
        SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
    }

    /// The 32 bits of an `int` argument.
    fn number(value: c_int) -> u64 {
        u64::from(value.cast_unsigned())
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    /// Runs calls in a thread with the filters.
    fn filtered(calls: impl FnOnce() + Send + 'static) {
        let filters = super::programs().unwrap();
        let thread = std::thread::spawn(move || {
            for filter in &filters {
                seccompiler::apply_filter(filter).unwrap();
            }
            calls();
        });
        thread.join().unwrap();
    }

    fn made(family: AddressFamily, kind: SockType) -> Result<(), Errno> {
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map(drop)
    }

    #[test]
    fn ordinary_sockets_can_be_made() {
        filtered(|| {
            for family in [AddressFamily::Inet, AddressFamily::Unix] {
                assert_eq!(made(family, SockType::Stream), Ok(()), "{family:?}");
                assert_eq!(made(family, SockType::Datagram), Ok(()), "{family:?}");
            }
            assert_eq!(made(AddressFamily::Netlink, SockType::Raw), Ok(()));
            assert!(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).is_ok());
        });
    }

    #[test]
    fn sockets_of_other_families_and_raw_ones_are_refused() {
        filtered(|| {
            for family in [AddressFamily::Packet, AddressFamily::Vsock, AddressFamily::Alg, AddressFamily::Can, AddressFamily::Bluetooth] {
                assert_eq!(made(family, SockType::Raw), Err(Errno::EPERM), "{family:?}");
            }
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                assert_eq!(made(family, SockType::Raw), Err(Errno::EPERM), "{family:?}");
            }
        });
    }

    #[test]
    fn namespaces_are_refused_and_other_things_that_are_not_shared_are_not() {
        filtered(|| {
            for flag in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS, CloneFlags::CLONE_NEWNS] {
                assert_eq!(unshare(flag), Err(Errno::EPERM), "{flag:?}");
            }
            assert_eq!(unshare(CloneFlags::CLONE_FS), Ok(()));
        });
    }

    #[test]
    fn programs_and_threads_can_be_started() {
        filtered(|| {
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        });
    }
}
