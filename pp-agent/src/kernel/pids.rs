//! Which pids may belong to marked processes: the daemon's side of the map `PIDS`.

use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU8, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use pp_common::abi::{PID_PAGE, PID_PAGES};

use super::KernelError;

/// Bytes of the map.
const LEN: NonZeroUsize = NonZeroUsize::new(PID_PAGE * PID_PAGES as usize).expect("not zero");
/// The pid of the kernel's idle task, which is never marked. Its byte says that the others are reliable.
const IDLE: u32 = 0;

/// The map in this process's memory. RACE: programs write its bytes at any time, so each byte is only written whole, never modified.
pub(super) struct Pids {
    start: NonNull<c_void>,
}

// SAFETY: the memory belongs to no thread, and all access to it is atomic.
unsafe impl Send for Pids {}
// SAFETY: as above.
unsafe impl Sync for Pids {}

impl Pids {
    /// Maps it into memory. Every pid may be marked if marks are older than the map (`fresh` is false and the map is new). The same holds
    /// if programs that do not know the map may have made marks (`doubtful`). The exit hook clears the byte of a pid again.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn open(map: impl AsFd, fresh: bool, doubtful: bool) -> Result<Self, KernelError> {
        // SAFETY: a new mapping of the size of the map; nothing else refers to it.
        let start = unsafe { mmap(None, LEN, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0) };
        let start = start.map_err(|error| KernelError::Map { map: "PIDS", reason: format!("cannot be mapped: {error}") })?;
        let pids = Self { start };
        let new = pids.byte(IDLE).is_none_or(|byte| byte.load(Ordering::SeqCst) == 0);
        if doubtful || new && !fresh {
            pids.bytes().iter().skip(1).for_each(|byte| byte.store(1, Ordering::SeqCst));
        }
        pids.enter(IDLE);
        Ok(pids)
    }

    /// Has hooks look up the mark of this process from now on. Must be called before the mark is inserted.
    pub(super) fn enter(&self, tgid: u32) {
        if let Some(byte) = self.byte(tgid) {
            byte.store(1, Ordering::SeqCst);
        }
    }

    /// The byte of a pid. Hooks always look up a pid that has none.
    fn byte(&self, tgid: u32) -> Option<&AtomicU8> {
        self.bytes().get(usize::try_from(tgid).ok()?)
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: so many bytes are mapped, readable and writable, as long as `self` lives, and any byte is a valid value.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), LEN.get()) }
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        // SAFETY: mapped in `open`, and no reference outlives `self`.
        if let Err(error) = unsafe { munmap(self.start, LEN.get()) } {
            tracing::warn!("map PIDS: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(pids: &Pids) -> Vec<u8> {
        pids.bytes().iter().map(|byte| byte.load(Ordering::SeqCst)).collect()
    }

    #[test]
    fn map_that_is_younger_than_the_marks_rules_no_pid_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN.get() as u64).unwrap();
        assert!(bytes(&Pids::open(&file, false, false).unwrap()).iter().all(|byte| *byte == 1));
    }

    #[test]
    fn programs_of_another_build_rule_no_pid_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN.get() as u64).unwrap();
        drop(Pids::open(&file, true, false).unwrap());
        assert!(bytes(&Pids::open(&file, false, true).unwrap()).iter().all(|byte| *byte == 1));
    }

    #[test]
    fn later_start_finds_what_was_entered() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN.get() as u64).unwrap();
        let first = Pids::open(&file, true, false).unwrap();
        first.enter(4_194_303);
        first.enter(u32::MAX);
        drop(first);
        let found = bytes(&Pids::open(&file, false, false).unwrap());
        let entered: Vec<usize> = found.iter().enumerate().filter_map(|(pid, byte)| (*byte == 1).then_some(pid)).collect();
        assert_eq!(entered, [0, 4_194_303]);
    }
}
