//! Addresses that sockets of sessions are known by: remote ends that spoke first, and addresses that are not the host's.

use pp_common::{
    abi::{Counter, HeardKey},
    decide::Attempt,
    dest::Addr,
    trouble::Trouble,
};

use super::{
    event::{count, now_ns},
    log::{Program, warn},
    maps::{CLAIMED, HEARD, OWN},
    near::netns,
};

/// A datagram port of a session, where remote ends are heard.
#[derive(Clone, Copy)]
pub(crate) struct Ear {
    pub(crate) session: u64,
    /// The socket, as a plain number: only the namespace that it lies in counts.
    pub(crate) sk: u64,
    /// Zero: it has none yet.
    pub(crate) port: u16,
}

/// Whether this remote end has spoken first to that port. By which interface is looked at when the answer leaves.
#[inline(always)]
pub(crate) fn heard_from(ear: Ear, remote: &Attempt) -> bool {
    heard_by(ear, remote) != 0
}

/// The interface by which this remote end has spoken first to that port; zero: it has not, or that was dropped or cannot be read.
#[inline(always)]
pub(crate) fn heard_by(ear: Ear, remote: &Attempt) -> u32 {
    let Some(key) = heard_key(ear, remote) else { return 0 };
    match HEARD.get_ptr(&key) {
        // SAFETY: a map value, read at once. One that was recycled meanwhile is some other remote end's interface, and the answer must
        // leave by it.
        Some(interface) => unsafe { core::ptr::read_volatile(interface) },
        None => 0,
    }
}

/// Remembers a remote end that spoke first, in place of the one that was silent longest. What cannot be remembered is checked as opened by the
/// session when it is answered.
#[inline(always)]
pub(crate) fn hear(ear: Ear, remote: &Attempt, interface: u32) {
    if heard_by(ear, remote) == interface {
        return;
    }
    let done = match heard_key(ear, remote) {
        Some(key) => HEARD.insert(&key, &interface, 0).is_ok(),
        None => false,
    };
    if !done {
        count(Counter::ReadErrors);
    }
}

#[inline(always)]
fn heard_key(ear: Ear, remote: &Attempt) -> Option<HeardKey> {
    if ear.port == 0 {
        return None;
    }
    let netns = netns(ear.sk);
    let key = HeardKey {
        session: ear.session,
        addr: remote.addr,
        netns,
        port: remote.port,
        near_port: ear.port,
        transport: remote.transport,
        pad: [0; 7],
    };
    if netns == 0 { None } else { Some(key) }
}

/// Notes that a session sends from an address that is not the host's: of a container, or forged. `false`: there is no room to.
#[inline(always)]
pub(crate) fn claim(program: &'static Program, near: &Addr) -> bool {
    if OWN.get_ptr(near).is_some() {
        return true;
    }
    let now = now_ns();
    match CLAIMED.get_ptr_mut(near) {
        Some(last) => {
            // SAFETY: a map value; another processor's time is as good.
            unsafe { core::ptr::write_volatile(last, now) };
            true
        }
        None if CLAIMED.insert(near, &now, 0).is_ok() => true,
        None => {
            warn(program, Trouble::ClaimedFull);
            false
        }
    }
}

/// Whether a session sends from this address, which is not the host's.
#[inline(always)]
pub(crate) fn is_claimed(remote: &Addr) -> bool {
    CLAIMED.get_ptr(remote).is_some()
}
