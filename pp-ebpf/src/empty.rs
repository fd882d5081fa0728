//! Programs at the hooks that a call passes, each of which allows at once: what `cargo xtask bench`
//! takes as the price of being hooked at all.

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext, SockContext},
};

const ALLOW: i32 = 1;

/// Allows every socket.
#[cgroup_sock(sock_create)]
pub(crate) fn pp_sock_create(_ctx: SockContext) -> i32 {
    ALLOW
}

/// Allows every connect to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn pp_connect4(_ctx: SockAddrContext) -> i32 {
    ALLOW
}

/// Allows every connect to an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub(crate) fn pp_connect6(_ctx: SockAddrContext) -> i32 {
    ALLOW
}

/// Allows every datagram to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn pp_sendmsg4(_ctx: SockAddrContext) -> i32 {
    ALLOW
}

/// Allows every datagram to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn pp_sendmsg6(_ctx: SockAddrContext) -> i32 {
    ALLOW
}

/// Allows every packet out.
#[cgroup_skb(egress)]
pub(crate) fn pp_egress(_ctx: SkBuffContext) -> i32 {
    ALLOW
}

/// Allows every packet in.
#[cgroup_skb(ingress)]
pub(crate) fn pp_ingress(_ctx: SkBuffContext) -> i32 {
    ALLOW
}
