//! Ending flows that are open when their receipt ends. The kernel refuses
//! their packets from the deadline on; this makes the program hear of it.

use std::{net::IpAddr, os::fd::AsFd as _};

use pp_common::{
    abi::{SOCK_OPENED, SOCK_REFUSED, SockMark},
    decide::{Attempt, Decision, Kind, Reason, Subject, Verdict, transport},
    dest::Addr,
    turns::cut_for,
};

use crate::kernel::{Gate, KernelError, sockets};

/// A flow that was ended.
#[derive(Clone, Debug)]
pub struct EndedFlow {
    /// The process that had it open.
    pub pid: u32,
    /// The socket's mark.
    pub mark: SockMark,
    /// The attempt as it was judged now.
    pub attempt: Attempt,
    /// Why it may not go on.
    pub decision: Decision,
    /// The program was told; `false`: only its packets are refused.
    pub told: bool,
}

/// Ends every flow of a marked process that the tables no longer allow.
/// Blocking: it looks at the open files of every marked process.
///
/// # Errors
/// The kernel's tables cannot be read.
pub fn end(gate: &Gate) -> Result<Vec<EndedFlow>, KernelError> {
    let mut ended = Vec::new();
    for (pid, _) in gate.marks()? {
        // A process that is gone has no flows.
        for socket in sockets::of_process(pid).unwrap_or_default() {
            let Some(mark) = gate.sock_mark(socket.as_fd())?.filter(|mark| mark.session != 0) else {
                continue;
            };
            let Some(attempt) = attempt(&socket, &mark) else { continue };
            let subject = Subject { session: mark.session, agent: mark.agent, owner: mark.owner };
            let mut decision = gate.decide(&subject, &attempt);
            if decision.reason == Reason::Receipt && mark.talk.over != 0 {
                decision = decision.cut(cut_for(mark.talk.over));
            }
            // Where the far end that was dialled is not the one that is reached,
            // only the kernel saw what it refused.
            let refused = mark.flags & SOCK_REFUSED != 0 && socket.transport == transport::TCP;
            if decision.verdict != Verdict::Block && !refused {
                continue;
            }
            let told = match sockets::destroy(&socket) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!("process {pid}: its flow cannot be ended: {error}");
                    false
                }
            };
            ended.push(EndedFlow { pid, mark, attempt, decision, told });
        }
    }
    Ok(ended)
}

fn attempt(socket: &sockets::Socket, mark: &SockMark) -> Option<Attempt> {
    let peer = socket.peer?;
    let addr = match peer.ip() {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    };
    let kind = if mark.flags & SOCK_OPENED != 0 { Kind::Open } else { Kind::Answer };
    let counted = mark
        .flows
        .iter()
        .find(|flow| flow.addr == addr && flow.port == peer.port() && flow.transport == socket.transport)
        .map_or(0, |flow| flow.serial);
    Some(Attempt { addr, port: peer.port(), transport: socket.transport, kind, counted })
}
