//! Ends flows that are open when their receipt ends. The kernel refuses their packets from the deadline on; ending them notifies the
//! program.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use nix::libc;
use pp_common::{
    abi::{SOCK_OPENED, SOCK_REFUSED, SockMark},
    decide::{Attempt, Decision, Kind, Link, Reason, Subject, Verdict, transport},
    dest::Addr,
    turns::cut_for,
};

use crate::kernel::{Gate, KernelError};
use crate::os::sockets;

/// A flow that was ended.
#[derive(Clone, Debug)]
pub(crate) struct EndedFlow {
    /// The process that had it open.
    pub(crate) pid: u32,
    /// The socket's mark.
    pub(crate) mark: SockMark,
    /// The attempt that was decided now.
    pub(crate) attempt: Attempt,
    /// The link that it uses.
    pub(crate) link: Link,
    /// Why it was ended.
    pub(crate) decision: Decision,
    /// Whether the program was notified; `false`: only its packets are refused.
    pub(crate) notified: bool,
    /// Whether no process had it open any more. Then `pid` is the last that used it.
    pub(crate) orphan: bool,
}

/// Ends every flow that the tables no longer allow, or that had a packet refused. These are flows of marked processes, and marked TCP flows
/// that other processes or none have open. Blocking: it looks at the open files of every marked process.
///
/// # Errors
/// The kernel's tables cannot be read.
pub(crate) fn end(gate: &Gate) -> Result<Vec<EndedFlow>, KernelError> {
    let mut ended = Vec::new();
    for (pid, _) in gate.marks()? {
        // A process that is gone has no flows.
        for socket in sockets::of_process(pid).unwrap_or_default() {
            let Some(mark) = gate.sock_mark(socket.as_fd())?.filter(|mark| mark.session != 0) else {
                continue;
            };
            let Some(peer) = socket.peer else { continue };
            let attempt = attempt(peer, socket.transport, &mark);
            let link = Link { netns: socket.netns, ifindex: socket.ifindex, flags: 0 };
            let Some(decision) = over(gate, link, &attempt, &mark) else { continue };
            let notified = match sockets::destroy(&socket) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!("process {pid}: its flow cannot be ended: {error}");
                    false
                }
            };
            ended.push(EndedFlow { pid, mark, attempt, link, decision, notified, orphan: false });
        }
    }
    gate.look_for_namespaces()?;
    ended.extend(end_marked(gate));
    Ok(ended)
}

/// Ends TCP flows by their marks alone, in the network namespaces that are known.
#[must_use]
pub(crate) fn end_marked(gate: &Gate) -> Vec<EndedFlow> {
    let mut ended = Vec::new();
    for (namespace, socket) in gate.marked_sockets() {
        let mark = socket.mark;
        let attempt = attempt(socket.peer, transport::TCP, &mark);
        // The inode number of a namespace has 32 bits. Zero is no namespace, and its flows are refused.
        let link = Link { netns: u32::try_from(namespace.1).unwrap_or(0), ifindex: socket.ifindex, flags: 0 };
        let Some(decision) = over(gate, link, &attempt, &mark) else { continue };
        match gate.destroy(&namespace, &socket) {
            Ok(true) => ended.push(EndedFlow { pid: mark.tgid, mark, attempt, link, decision, notified: true, orphan: socket.orphan }),
            Ok(false) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => tracing::debug!("a flow ended by itself"),
            Err(error) => tracing::warn!("process {}: a flow that it left cannot be ended: {error}", mark.tgid),
        }
    }
    ended
}

/// Why a flow must end; `None`: it may stay open.
fn over(gate: &Gate, link: Link, attempt: &Attempt, mark: &SockMark) -> Option<Decision> {
    let subject = Subject { session: mark.session, agent: mark.agent, owner: mark.owner };
    let decision = gate.decide_on(link, &subject, attempt);
    if decision.reason == Reason::Receipt && mark.turn_count.over != 0 {
        // While protection is off it goes on, as its packets do.
        return Some(decision.cut(cut_for(mark.turn_count.over))).filter(|cut| cut.verdict != Verdict::Off);
    }
    if decision.verdict == Verdict::Block {
        return Some(decision);
    }
    // The kernel marked the socket when it refused a packet. The tables may allow the flow by now. Another receipt may, or its packets may
    // reach another remote end than the socket's.
    let refused = mark.flags & SOCK_REFUSED != 0 && attempt.transport == transport::TCP;
    refused.then(|| decision.over())
}

fn attempt(peer: SocketAddr, transport: u8, mark: &SockMark) -> Attempt {
    let addr = match peer.ip() {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    };
    let kind = if mark.flags & SOCK_OPENED != 0 { Kind::Open } else { Kind::Answer };
    let counted = mark
        .flows
        .iter()
        .find(|flow| flow.addr == addr && flow.port == peer.port() && flow.transport == transport)
        .map_or(0, |flow| flow.serial);
    Attempt { addr, port: peer.port(), transport, kind, counted }
}
