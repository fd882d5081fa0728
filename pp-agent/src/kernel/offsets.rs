//! Offsets of the kernel's structure members that the programs read, from the BTF of the running kernel.

use std::path::Path;

use btf_rs::{Btf, Type};
use pp_common::{abi::Offsets, protect::GuardOffsets};

use super::KernelError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Finds every offset.
///
/// # Errors
/// The kernel has no BTF, or lacks one of the members.
pub fn find() -> Result<Offsets, KernelError> {
    find_in(&kernel()?)
}

/// The running kernel's type information.
pub(super) fn kernel() -> Result<Btf, KernelError> {
    let path = Path::new(VMLINUX);
    if !path.exists() {
        return Err(KernelError::NoBtf { path: path.into() });
    }
    // Read into memory first: from a file, the parser makes a system call for each of a hundred thousand types.
    let bytes = std::fs::read(path).map_err(KernelError::io(path.display().to_string()))?;
    Btf::from_bytes(&bytes).map_err(|error| KernelError::Btf(error.to_string()))
}

pub(super) fn find_in(btf: &Btf) -> Result<Offsets, KernelError> {
    let at = |member| offset(btf, member).ok_or(KernelError::NoMember { member });
    Ok(Offsets {
        task_tgid: at("task_struct.tgid")?,
        task_start_boottime: at("task_struct.start_boottime")?,
        task_group_leader: at("task_struct.group_leader")?,
        task_real_parent: at("task_struct.real_parent")?,
        task_signal: at("task_struct.signal")?,
        task_mm: at("task_struct.mm")?,
        task_cgroups: at("task_struct.cgroups")?,
        task_flags: at("task_struct.flags")?,
        signal_live: at("signal_struct.live")?,
        mm_arg_start: at("mm_struct.arg_start")?,
        mm_arg_end: at("mm_struct.arg_end")?,
        bprm_filename: at("linux_binprm.filename")?,
        css_set_dfl_cgrp: at("css_set.dfl_cgrp")?,
        cgroup_kn: at("cgroup.kn")?,
        cgroup_parent: at("cgroup.self")? + at("cgroup_subsys_state.parent")?,
        kernfs_node_id: at("kernfs_node.id")?,
        socket_sk: at("socket.sk")?,
        socket_type: at("socket.type")?,
        sk_family: at("sock_common.skc_family")?,
        sk_daddr: at("sock_common.skc_daddr")?,
        sk_dport_be: at("sock_common.skc_dport")?,
        sk_v6_daddr: at("sock_common.skc_v6_daddr")?,
        sk_protocol: at("sock.sk_protocol")?,
        msghdr_name: at("msghdr.msg_name")?,
        sk_state: at("sock_common.skc_state")?,
        file_inode: at("file.f_inode")?,
        file_private: at("file.private_data")?,
        inode_mode: at("inode.i_mode")?,
        sk_net: at("sock_common.skc_net")?,
        net_inum: at("net.ns")? + at("ns_common.inum")?,
        sk_bound_dev_if: at("sock_common.skc_bound_dev_if")?,
        sock_addr_uaddr: at("bpf_sock_addr_kern.uaddr")?,
        sk_num: at("sock_common.skc_num")?,
    })
}

/// Finds the offsets that the tamper and delegate programs need.
///
/// # Errors
/// The kernel has no BTF, or lacks one of the members. It then runs without these programs.
pub(super) fn find_guard_in(btf: &Btf) -> Result<GuardOffsets, KernelError> {
    let at = |member| offset(btf, member).ok_or(KernelError::NoMember { member });
    let path_dentry = at("path.dentry")?;
    Ok(GuardOffsets {
        file_f_mode: at("file.f_mode")?,
        file_f_inode: at("file.f_inode")?,
        file_dentry: at("file.f_path")? + path_dentry,
        path_mnt: at("path.mnt")?,
        path_dentry,
        dentry_d_inode: at("dentry.d_inode")?,
        dentry_d_parent: at("dentry.d_parent")?,
        dentry_name: at("dentry.d_name")? + at("qstr.name")?,
        inode_i_mode: at("inode.i_mode")?,
        inode_i_rdev: at("inode.i_rdev")?,
        inode_i_ino: at("inode.i_ino")?,
        inode_i_generation: at("inode.i_generation")?,
        inode_i_sb: at("inode.i_sb")?,
        super_s_dev: at("super_block.s_dev")?,
        super_s_magic: at("super_block.s_magic")?,
        vfsmount_mnt_root: at("vfsmount.mnt_root")?,
        mount_mnt: at("mount.mnt")?,
        mount_mnt_parent: at("mount.mnt_parent")?,
        mount_mnt_group_id: at("mount.mnt_group_id")?,
        task_nsproxy: at("task_struct.nsproxy")?,
        nsproxy_mnt_ns: at("nsproxy.mnt_ns")?,
        mnt_namespace_inum: at("mnt_namespace.ns")? + at("ns_common.inum")?,
        task_cred: at("task_struct.cred")?,
        cred_euid: at("cred.euid")?,
        task_comm: at("task_struct.comm")?,
        task_pid_links: at("task_struct.pid_links")?,
        pid_tasks: at("pid.tasks")?,
        inode_to_proc_pid: at("proc_inode.pid")?.wrapping_sub(at("proc_inode.vfs_inode")?),
        sk_peer_pid: at("sock.sk_peer_pid")?,
        unix_sock_addr: at("unix_sock.addr")?,
        unix_sock_dentry: at("unix_sock.path")? + path_dentry,
        unix_address_len: at("unix_address.len")?,
        unix_address_name: at("unix_address.name")?,
        file_f_flags: at("file.f_flags")?,
        file_mnt: at("file.f_path")? + at("path.mnt")?,
        vfsmount_mnt_flags: at("vfsmount.mnt_flags")?,
        inode_to_proc_fd: at("proc_inode.fd")?.wrapping_sub(at("proc_inode.vfs_inode")?),
        task_files: at("task_struct.files")?,
        files_fdt: at("files_struct.fdt")?,
        fdtable_fd: at("fdtable.fd")?,
        mm_exe_file: at("mm_struct.exe_file")?,
        inode_i_nlink: at("inode.i_nlink")?,
        sk_peer_cred: at("sock.sk_peer_cred")?,
        fs_parameter_key: at("fs_parameter.key")?,
        nsproxy_net_ns: at("nsproxy.net_ns")?,
        cred_cap_effective: at("cred.cap_effective")?,
        cred_user_ns: at("cred.user_ns")?,
        user_ns_level: at("user_namespace.level")?,
        sk_buff_data: at("sk_buff.data")?,
        sk_buff_len: at("sk_buff.len")?,
        sk_buff_group: at("sk_buff.cb")? + at("netlink_skb_parms.dst_group")?,
        net_numbers: at("net.netns_ids")? + at("idr.idr_rt")? + at("xarray.xa_head")?,
        task_stack: at("task_struct.stack")?,
        task_status: at("task_struct.thread_info")? + at("thread_info.status")?,
        xattr_dentry: xattr_dentry(btf),
        pad: 0,
    })
}

/// Whether the hook of `send(2)` also sees `splice(2)` and `sendfile(2)` on this kernel: since 6.5 (fs/splice.c, `splice_to_socket`).
pub(super) fn splices_by_message(btf: &Btf) -> bool {
    btf.resolve_types_by_name("splice_to_socket").is_ok_and(|found| !found.is_empty())
}

/// Which argument of the hooks of extended attributes is the entry: the first, or since 5.12 the one behind the mount's owners.
fn xattr_dentry(btf: &Btf) -> u32 {
    let arguments = |name| {
        let functions = btf.resolve_types_by_name(name).ok()?;
        let function = functions.iter().find_map(|found| if let Type::Func(function) = found { Some(function) } else { None })?;
        let Ok(Type::FuncProto(prototype)) = btf.resolve_chained_type(function) else { return None };
        Some(prototype.parameters.len())
    };
    match arguments("security_inode_removexattr") {
        Some(2) => 0,
        Some(_) | None => 1,
    }
}

/// Offset in bytes of `structure.member`, through anonymous structures and unions.
fn offset(btf: &Btf, path: &str) -> Option<u32> {
    let (name, member) = path.split_once('.')?;
    btf.resolve_types_by_name(name).ok()?.iter().find_map(|found| within(btf, found, member))
}

fn within(btf: &Btf, found: &Type, member: &str) -> Option<u32> {
    let (Type::Struct(composite) | Type::Union(composite)) = found else { return None };
    composite.members.iter().find_map(|candidate| {
        let at = candidate.bit_offset() / 8;
        match btf.resolve_name(candidate) {
            Ok(name) if name == member => Some(at),
            Ok(name) if !name.is_empty() => None,
            _ => {
                let inner = btf.resolve_chained_type(candidate).ok()?;
                Some(at + within(btf, &inner, member)?)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_kernel_since_6_5_is_known_to_splice_by_message() {
        let release = crate::os::host::kernel_release();
        let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
        let (major, minor) = (numbers.next().unwrap(), numbers.next().unwrap());
        if std::path::Path::new(super::VMLINUX).exists() {
            let btf = btf_rs::Btf::from_file(super::VMLINUX).unwrap();
            assert_eq!(super::splices_by_message(&btf), (major, minor) >= (6, 5), "{release}");
        }
    }

    #[test]
    fn the_running_kernel_has_every_member() {
        if std::path::Path::new(super::VMLINUX).exists() {
            let offsets = super::find().unwrap();
            assert!(offsets.task_start_boottime > offsets.task_tgid.min(8));
            assert!(offsets.sk_daddr < offsets.sk_protocol);
            let guard = super::find_guard_in(&super::kernel().unwrap()).unwrap();
            assert!(guard.file_dentry != 0 && guard.dentry_name > guard.dentry_d_parent);
        }
    }
}
