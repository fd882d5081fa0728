//! Reading kernel structures at the offsets the loader found in the kernel's BTF.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use pp_common::abi::Offsets;

/// Filled in by the loader before the object is loaded, read-only afterwards.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_tgid: 0,
    task_start_boottime: 0,
    task_group_leader: 0,
    task_real_parent: 0,
    task_signal: 0,
    task_mm: 0,
    task_cgroups: 0,
    task_flags: 0,
    signal_live: 0,
    mm_arg_start: 0,
    mm_arg_end: 0,
    bprm_filename: 0,
    css_set_dfl_cgrp: 0,
    cgroup_kn: 0,
    cgroup_parent: 0,
    kernfs_node_id: 0,
    socket_sk: 0,
    socket_type: 0,
    sk_family: 0,
    sk_daddr: 0,
    sk_dport_be: 0,
    sk_v6_daddr: 0,
    sk_protocol: 0,
    msghdr_name: 0,
    sk_state: 0,
    file_inode: 0,
    file_private: 0,
    inode_mode: 0,
    sk_net: 0,
    net_inum: 0,
    sk_bound_dev_if: 0,
    sock_addr_uaddr: 0,
    sk_num: 0,
};

/// The offset that `pick` selects.
#[inline(always)]
pub(crate) fn member(pick: impl FnOnce(*const Offsets) -> *const u32) -> usize {
    // SAFETY: `pick` returns a member of a static; volatile, since the loader changed it after
    // the compiler saw it.
    unsafe { core::ptr::read_volatile(pick(&raw const OFFSETS)) as usize }
}

/// `offset!(member)`: the offset of that member of [`Offsets`].
macro_rules! offset {
    ($member:ident) => {
        $crate::gate::kernel::member(|offsets| {
            // SAFETY: the address of a member of the static that was passed in.
            unsafe { &raw const (*offsets).$member }
        })
    };
}
pub(crate) use offset;

/// Reads a `T` at `base + offset`; `None` where that memory cannot be read.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: usize) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { bpf_probe_read_kernel((base as usize + offset) as *const T) }.ok()
}

/// The current task's `task_struct`.
#[inline(always)]
pub(crate) fn current_task() -> u64 {
    // SAFETY: no arguments, always valid.
    unsafe { bpf_get_current_task() }
}

/// When the process of `task` started, boot time.
#[inline(always)]
pub(crate) fn start_ns(task: u64) -> Option<u64> {
    let leader: u64 = read(task, offset!(task_group_leader))?;
    read(leader, offset!(task_start_boottime))
}
