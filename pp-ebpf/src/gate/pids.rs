//! May this pid be a marked process's? For nearly all it may not, and a hook is done after this one look.

use pp_common::abi::PID_PAGE;

use super::maps::PIDS;

/// Whether the process of this tgid must be looked for among the marked ones.
#[inline(always)]
pub(crate) fn may_be_marked(tgid: u32) -> bool {
    match PIDS.get(tgid / PID_PAGE as u32) {
        Some(page) => page[tgid as usize % PID_PAGE] != 0,
        // The kernel gives out no such pid.
        None => true,
    }
}

/// From now on it must. To be called before the mark is there to be found.
#[inline(always)]
pub(crate) fn enter(tgid: u32) {
    set(tgid, 1);
}

/// From now on it need not: its last thread is ending, and the pid is not given out again before that is over.
#[inline(always)]
pub(crate) fn leave(tgid: u32) {
    set(tgid, 0);
}

#[inline(always)]
fn set(tgid: u32, byte: u8) {
    if let Some(page) = PIDS.get_ptr_mut(tgid / PID_PAGE as u32) {
        // SAFETY: a map value, which stays while this program runs. One byte is written whole, and others are left alone.
        unsafe { (&raw mut (*page)[tgid as usize % PID_PAGE]).write_volatile(byte) };
    }
}
