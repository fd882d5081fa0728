//! Entry points of the lsm backend: what no cgroup hook sees, refused before
//! the kernel acts. New flows are counted by the cgroup programs, which run
//! after these.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_sock_from_file, macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{SOCK_OPENED, TaskMark},
    decide::{Kind, Reason, Verdict, transport},
    dest::Addr,
    record::Hook,
};

use crate::{
    count::heard_from,
    kernel::{offset, read},
    mark::{control, current, sock_mark, subject, tag},
    reach::{Counting, attempt, judge, refuse, scene},
};

const EPERM: i32 = 1;
const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: i32 = 17;
const AF_VSOCK: i32 = 40;
const AF_XDP: i32 = 44;
/// `SOCK_PACKET` of an `AF_INET` socket is `AF_PACKET` by its old name.
const SOCK_PACKET: i32 = 10;
const SOCKADDR_IN_LEN: usize = 8;
const SOCKADDR_IN6_LEN: usize = 24;

/// Refuses a connect of any transport.
#[lsm(hook = "socket_connect")]
pub(crate) fn pp_lsm_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let address: *const c_void = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    match dialled(address as u64, length as u32 as usize) {
        Dialled::Inet(addr, port) => connect(sock, task, addr, port),
        Dialled::Unspecified(..) | Dialled::Other => 0,
        Dialled::Unreadable => -EPERM,
    }
}

/// Refuses datagrams with an address, TCP Fast Open, and writes on a socket
/// that is connected to a protected far end, whoever connected it.
#[lsm(hook = "socket_sendmsg")]
pub(crate) fn pp_lsm_sendmsg(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let sock: *const c_void = ctx.arg(0);
    let message: *const c_void = ctx.arg(1);
    let sk = sk_of(sock);
    if sk.is_null() {
        return 0;
    }
    let Some(name) = read::<u64>(message as u64, offset!(msghdr_name)) else {
        return -EPERM;
    };
    let far = if name == 0 { connected(sk as u64) } else { dialled(name, SOCKADDR_IN6_LEN) };
    match far {
        Dialled::Inet(addr, port) => send(sk, task, addr, port, name == 0),
        // UDP takes an address without a family for IPv4.
        Dialled::Unspecified(addr, port) if port != 0 => send(sk, task, addr, port, false),
        Dialled::Unspecified(..) | Dialled::Other => 0,
        Dialled::Unreadable => -EPERM,
    }
}

/// Refuses sockets whose traffic no hook can judge by destination.
#[lsm(hook = "socket_create")]
pub(crate) fn pp_lsm_create(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let (family, kind, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
    let unjudged = matches!(family, AF_PACKET | AF_VSOCK | AF_XDP) || (family == i32::from(AF_INET as u8) && kind == SOCK_PACKET);
    if kern != 0 || !unjudged {
        return 0;
    }
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmCreate, &subject, crate::mark::current_tgid(), task.flags, &control);
    let nowhere = attempt(Addr([0; 2]), family as u16, 0, Kind::Portless);
    lsm_return(refuse(&scene, control, &nowhere, Reason::SocketFamily))
}

/// Marks a socket that is handed over, so that egress and the next send judge it.
#[lsm(hook = "file_receive")]
pub(crate) fn pp_lsm_receive(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(task) = current() else { return 0 };
    let file: *mut c_void = ctx.arg(0);
    // SAFETY: the hook's own argument, which the verifier knows as a file.
    let sock = unsafe { bpf_sock_from_file(file.cast()) };
    if sock.is_null() {
        return 0;
    }
    let sk = sk_of(sock.cast());
    if sk.is_null() || !inet(sk as u64) {
        return 0;
    }
    // SAFETY: checked just now. A socket of this session keeps what it was.
    match unsafe { sock_mark(sk) } {
        Some(mark) if mark.session == task.session => 0,
        // SAFETY: as above. Who opened it is not known: it counts as opened.
        Some(_) | None => match unsafe { tag(sk, task, SOCK_OPENED) } {
            Some(_) => 0,
            None => -EPERM,
        },
    }
}

/// Marks what is accepted on a listener that the session did not make itself.
#[lsm(hook = "sock_graft")]
pub(crate) fn pp_lsm_graft(ctx: LsmContext) -> i32 {
    let Some(task) = current() else { return 0 };
    let sk: *mut c_void = ctx.arg(0);
    if sk.is_null() || !inet(sk as u64) {
        return 0;
    }
    // SAFETY: the hook's own argument, checked just now. Without a mark the
    // first send tries again and is refused if that fails too.
    match unsafe { tag(sk, task, 0) } {
        Some(_) | None => 0,
    }
}

/// Refuses to fork while the task table has no room for the child's mark.
#[lsm(hook = "task_alloc")]
pub(crate) fn pp_lsm_fork(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    match current() {
        Some(_) if control().overflow != 0 => -EPERM,
        Some(_) | None => 0,
    }
}

#[inline(always)]
fn connect(sock: *const c_void, task: &TaskMark, addr: Addr, port: u16) -> i32 {
    let sk = sk_of(sock);
    if sk.is_null() {
        return -EPERM;
    }
    let Some(protocol) = read::<u16>(sk as u64, offset!(sk_protocol)) else {
        return -EPERM;
    };
    let kind = if protocol == u16::from(transport::UDP) { Kind::UdpConnect } else { Kind::Open };
    // SAFETY: checked just now.
    let Some(mark) = (unsafe { tag(sk, task, SOCK_OPENED) }) else { return -EPERM };
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmConnect, &subject, mark.tgid, task.flags, &control);
    let attempt = attempt(addr, port, u32::from(protocol), kind);
    lsm_return(judge(&scene, control, mark, attempt, Counting::Later))
}

#[inline(always)]
fn send(sk: *mut c_void, task: &TaskMark, addr: Addr, port: u16, connected: bool) -> i32 {
    let Some(protocol) = read::<u16>(sk as u64, offset!(sk_protocol)) else {
        return -EPERM;
    };
    // SAFETY: the caller's pointer, checked there.
    let known = unsafe { sock_mark(sk) }.is_some_and(|mark| mark.session == task.session);
    // A connected socket that came from elsewhere counts as opened.
    let flags = if connected && !known { SOCK_OPENED } else { 0 };
    // SAFETY: as above.
    let Some(mark) = (unsafe { tag(sk, task, flags) }) else { return -EPERM };
    let answer = if connected { mark.flags & SOCK_OPENED == 0 } else { heard_from(mark, addr, port) };
    let kind = if answer { Kind::Answer } else { Kind::Open };
    let control = control();
    let subject = subject(task);
    let scene = scene(Hook::LsmSendmsg, &subject, mark.tgid, task.flags, &control);
    let attempt = attempt(addr, port, u32::from(protocol), kind);
    lsm_return(judge(&scene, control, mark, attempt, Counting::Later))
}

enum Dialled {
    Inet(Addr, u16),
    Unspecified(Addr, u16),
    Other,
    Unreadable,
}

/// The far end that a kernel copy of a socket address names.
#[inline(always)]
fn dialled(address: u64, length: usize) -> Dialled {
    let Some(family) = read::<u16>(address, 0) else { return Dialled::Unreadable };
    match family {
        AF_INET | AF_UNSPEC => {
            if length < SOCKADDR_IN_LEN {
                return Dialled::Other;
            }
            let (Some(port), Some(octets)) = (read::<[u8; 2]>(address, 2), read(address, 4)) else {
                return Dialled::Unreadable;
            };
            let (addr, port) = (Addr::v4(octets), u16::from_be_bytes(port));
            if family == AF_INET { Dialled::Inet(addr, port) } else { Dialled::Unspecified(addr, port) }
        }
        AF_INET6 => {
            if length < SOCKADDR_IN6_LEN {
                return Dialled::Other;
            }
            let (Some(port), Some(octets)) = (read::<[u8; 2]>(address, 2), read(address, 8)) else {
                return Dialled::Unreadable;
            };
            Dialled::Inet(Addr::v6_words(octets), u16::from_be_bytes(port))
        }
        _ => Dialled::Other,
    }
}

/// The far end that a socket is connected to.
#[inline(always)]
fn connected(sk: u64) -> Dialled {
    let Some(family) = read::<u16>(sk, offset!(sk_family)) else { return Dialled::Unreadable };
    let Some(port) = read::<[u8; 2]>(sk, offset!(sk_dport_be)).map(u16::from_be_bytes) else {
        return Dialled::Unreadable;
    };
    let addr = match family {
        AF_INET => read(sk, offset!(sk_daddr)).map(Addr::v4),
        AF_INET6 => read(sk, offset!(sk_v6_daddr)).map(Addr::v6_words),
        _ => return Dialled::Other,
    };
    match addr {
        // Not connected: the address, if any, comes with each message.
        Some(_) if port == 0 => Dialled::Other,
        Some(addr) => Dialled::Inet(addr, port),
        None => Dialled::Unreadable,
    }
}

/// The `sk` of a `struct socket`, as a pointer the verifier knows; null where there is none.
#[inline(always)]
fn sk_of(sock: *const c_void) -> *mut c_void {
    let at = offset!(socket_sk);
    // SAFETY: a member of a kernel structure that the verifier knows by its BTF; volatile, so
    // that the load keeps that type.
    unsafe { core::ptr::read_volatile(sock.cast::<u8>().add(at).cast::<*mut c_void>()) }
}

#[inline(always)]
fn inet(sk: u64) -> bool {
    matches!(read::<u16>(sk, offset!(sk_family)), Some(AF_INET | AF_INET6))
}

#[inline(always)]
fn lsm_return(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow | Verdict::Observe => 0,
        Verdict::Block => -EPERM,
    }
}
