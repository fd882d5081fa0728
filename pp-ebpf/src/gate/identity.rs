//! Which agent a program is: the identity rules, compiled by the daemon into
//! one automaton over path and arguments, then user rules, then cgroup rules.

use aya_ebpf::helpers::bpf_get_current_uid_gid;
use pp_common::abi::{Control, EXEC_ARGV_LEN, MAX_CGROUP_DEPTH, MAX_RULES, NameId, UserKey};

use super::{
    kernel::{current_task, offset, read},
    maps::{CGROUPS, DFA_BYTES, DFA_ROWS, ExecInput, RULES, USERS},
    mark::{control, current_tgid},
    walker::Automaton,
};

/// `PF_KTHREAD`, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// A rule that holds for the running process.
pub(crate) struct Match {
    /// The agent.
    pub(crate) agent: NameId,
    /// The rule's index in the automaton plus one; zero: a user or cgroup rule.
    pub(crate) rule: u32,
}

/// The agent that the running process is, if any.
#[inline(always)]
pub(crate) fn identify(input: &ExecInput, argv_len: usize) -> Option<Match> {
    let control = control();
    if never_markable(&control) {
        return None;
    }
    match program_rule(&control, input, argv_len) {
        Some(rule) => {
            let index = (control.generation & 1) * MAX_RULES as u32 + rule;
            let target = RULES.get(index)?;
            // A target of zero is the never-markable list: it ends the search.
            (target.agent != 0).then_some(Match { agent: target.agent, rule: rule + 1 })
        }
        None => user_rule(&control).or_else(cgroup_rule).map(|agent| Match { agent, rule: 0 }),
    }
}

/// PID 1, kernel threads and the daemon.
#[inline(always)]
fn never_markable(control: &Control) -> bool {
    let tgid = current_tgid();
    if tgid <= 1 || tgid == control.daemon {
        return true;
    }
    match read::<u32>(current_task(), offset!(task_flags)) {
        Some(flags) => flags & PF_KTHREAD != 0,
        None => false,
    }
}

/// The rule that the path and arguments match first.
#[inline(always)]
fn program_rule(control: &Control, input: &ExecInput, argv_len: usize) -> Option<u32> {
    let half = control.generation & 1;
    let automaton = Automaton { rows: &DFA_ROWS, classes: DFA_BYTES.get(half)?, half };
    let state = automaton.walk::<EXEC_ARGV_LEN, true>(input, argv_len)?;
    Some(u32::from(state) & (MAX_RULES as u32 - 1))
}

#[inline(always)]
fn user_rule(control: &Control) -> Option<NameId> {
    let uid = bpf_get_current_uid_gid() as u32;
    let key = UserKey { generation: control.generation, uid };
    // SAFETY: copied at once.
    unsafe { USERS.get(&key) }.copied()
}

/// A cgroup rule holds for every cgroup below.
#[inline(always)]
fn cgroup_rule() -> Option<NameId> {
    let css_set: u64 = read(current_task(), offset!(task_cgroups))?;
    let mut cgroup: u64 = read(css_set, offset!(css_set_dfl_cgrp))?;
    for _ in 0..MAX_CGROUP_DEPTH {
        let node: u64 = read(cgroup, offset!(cgroup_kn))?;
        let id: u64 = read(node, offset!(kernfs_node_id))?;
        // SAFETY: copied at once.
        if let Some(agent) = unsafe { CGROUPS.get(id) } {
            return Some(*agent);
        }
        cgroup = read(cgroup, offset!(cgroup_parent))?;
        if cgroup == 0 {
            return None;
        }
    }
    None
}
