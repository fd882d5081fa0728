//! `CAP_NET_ADMIN` over the host's network: with it a session rewrites packets behind the gate (`tc`, nftables, tunnels, routes, a device on
//! another link). Pure: what the hooks ask.
//!
//! The kernel asks for the capability by user namespace. So the hook of capabilities knows the network that the caller is in, and not the
//! one that a socket is of. Hence two rules: of callers in the host's network the capability is refused. Callers elsewhere keep it, and the
//! hooks of netlink, socket options and device calls refuse them the sockets of the host's network.
//!
//! The kernel also asks for it where nothing of the network changes: to show a mark of a socket (`ss`), for a larger buffer, for lists that
//! it shows to administrators only. Those are told by the call and by the message, and stay free.

use crate::{codes::codes, tamper::Tamper};

codes! {
    /// What happens to a session that uses the capability over the host's network; the names are the words of `[tamper] net_admin`.
    enum NetAdmin: u32 {
        /// It may not.
        Refuse = 1, "refuse";
        /// It may, and that is reported.
        Observe = 2, "observe";
        /// It may.
        Allow = 3, "allow";
    }
}

impl NetAdmin {
    /// What is shipped.
    pub const SHIPPED: Self = Self::Refuse;

    /// From its number in the map; an unknown one refuses.
    #[must_use]
    #[inline(always)]
    pub const fn or_refuse(code: u32) -> Self {
        match Self::from_code(code) {
            Some(word) => word,
            None => Self::Refuse,
        }
    }
}

/// `CAP_NET_ADMIN`
pub const CAPABILITY: u32 = 12;

/// Whether a set of capabilities has it: of the first 32.
#[must_use]
#[inline(always)]
pub const fn has(capabilities: u32) -> bool {
    capabilities & (1 << CAPABILITY) != 0
}

const ROUTE: u16 = 0;
const SOCK_DIAG: u16 = 4;
const XFRM: u16 = 6;
const FIB_LOOKUP: u16 = 10;
const NETFILTER: u16 = 12;
const GENERIC: u16 = 16;
/// The first message type that is not netlink's own, and `GENL_ID_CTRL`.
const FIRST_TYPE: u16 = 16;
/// `RTM_NEWLINK`, `RTM_DELLINK`, `RTM_SETLINK`
const LINKS: [u16; 3] = [16, 17, 19];
/// `RTM_NEWNSID`: gives another network namespace a number, by which devices of that one can be used.
const NEW_NSID: u16 = 88;
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `NLM_F_DUMP`, with which every family of generic netlink reads.
const DUMP: u16 = 0x300;

/// A message to the kernel's network, by its head.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The socket's protocol.
    pub protocol: u16,
    /// `nlmsg_type`
    pub kind: u16,
    /// `nlmsg_flags`
    pub flags: u16,
    /// The group of listeners that it is for; zero: none.
    pub group: u32,
    /// Bytes of the packet.
    pub length: u32,
    /// Nothing follows the message in its packet.
    pub alone: bool,
}

/// Whether this message changes nothing, also where the kernel asks for the capability to answer it: lists of interfaces, routes, sockets,
/// of `wg show`, `nft list` and `ip xfrm`.
#[must_use]
#[inline(always)]
pub const fn only_looks(message: &Message) -> bool {
    let kind = message.kind;
    let reads = match message.protocol {
        ROUTE => kind < FIRST_TYPE || kind & 3 == 2,
        SOCK_DIAG => kind != DESTROY,
        GENERIC => kind <= FIRST_TYPE || message.flags & DUMP == DUMP,
        XFRM => matches!(kind, 0x12 | 0x15 | 0x1f | 0x23 | 0x25 | 0x28),
        FIB_LOOKUP => true,
        NETFILTER => reads_tables(kind),
        _ => false,
    };
    reads && message.alone && message.group == 0
}

/// The same of netfilter: subsystem and command.
const fn reads_tables(kind: u16) -> bool {
    let command = kind & 0xff;
    match kind >> 8 {
        // Connections, but not the command that sets counters back; expected ones.
        1 => matches!(command, 1 | 4..=7),
        2 => matches!(command, 1 | 3),
        // Sets: version, list, save, test, header, type, and by name or index.
        6 => matches!(command, 1 | 7 | 8 | 11..=15),
        // Timeouts and helpers; matches of `iptables`, and hooks. Not counters, which the same commands can set back.
        8 | 9 => command == 1,
        11 | 12 => command == 0,
        // nftables, but not the commands that set counters back.
        10 => matches!(command, 1 | 4 | 7 | 10 | 13 | 16 | 19 | 23),
        _ => false,
    }
}

/// Most threads whose last message is known to change nothing.
pub const MAX_LOOKED: u32 = 4_096;

/// Most bytes of a message about links that are looked through.
pub const MAX_LINK_MESSAGE: u32 = 512;

/// Whether a message is about links, whose attributes can name another network.
#[must_use]
#[inline(always)]
pub const fn about_links(message: &Message) -> bool {
    message.protocol == ROUTE && (message.kind == LINKS[0] || message.kind == LINKS[1] || message.kind == LINKS[2])
}

/// Whether these four bytes begin an attribute of a link that names another network: the one to move or make it in, or the one that it
/// is on top of (`IFLA_NET_NS_PID`, `IFLA_NET_NS_FD`, `IFLA_LINK_NETNSID`, `IFLA_TARGET_NETNSID`). Any four bytes are asked about, since
/// attributes lie in each other: another value may look like one.
#[must_use]
#[inline(always)]
pub const fn names_network(word: u32) -> bool {
    let (length, kind) = (word & 0xffff, (word >> 16) & 0x3fff);
    length >= 8 && length <= MAX_LINK_MESSAGE && matches!(kind, 19 | 28 | 37 | 46)
}

/// Whether a session outside the host's network may send this to the kernel. `of_host`: the socket is of the host's network; else it is of
/// another one that no user namespace of the session's owns. `names_network`: what [`names_network`] found in a message about links.
#[must_use]
#[inline(always)]
pub const fn netlink(message: &Message, of_host: bool, names_network: bool) -> Option<Tamper> {
    let refused = if of_host {
        !only_looks(message)
    } else {
        // From here only the number of the host's network leads back, and a link that is put there.
        message.protocol == ROUTE && (message.kind == NEW_NSID || names_network || !message.alone)
    };
    if refused { Some(Tamper::NetAdmin) } else { None }
}

/// What the kernel asks for the capability in.
#[must_use]
#[inline(always)]
pub const fn within(number: u64) -> Within {
    match number {
        // sendto, sendmsg, sendmmsg
        44 | 46 | 307 => Within::Send,
        // recvfrom, recvmsg, recvmmsg: where a list that was asked for goes on. setsockopt, whose hook has judged it, and getsockopt.
        45 | 47 | 299 | 54 | 55 => Within::Harmless,
        _ => Within::Other,
    }
}

/// A kind of system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Sends a message, which was looked at.
    Send,
    /// Changes no network, or passes a hook of its own that says whether it does.
    Harmless,
    /// Anything else.
    Other,
}

/// Whether this socket option asks for the capability and changes the network, not the socket: tables of netfilter and of virtual servers,
/// multicast routing, policies of IPsec.
#[must_use]
#[inline(always)]
pub const fn socket_option(level: i32, name: i32) -> bool {
    const IPV4: i32 = 0;
    const IPV6: i32 = 41;
    match level {
        IPV4 => name >= 64 || matches!(name, 16 | 17),
        IPV6 => name >= 200 || matches!(name, 34 | 35 | 64 | 65),
        _ => false,
    }
}

/// Whether this call on a socket changes interfaces, routes, neighbours, bridges or tunnels (`linux/sockios.h`). What only reads is left out.
#[must_use]
#[inline(always)]
pub const fn device_call(command: u32) -> bool {
    const FIRST: u32 = 0x890b;
    const LAST: u32 = 0x89ff;
    let reads = matches!(
        command,
        0x8910
            | 0x8912
            | 0x8913
            | 0x8915
            | 0x8917
            | 0x8919
            | 0x891b
            | 0x891d
            | 0x891f
            | 0x8921
            | 0x8927
            | 0x8929
            | 0x8933
            | 0x8935
            | 0x8938
            | 0x8942
            | 0x8947
            | 0x8954
            | 0x8961
            | 0x8970
            | 0x8982
            | 0x89b1
    );
    FIRST <= command && command <= LAST && !reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_word_refuses_and_the_shipped_one_does() {
        assert_eq!(
            (NetAdmin::or_refuse(0), NetAdmin::or_refuse(77), NetAdmin::SHIPPED),
            (NetAdmin::Refuse, NetAdmin::Refuse, NetAdmin::Refuse)
        );
        assert!(has(1 << 12) && !has(!(1 << 12)));
    }

    const fn head(protocol: u16, kind: u16) -> Message {
        Message { protocol, kind, flags: 5, group: 0, length: 32, alone: true }
    }

    #[test]
    fn sockets_of_the_host_are_read_by_and_nothing_more() {
        // RTM_GETLINK, SOCK_DIAG_BY_FAMILY, a family's number, XFRM_MSG_GETSA, a look-up of a route, NFT_MSG_GETTABLE, IPCTNL_MSG_CT_GET
        for (protocol, kind) in [(0, 18), (4, 20), (16, 16), (6, 0x12), (10, 0), (12, 0x0a01), (12, 0x0101)] {
            let message = head(protocol, kind);
            assert!(only_looks(&message) && netlink(&message, true, false).is_none(), "{protocol} {kind:#x}");
            // A second message may be anything, and a group is others than the kernel.
            for other in [Message { alone: false, ..message }, Message { group: 1, ..message }] {
                assert_eq!(netlink(&other, true, false), Some(Tamper::NetAdmin), "{other:?}");
            }
        }
        // RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWTFILTER; XFRM_MSG_NEWSA; a batch of nftables, IPCTNL_MSG_CT_DELETE and CT_GET_CTRZERO,
        // IPSET_CMD_ADD; a command of a family; an event of a device.
        for (protocol, kind) in
            [(0, 16), (0, 24), (0, 44), (4, DESTROY), (6, 0x10), (12, 16), (12, 0x0102), (12, 0x0103), (12, 0x0609), (16, 20), (15, 0)]
        {
            assert_eq!(netlink(&head(protocol, kind), true, false), Some(Tamper::NetAdmin), "{protocol} {kind:#x}");
        }
        // `wg show`.
        assert!(only_looks(&Message { flags: 0x305, ..head(16, 40) }) && !only_looks(&Message { flags: 0x105, ..head(16, 40) }));
    }

    #[test]
    fn other_networks_are_the_sessions_own_unless_they_lead_to_the_host() {
        for (protocol, kind) in [(0, 16), (12, 16), (6, 16), (16, 20)] {
            assert_eq!(netlink(&head(protocol, kind), false, false), None, "{protocol} {kind}");
        }
        let link = head(0, 16);
        assert!(about_links(&link) && about_links(&head(0, 19)) && !about_links(&head(0, 20)) && !about_links(&head(16, 16)));
        assert_eq!(
            (netlink(&link, false, true), netlink(&head(0, NEW_NSID), false, false)),
            (Some(Tamper::NetAdmin), Some(Tamper::NetAdmin))
        );
        assert_eq!(netlink(&Message { alone: false, ..link }, false, false), Some(Tamper::NetAdmin));
    }

    #[test]
    fn attribute_that_names_a_network_is_told_from_others() {
        // IFLA_NET_NS_PID, IFLA_NET_NS_FD also marked as nested, IFLA_TARGET_NETNSID longer than it need be
        for word in [0x0013_0008, 0x001c_0008, 0x801c_0008, 0x002e_000c, 0x0025_0008] {
            assert!(names_network(word), "{word:#x}");
        }
        // IFLA_IFNAME, IFLA_MTU, its value, a number, "eth0"
        for word in [0x0003_0009, 0x0004_0008, 1500, 0x0013_0000, u32::from_le_bytes(*b"eth0")] {
            assert!(!names_network(word), "{word:#x}");
        }
    }

    #[test]
    fn calls_that_no_hook_of_their_own_judges_are_refused_the_capability() {
        // read, write, ioctl, bind, io_uring_enter
        for number in [0, 1, 16, 49, 426, 1 << 30 | 46] {
            assert_eq!(within(number), Within::Other, "{number}");
        }
        assert_eq!((within(46), within(47), within(54)), (Within::Send, Within::Harmless, Within::Harmless));
    }

    #[test]
    fn what_reads_or_is_the_sockets_own_needs_no_capability() {
        // SIOCGIFCONF, SIOCGIFADDR, FIONREAD, TCGETS; IP_TTL, SO_MARK, IPV6_TCLASS.
        assert!([0x8912, 0x8915, 0x541b, 0x5401].iter().all(|command| !device_call(*command)));
        assert!([0x890b, 0x8914, 0x8916, 0x89a0, 0x89f1].iter().all(|command| device_call(*command)));
        assert!(!socket_option(0, 2) && !socket_option(1, 36) && !socket_option(41, 67));
        assert!(socket_option(0, 64) && socket_option(41, 64) && socket_option(0, 17) && socket_option(0, 1154));
    }
}
