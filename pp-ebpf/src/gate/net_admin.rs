//! `CAP_NET_ADMIN` over the host's network, which sessions do not have unless policy says so. The rules are `pp_common::net_admin`.
//!
//! Nobody without the capability in the first user namespace is asked here: the kernel refuses those by itself, and namespaces of a
//! session's own user namespace stay free.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::lsm, programs::LsmContext};
use pp_common::{
    abi::{Counter, TASK_CANARY, TaskMark},
    decide::Verdict,
    net_admin::{
        CAPABILITY, MAX_LINK_MESSAGE, Message, NetAdmin, Within, about_links, has, names_network, netlink, only_looks, socket_option,
        within,
    },
    protect::{GuardHook, NAME_WORDS, Tamper},
    record::kind,
};

use super::{
    event::count,
    guard::{Object, at, report},
    hook::for_session_after,
    kernel::{current_task, offset, read},
    maps::{LOOKED, WATCH},
    protect::unreadable,
    remote::{protocol, sock_behind},
};

/// Bit of the options of `capable`: the kernel only asks itself, and does not say so to anybody.
const QUIETLY: u32 = 2;
/// Where a netlink message has its length, type and flags.
const MESSAGE_LEN: usize = 0;
const MESSAGE_TYPE: usize = 4;
const MESSAGE_FLAGS: usize = 6;

/// Refuses the capability to who is in the host's network.
#[lsm(hook = "capable")]
pub(crate) fn pp_lsm_capable(ctx: LsmContext) -> i32 {
    let (capability, earlier): (u32, i32) = (ctx.arg(2), ctx.arg(4));
    // Most calls are about others: they cost nobody a look-up.
    if capability != CAPABILITY {
        return earlier;
    }
    for_session_after(earlier, |task| {
        let (cred, wanted_in, options): (u64, u64, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
        let (Some(level), Some(holds), Some(here)) = (level(wanted_in), holds(cred), in_hosts_network()) else {
            return unreadable(task, GuardHook::Capable);
        };
        if level != 0 || !holds || !here || changes_nothing() {
            return Verdict::Allow;
        }
        match word(task) {
            // To read a setting as root: the answer changes who owns it, and nothing is refused for it.
            Word::Refuse if options & QUIETLY != 0 => Verdict::Block,
            Word::Observe if options & QUIETLY != 0 => Verdict::Allow,
            word => judged(task, word, GuardHook::Capable, capability),
        }
    })
}

/// Refuses to change the host's network by a netlink socket that was made there, and to reach it from another network. In the host's
/// network it notes what `capable` may answer.
#[lsm(hook = "netlink_send")]
pub(crate) fn pp_lsm_netlink(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(2), |task| {
        let (sk, packet): (u64, u64) = (ctx.arg(0), ctx.arg(1));
        match holds_here() {
            // The kernel refuses by itself.
            Some(false) => return Verdict::Allow,
            Some(true) => {}
            None => return unreadable(task, GuardHook::Netlink),
        }
        let (Some(message), Some(here)) = (message(sk, packet), in_hosts_network()) else { return unreadable(task, GuardHook::Netlink) };
        if here {
            // Without a note the capability is refused.
            if only_looks(&message) && LOOKED.insert(bpf_get_current_pid_tgid(), 1, 0).is_err() {
                count(Counter::ReadErrors);
            }
            return Verdict::Allow;
        }
        let of_host = of_host(sk);
        let names_network = !of_host && about_links(&message) && names_another(packet, message.length);
        match netlink(&message, of_host, names_network) {
            Some(_) => judged(task, word(task), GuardHook::Netlink, u32::from(message.kind)),
            None => Verdict::Allow,
        }
    })
}

/// Refuses to change the host's network by the options of a socket that was made there.
#[lsm(hook = "socket_setsockopt")]
pub(crate) fn pp_lsm_setsockopt(ctx: LsmContext) -> i32 {
    for_session_after(ctx.arg(3), |task| {
        let (socket, level, name): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
        if !socket_option(level, name) {
            return Verdict::Allow;
        }
        match (holds_here(), read::<u64>(socket, offset!(socket_sk))) {
            (Some(true), Some(sk)) if of_host(sk) => judged(task, word(task), GuardHook::SocketOption, name as u32),
            (Some(_), Some(_)) => Verdict::Allow,
            (None, _) | (_, None) => unreadable(task, GuardHook::SocketOption),
        }
    })
}

/// A device call that changes the network: refused on a socket of the host's, from another network. In the host's own `capable` refuses.
#[inline(always)]
pub(crate) fn called(task: &TaskMark, hook: GuardHook, file: u64, command: u32) -> Verdict {
    match (elsewhere(), sock_behind(file)) {
        (Some(true), Some(Some(sk))) if of_host(sk) => judged(task, word(task), hook, command),
        (Some(_), Some(_)) => Verdict::Allow,
        (None, _) | (_, None) => unreadable(task, hook),
    }
}

/// Forgets what the caller sent before: a message is about to be sent, and the kernel asks for the capability before that is looked at, too.
#[inline(always)]
pub(crate) fn forget() {
    // RACE: none, the note is the thread's own. A miss is the usual case.
    match LOOKED.remove(bpf_get_current_pid_tgid()) {
        Ok(()) | Err(_) => {}
    }
}

/// Whether the call that the kernel asks in changes no network.
#[inline(always)]
fn changes_nothing() -> bool {
    match system_call().map(within) {
        Some(Within::Harmless) => true,
        Some(Within::Send) => LOOKED.get_ptr(bpf_get_current_pid_tgid()).is_some(),
        Some(Within::Other) | None => false,
    }
}

/// Bytes of a task's stack in the kernel, without KASAN.
const STACK: u64 = 16 * 1024;
/// `struct pt_regs`, at the end of the stack; since 6.9 two words may follow, which are no register's.
const REGISTERS: u64 = 168;
const PADDING: u64 = 16;
const CALL: usize = 120;
const CODE_SEGMENT: usize = 136;
const STACK_SEGMENT: usize = 160;
/// What the segments are in a program of 64 bits.
const USER_CODE: u16 = 0x33;
const USER_STACK: u16 = 0x2b;
/// The call was made by the table of 32 bits (`TS_COMPAT`), whose numbers are others.
const COMPAT: u32 = 2;
/// Threads of the kernel's, and those that it makes for a program: their registers are of the call that made them.
const PF_IO_WORKER: u32 = 0x10;
const PF_USER_WORKER: u32 = 0x4000;
const PF_KTHREAD: u32 = 0x0020_0000;

/// The number of the system call that the caller is in, as 64-bit programs number them. `None`: another one, or it is not known.
///
/// The registers are found by their place alone, so it is checked that they are what they should be. What a caller puts into its own
/// registers can make none of the words that are checked fit in another place: there the stack segment is a padding or the flags, of which
/// some bits are always zero.
#[inline(always)]
fn system_call() -> Option<u64> {
    let task = current_task();
    let flags: u32 = read(task, offset!(task_flags))?;
    let status: u32 = read(task, at!(task_status))?;
    if flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0 || status & COMPAT != 0 {
        return None;
    }
    let end = read::<u64>(task, at!(task_stack))?.wrapping_add(STACK - REGISTERS);
    match called_from(end) {
        Some(number) => Some(number),
        None => called_from(end.wrapping_sub(PADDING)),
    }
}

#[inline(always)]
fn called_from(registers: u64) -> Option<u64> {
    let (code, stack): (u16, u16) = (read(registers, CODE_SEGMENT)?, read(registers, STACK_SEGMENT)?);
    if code != USER_CODE || stack != USER_STACK {
        return None;
    }
    read(registers, CALL)
}

/// What policy says of this session.
#[derive(Clone, Copy)]
enum Word {
    Refuse,
    Observe,
    Allow,
}

#[inline(always)]
fn word(task: &TaskMark) -> Word {
    let word = match WATCH.get(0) {
        Some(watch) => NetAdmin::or_refuse(watch.net_admin),
        None => NetAdmin::Refuse,
    };
    match word {
        NetAdmin::Allow => Word::Allow,
        NetAdmin::Observe if task.flags & TASK_CANARY == 0 => Word::Observe,
        NetAdmin::Observe | NetAdmin::Refuse => Word::Refuse,
    }
}

/// Does what policy says.
#[inline(always)]
fn judged(task: &TaskMark, word: Word, hook: GuardHook, number: u32) -> Verdict {
    let verdict = match word {
        Word::Allow => return Verdict::Allow,
        Word::Observe => Verdict::Observe,
        Word::Refuse => Verdict::Block,
    };
    report(task, kind::TAMPER, hook, Tamper::NetAdmin, verdict, Object::number(number), &[0; NAME_WORDS]);
    verdict
}

/// Whether the caller has the capability in the first user namespace.
#[inline(always)]
fn holds_here() -> Option<bool> {
    holds(own_cred()?)
}

/// The same, and is in another network than the host's.
#[inline(always)]
fn elsewhere() -> Option<bool> {
    Some(!in_hosts_network()? && holds_here()?)
}

/// Whether the caller's network is the host's, or one that leads there.
#[inline(always)]
pub(crate) fn in_hosts_network() -> Option<bool> {
    let proxy: u64 = read(current_task(), at!(task_nsproxy))?;
    is_hosts(read(proxy, at!(nsproxy_net_ns))?)
}

/// The same of a socket; what cannot be read is the host's.
#[inline(always)]
fn of_host(sk: u64) -> bool {
    match read::<u64>(sk, offset!(sk_net)).and_then(is_hosts) {
        Some(is) => is,
        None => true,
    }
}

/// Whether this network is the host's, or it is not known which that is. One that has a number for another network counts as the host's:
/// it has a link with an end there (a container's), and what is rewritten in it leaves by that link.
#[inline(always)]
fn is_hosts(network: u64) -> Option<bool> {
    let number: u32 = read(network, offset!(net_inum))?;
    let hosts = match WATCH.get(0) {
        Some(watch) => watch.network_namespace == 0 || watch.network_namespace == number,
        None => true,
    };
    Some(hosts || read::<u64>(network, at!(net_numbers))? != 0)
}

/// Whether these credentials have the capability, and in the first user namespace.
#[inline(always)]
fn holds(cred: u64) -> Option<bool> {
    // The first 32 of a set that had 64 in two words before 6.3, and has them in one since.
    let capabilities: u32 = read(cred, at!(cred_cap_effective))?;
    Some(has(capabilities) && level(read(cred, at!(cred_user_ns))?)? == 0)
}

#[inline(always)]
fn level(user_namespace: u64) -> Option<i32> {
    read(user_namespace, at!(user_ns_level))
}

#[inline(always)]
fn own_cred() -> Option<u64> {
    read(current_task(), at!(task_cred))
}

/// What is sent.
#[inline(always)]
fn message(sk: u64, packet: u64) -> Option<Message> {
    let data: u64 = read(packet, at!(sk_buff_data))?;
    let length: u32 = read(packet, at!(sk_buff_len))?;
    let (protocol, group) = (protocol(sk)?, read(packet, at!(sk_buff_group))?);
    // Too short for a message: the kernel drops it.
    if length < 16 {
        return Some(Message { protocol, kind: 0, flags: 0, group, length, alone: true });
    }
    let own: u32 = read(data, MESSAGE_LEN)?;
    let (kind, flags) = (read(data, MESSAGE_TYPE)?, read(data, MESSAGE_FLAGS)?);
    Some(Message { protocol, kind, flags, group, length, alone: length <= (own.saturating_add(3) & !3) })
}

/// Whether a message about links names another network, or is longer than is looked through.
#[inline(always)]
fn names_another(packet: u64, length: u32) -> bool {
    if length > MAX_LINK_MESSAGE {
        return true;
    }
    let Some(data) = read::<u64>(packet, at!(sk_buff_data)) else { return true };
    // Behind the heads of netlink and of a link.
    for word in 8..MAX_LINK_MESSAGE / 4 {
        if word * 4 >= length {
            break;
        }
        match read::<u32>(data, word as usize * 4) {
            Some(word) if names_network(word) => return true,
            Some(_) => {}
            None => return true,
        }
    }
    false
}
