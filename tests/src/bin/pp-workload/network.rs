//! Ways to change a network that `CAP_NET_ADMIN` opens. Each changes nothing where it works.

#![allow(unsafe_code, reason = "system calls that no library offers; each has its SAFETY line")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use crate::args::NetworkArg;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWNSID: u16 = 88;
const LOOPBACK: i32 = 1;

/// Tries one.
pub(crate) fn attempt(way: NetworkArg) -> io::Result<()> {
    match way {
        NetworkArg::Netlink => send(&route()?, &same_link()),
        NetworkArg::NetlinkElsewhere => {
            let here = route()?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            send(&here, &same_link())
        }
        NetworkArg::NetlinkOwn => {
            unshare(CloneFlags::CLONE_NEWNET)?;
            send(&route()?, &same_link())
        }
        NetworkArg::Number => {
            let here = File::open("/proc/self/ns/net")?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            send(&route()?, &number(here.as_raw_fd()))
        }
        NetworkArg::Device => {
            let here = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            same_flags(&here)
        }
        NetworkArg::Option => {
            let here = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            replace_table(&here)
        }
        NetworkArg::Buffer => {
            let size: i32 = 1 << 16;
            let here = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            // SAFETY: a number of that length.
            let result = unsafe { libc::setsockopt(here.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, (&raw const size).cast(), 4) };
            done(result.into()).map(drop)
        }
    }
}

fn done(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = done(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }.into())?;
    // SAFETY: made just now, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

fn route() -> io::Result<OwnedFd> {
    socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
}

/// A message with a head, which asks for an answer.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    const REQUEST_AND_ANSWER: u16 = 1 | 4;
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(REQUEST_AND_ANSWER.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// The loopback interface as it is: a mask of nothing to change.
fn same_link() -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend([0; 8]);
    message(RTM_NEWLINK, &body)
}

/// A number for the network behind this descriptor.
fn number(network: i32) -> Vec<u8> {
    let attribute = |kind: u16, value: i32| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat();
    let body = [vec![0; 4], attribute(1, 7), attribute(3, network)].concat();
    message(RTM_NEWNSID, &body)
}

/// Sends a message, and returns what the kernel answers.
fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: bytes of that length.
    done(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) } as i64)?;
    let mut answer = [0_u8; 4096];
    // SAFETY: a buffer of that length.
    let read = done(unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) } as i64)?;
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) if read >= 20 => Ok(()),
        Some(error) if read >= 20 => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("a short answer")),
    }
}

/// Gives the loopback interface of the socket's network the flags that it has.
fn same_flags(socket: &OwnedFd) -> io::Result<()> {
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    for command in [libc::SIOCGIFFLAGS, libc::SIOCSIFFLAGS] {
        // SAFETY: a `struct ifreq`, which is 40 bytes.
        done(unsafe { libc::ioctl(socket.as_raw_fd(), command, request.as_mut_ptr()) }.into())?;
    }
    Ok(())
}

/// Replaces a table of netfilter by nothing that is one: the kernel says so later than who may.
fn replace_table(socket: &OwnedFd) -> io::Result<()> {
    const REPLACE: i32 = 64;
    let nothing = [0_u8; 96];
    // SAFETY: bytes of that length.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, REPLACE, nothing.as_ptr().cast(), 96) };
    done(result.into()).map(drop)
}
