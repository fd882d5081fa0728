//! A program of another owner that lets no other program run at a hook of a cgroup: whose it is, and what to do about it.
//!
//! Programs that are attached with `BPF_F_ALLOW_MULTI`, as links always are, run one after the other. One that was attached without it is
//! alone. The kernel then refuses any other at that cgroup with EPERM, and, unless it was attached with `BPF_F_ALLOW_OVERRIDE`, at all
//! cgroups below (`hierarchy_allows_attach` in `kernel/bpf/cgroup.c`).

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use super::{
    links::{self, ProgramInfo},
    programs::CgroupHook,
    sys,
};
use crate::os::mounts;

const BPF_F_ALLOW_OVERRIDE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// How many files of bpf file systems are searched for a pin.
const MAX_PINS: usize = 10_000;

/// The program that is alone at a hook.
#[derive(Debug)]
pub(super) struct Exclusive {
    hook: CgroupHook,
    cgroup: PathBuf,
    id: u32,
    /// `None`: it is gone by now.
    program: Option<ProgramInfo>,
    pins: Vec<PathBuf>,
    /// Processes with a descriptor of it, by pid and name.
    processes: Vec<(u32, String)>,
}

/// The program because of which no other can be attached at this hook of a cgroup, if there is one.
pub(super) fn exclusive_at(cgroup: BorrowedFd<'_>, hook: CgroupHook) -> Option<Exclusive> {
    let own = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
    own.ancestors().map_while(|folder| Some((folder, attached_at(folder, hook)?))).find_map(|(folder, attached)| {
        let id = *attached.programs.first().filter(|_| is_exclusive(attached.flags, folder != own))?;
        let program = links::program(id).and_then(|program| links::program_info(program.as_fd())).ok();
        Some(Exclusive { hook, cgroup: folder.to_owned(), id, program, pins: pins_of(id), processes: processes_of(id) })
    })
}

/// `None`: the folder is no cgroup.
fn attached_at(folder: &Path, hook: CgroupHook) -> Option<links::AttachedAt> {
    links::attached_at(File::open(folder).ok()?.as_fd(), hook.number).ok()
}

/// Whether a program that was attached with these flags, at the cgroup itself or above it, lets no other be attached.
const fn is_exclusive(flags: u32, above: bool) -> bool {
    flags & BPF_F_ALLOW_MULTI == 0 && !(above && flags & BPF_F_ALLOW_OVERRIDE != 0)
}

/// The pins of a program, and of links of it, in every bpf file system that is seen here.
fn pins_of(id: u32) -> Vec<PathBuf> {
    let mounts = mounts::mounts().unwrap_or_default();
    let mut folders: Vec<PathBuf> = mounts.into_iter().filter(|mount| mount.kind == "bpf").map(|mount| mount.point).collect();
    let mut found = Vec::new();
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > MAX_PINS {
                return found;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && is_pin_of(&entry.path(), id) => found.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

fn is_pin_of(pin: &Path, id: u32) -> bool {
    let Ok(object) = sys::object(pin) else { return false };
    fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd())).is_ok_and(|text| names_program(&text, id))
}

/// The processes that have a descriptor of a program, or of a link of it.
fn processes_of(id: u32) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != std::process::id());
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| names_program(&text, id)))
    };
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
    pids.filter(holds).map(|pid| (pid, name(pid))).collect()
}

/// Whether `/proc/PID/fdinfo/FD` is that of this program or of a link of it.
fn names_program(fdinfo: &str, id: u32) -> bool {
    fdinfo.lines().any(|line| line.strip_prefix("prog_id:").is_some_and(|number| number.trim().parse() == Ok(id)))
}

impl std::fmt::Display for Exclusive {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hook, id, program, .. } = self;
        let cgroup = self.cgroup.display();
        write!(out, "program {id}")?;
        if let Some(ProgramInfo { name, loaded_by }) = program {
            write!(out, " \"{name}\", which uid {loaded_by} loaded,")?;
        }
        write!(out, " is attached at {cgroup} ({}) without BPF_F_ALLOW_MULTI, so that no other can be; ", hook.name)?;
        let pins = self.pins.iter().map(|pin| format!("pinned at {}", pin.display()));
        let processes = self.processes.iter().map(|(pid, name)| format!("held by pid {pid} ({name})"));
        let holders: Vec<String> = pins.chain(processes).collect();
        match holders.as_slice() {
            [] => out.write_str("no pin and no process holds it, only the cgroup")?,
            some => write!(out, "it is {}", some.join(", "))?,
        }
        write!(out, "; have its owner attach it with BPF_F_ALLOW_MULTI, or detach it: bpftool cgroup detach {cgroup} {} id {id}", hook.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(pins: &[&str], processes: &[(u32, &str)]) -> String {
        Exclusive {
            hook: CgroupHook { number: 10, name: "connect4" },
            cgroup: "/sys/fs/cgroup".into(),
            id: 77,
            program: Some(ProgramInfo { name: "sd_fw".to_owned(), loaded_by: 0 }),
            pins: pins.iter().map(PathBuf::from).collect(),
            processes: processes.iter().map(|(pid, name)| (*pid, (*name).to_owned())).collect(),
        }
        .to_string()
    }

    #[test]
    fn only_a_program_that_shares_its_hook_lets_others_be_attached() {
        assert!(is_exclusive(0, false) && is_exclusive(BPF_F_ALLOW_OVERRIDE, false));
        assert!(is_exclusive(0, true) && !is_exclusive(BPF_F_ALLOW_OVERRIDE, true));
        assert!(!is_exclusive(BPF_F_ALLOW_MULTI, false) && !is_exclusive(BPF_F_ALLOW_MULTI, true));
    }

    #[test]
    fn message_says_whose_it_is_and_what_to_do() {
        assert_eq!(
            alone(&["/sys/fs/bpf/fw"], &[(1, "systemd")]),
            "program 77 \"sd_fw\", which uid 0 loaded, is attached at /sys/fs/cgroup (connect4) without BPF_F_ALLOW_MULTI, so that no other \
             can be; it is pinned at /sys/fs/bpf/fw, held by pid 1 (systemd); have its owner attach it with BPF_F_ALLOW_MULTI, or detach \
             it: bpftool cgroup detach /sys/fs/cgroup connect4 id 77"
        );
        assert!(alone(&[], &[]).contains("no pin and no process holds it, only the cgroup; have its owner"));
    }

    #[test]
    fn descriptors_of_other_programs_are_not_taken_for_it() {
        let link = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t3\nprog_tag:\tab\nprog_id:\t77\n";
        assert!(names_program(link, 77) && !names_program(link, 7) && !names_program(link, 3));
        assert!(!names_program("pos:\t0\nmap_id:\t77\n", 77));
    }
}
