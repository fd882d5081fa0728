//! Sockets that come to a session from elsewhere get its mark here: handed
//! over, inherited, or accepted on a listener that came from elsewhere.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_sock_from_file;
use pp_common::abi::{SOCK_OPENED, SockMark, TaskMark};

use super::{
    log::Program,
    mark::{sock_mark, tag},
    remote::{inet, sk_of},
};

/// Marks the socket behind a file that is handed over. `false`: it has no mark.
///
/// # Safety
///
/// `file` must be a pointer the verifier knows as a file.
#[inline(always)]
pub(crate) unsafe fn received(program: &'static Program, file: *mut c_void, task: &TaskMark) -> bool {
    // SAFETY: the caller's.
    let sock = unsafe { bpf_sock_from_file(file.cast()) };
    if sock.is_null() {
        return true;
    }
    let sk = sk_of(sock.cast());
    if sk.is_null() || !inet(sk as u64) {
        return true;
    }
    // SAFETY: checked just now. A socket of this session keeps what it was.
    match unsafe { sock_mark(sk) } {
        Some(mark) if mark.session == task.session => true,
        // SAFETY: as above. Who opened it is not known: it counts as opened.
        Some(_) | None => unsafe { tag(program, sk, task, SOCK_OPENED) }.is_some(),
    }
}

/// Marks what was accepted. `false`: it has no mark.
///
/// # Safety
///
/// `sk` must be null or a pointer the verifier knows as a socket.
#[inline(always)]
pub(crate) unsafe fn accepted(program: &'static Program, sk: *mut c_void, task: &TaskMark) -> bool {
    if sk.is_null() || !inet(sk as u64) {
        return true;
    }
    // SAFETY: checked just now.
    unsafe { tag(program, sk, task, 0) }.is_some()
}

/// Marks the socket of a message. `None`: it has no mark, and the message must be refused.
///
/// # Safety
///
/// `sk` must be a pointer the verifier knows as a socket.
#[inline(always)]
pub(crate) unsafe fn sender(program: &'static Program, sk: *mut c_void, task: &TaskMark, connected: bool) -> Option<&'static mut SockMark> {
    // SAFETY: the caller's.
    let known = unsafe { sock_mark(sk) }.is_some_and(|mark| mark.session == task.session);
    // A connected socket that came from elsewhere counts as opened.
    let flags = if connected && !known { SOCK_OPENED } else { 0 };
    // SAFETY: as above.
    unsafe { tag(program, sk, task, flags) }
}
