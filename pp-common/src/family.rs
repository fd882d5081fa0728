//! Which kinds of socket can be checked by where they send.

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const AF_BLUETOOTH: i32 = 31;
const AF_ALG: i32 = 38;
const AF_SMC: i32 = 43;
/// `SOCK_PACKET` of an `AF_INET` socket is `AF_PACKET` by its old name (packet(7)).
const SOCK_PACKET: i32 = 10;

/// Whether an agent may make a socket of this family and type (`socket(2)`).
///
/// A list of what may be, not of what may not: a family that is missing here
/// reaches other machines past every hook that sees a destination. Raw frames
/// (`AF_PACKET`, `AF_XDP`), field buses (`AF_CAN`), the host of a virtual
/// machine (`AF_VSOCK`), and families whose packets the kernel sends by itself
/// on sockets of its own (`AF_RXRPC`, `AF_TIPC`, `AF_RDS`, `AF_PPPOX`). Those
/// named are local, or checked by destination, or (Bluetooth) reach no network.
#[must_use]
#[inline(always)]
pub const fn is_allowed(family: i32, kind: i32) -> bool {
    match family {
        AF_INET => kind != SOCK_PACKET,
        AF_UNIX | AF_INET6 | AF_NETLINK | AF_BLUETOOTH | AF_ALG | AF_SMC => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCK_STREAM: i32 = 1;
    const SOCK_RAW: i32 = 3;

    #[test]
    fn what_ordinary_programs_use_is_judged() {
        for family in [1, 2, 10, 16, 31, 38, 43] {
            assert!(is_allowed(family, SOCK_STREAM), "family {family}");
        }
        assert!(is_allowed(AF_INET, SOCK_RAW));
    }

    #[test]
    fn raw_frames_field_buses_and_the_kernels_own_senders_are_not() {
        // packet, xdp, vsock, can, rxrpc, tipc, rds, pppox, llc, ieee802154, qipcrtr, and what no kernel has yet.
        for family in [17, 44, 40, 29, 33, 30, 21, 24, 26, 36, 42, 0, -1, 99] {
            assert!(!is_allowed(family, SOCK_STREAM) && !is_allowed(family, SOCK_RAW), "family {family}");
        }
        assert!(!is_allowed(AF_INET, SOCK_PACKET));
    }
}
