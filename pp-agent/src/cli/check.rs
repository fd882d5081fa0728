//! `check`: would this connection be allowed?

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use pp_common::decide::Verdict;

use super::output::named;
use super::{Context, DONE, Outcome, REFUSED, wait};
use crate::api::{Check, CheckAnswer};

/// `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Where to: `10.20.4.7:502`, `[fd00::7]:502`, `[fe80::7%eth0]:502`, with `/udp` for another transport than tcp.
    #[arg(value_name = "ADDRESS:PORT[/TRANSPORT]", value_parser = parse_target)]
    target: Target,
    /// As a session of this agent.
    #[arg(long, value_name = "NAME", required_unless_present_any = ["session", "pid"])]
    agent: Option<String>,
    /// With this owner: a user's name or uid; by default the caller.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// As this session.
    #[arg(long, value_name = "ID", conflicts_with_all = ["agent", "pid"])]
    session: Option<String>,
    /// As this marked process.
    #[arg(long, value_name = "PID", conflicts_with = "agent")]
    pid: Option<u32>,
}

/// An address, a port and a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    address: IpAddr,
    port: u16,
    transport: Option<String>,
    link: Option<String>,
}

fn parse_target(text: &str) -> Result<Target, String> {
    let (address, transport) = match text.rsplit_once('/') {
        Some((address, transport)) => (address, Some(transport.to_owned())),
        None => (text, None),
    };
    // The link of a link-local address, by its name.
    let (address, link) = match address.split_once('%').and_then(|(before, rest)| Some((before, rest.split_once(']')?))) {
        Some((before, (link, port))) => (format!("{before}]{port}"), Some(link.to_owned())),
        None => (address.to_owned(), None),
    };
    let socket: SocketAddr = address.parse().map_err(|_| "not ADDRESS:PORT; write 10.20.4.7:502 or [fd00::7]:502".to_owned())?;
    Ok(Target { address: socket.ip(), port: socket.port(), transport, link })
}

/// Asks the daemon about the live tables.
pub(crate) fn check(context: &Context, args: &CheckArgs) -> Outcome {
    let question = Check {
        address: args.target.address,
        port: args.target.port,
        transport: args.target.transport.clone(),
        link: args.target.link.clone(),
        agent: args.agent.clone(),
        user: args.user.clone(),
        session: args.session.clone(),
        pid: args.pid,
    };
    let answer = wait(context.client.post::<CheckAnswer>("/v1/check", &question))?;
    context.out.show(&answer, || {
        let mut line = format!("{}: {}", answer.verdict.name(), answer.reason.name());
        let members = [("receipt", &answer.receipt), ("zone", &answer.zone), ("gateway", &answer.gateway), ("service", &answer.service)];
        line.extend(named(members).into_iter().map(|member| format!(" {member}")));
        line.extend(answer.learned.iter().map(|learned| format!("; {learned}")));
        line.extend(answer.behaviour.iter().map(|behaviour| format!("; by the behaviour rules {behaviour}")));
        vec![line]
    })?;
    Ok(match answer.verdict {
        Verdict::Allow | Verdict::Observe | Verdict::Off => DONE,
        Verdict::Block => REFUSED,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_address_port_and_perhaps_transport() {
        let target = parse_target("10.20.4.7:502").unwrap();
        assert_eq!((target.port, target.transport), (502, None));
        let target = parse_target("[fd00::7]:47808/udp").unwrap();
        assert_eq!((target.port, target.transport.as_deref()), (47808, Some("udp")));
        let target = parse_target("[fe80::7%eth0]:443").unwrap();
        assert_eq!((target.port, target.link.as_deref()), (443, Some("eth0")));
        assert!(parse_target("plc7:502").is_err() && parse_target("10.20.4.7").is_err());
    }
}
