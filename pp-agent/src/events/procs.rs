//! What marked processes run, and their ancestors: from kernel records, or else from `/proc`.

use std::collections::{HashMap, VecDeque};
use std::fs;

use super::Parent;
use super::record::{Exec, Record, split_arguments};
use crate::os::process;

/// Most processes that are remembered. Others are read from `/proc`.
const MAX_PROCESSES: usize = 65_536;
/// How many ended processes are kept, for events and children that are reported later.
const MAX_ENDED: usize = 4_096;
/// Most ancestors an event names.
const MAX_PARENTS: usize = 8;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its parent; zero: not known.
    pub(crate) parent: u32,
    /// What it runs.
    pub(crate) executable: String,
    /// Its arguments, unmasked. Callers must mask them before they show or store them.
    pub(crate) argv: Vec<String>,
    /// Its cgroup2 path.
    pub(crate) cgroup: Option<String>,
    /// Its session; zero for an ancestor outside of sessions.
    pub(crate) session: u64,
}

/// The processes.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    known: HashMap<u32, Process>,
    ended: VecDeque<u32>,
    members: HashMap<u64, usize>,
}

/// What a record changed apart from the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// The last known process of this session ended.
    SessionEnded(u64),
}

impl Processes {
    /// Updates the table with one record.
    pub(crate) fn learn(&mut self, record: &Record) -> Change {
        let header = record.header();
        match record {
            Record::Exec(exec) | Record::SessionStart(exec) | Record::Tool(exec) => self.exec(exec),
            Record::Fork(task) => {
                let mut child = self.known.get(&task.parent_tgid).cloned().unwrap_or_default();
                child.parent = task.parent_tgid;
                child.session = header.session;
                self.insert(header.tgid, child);
            }
            Record::Exit(_) => return self.exit(header.tgid, header.session),
            Record::Verdict(_) | Record::TableFull(_) | Record::Tamper(_) | Record::Delegate(_) => {}
        }
        Change::None
    }

    /// Adds a process that was marked without a record.
    pub(crate) fn adopt(&mut self, pid: u32, session: u64) {
        let mut process = read(pid).unwrap_or_default();
        process.session = session;
        self.insert(pid, process);
    }

    /// The process, from memory or `/proc`.
    #[must_use]
    pub(crate) fn find(&self, pid: u32) -> Option<Process> {
        self.known.get(&pid).cloned().or_else(|| read(pid))
    }

    /// Its ancestors, nearest first.
    #[must_use]
    pub(crate) fn parents(&self, process: &Process) -> Vec<Parent> {
        let mut parents = Vec::new();
        let mut pid = process.parent;
        while pid != 0 && parents.len() < MAX_PARENTS {
            let Some(parent) = self.find(pid) else {
                parents.push(Parent { pid, executable: String::new() });
                break;
            };
            parents.push(Parent { pid, executable: parent.executable });
            pid = parent.parent;
        }
        parents
    }

    /// How many live processes of a session are known.
    #[must_use]
    pub(crate) fn members(&self, session: u64) -> usize {
        self.members.get(&session).copied().unwrap_or(0)
    }

    fn exec(&mut self, exec: &Exec) {
        let pid = exec.header.tgid;
        let live = read(pid);
        let executable = match &live {
            Some(process) if !process.executable.is_empty() => process.executable.clone(),
            _ => exec.path.clone(),
        };
        let cgroup = live.and_then(|process| process.cgroup);
        let process = Process { parent: exec.parent_tgid, executable, argv: exec.argv.clone(), cgroup, session: exec.header.session };
        self.insert(pid, process);
    }

    fn insert(&mut self, pid: u32, process: Process) {
        if self.known.len() >= MAX_PROCESSES && !self.known.contains_key(&pid) {
            return;
        }
        let session = process.session;
        let before = self.known.insert(pid, process).map_or(0, |old| old.session);
        if before == session {
            return;
        }
        if let Some(count) = self.members.get_mut(&before) {
            *count = count.saturating_sub(1);
        }
        *self.members.entry(session).or_insert(0) += 1;
    }

    fn exit(&mut self, pid: u32, session: u64) -> Change {
        if let Some(process) = self.known.get_mut(&pid) {
            process.session = 0;
            self.ended.push_back(pid);
        }
        while self.ended.len() > MAX_ENDED {
            if let Some(old) = self.ended.pop_front()
                && self.known.get(&old).is_some_and(|process| process.session == 0)
            {
                self.known.remove(&old);
            }
        }
        let Some(count) = self.members.get_mut(&session) else { return Change::None };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return Change::None;
        }
        self.members.remove(&session);
        Change::SessionEnded(session)
    }
}

/// A process as `/proc` shows it now.
#[must_use]
pub(crate) fn read(pid: u32) -> Option<Process> {
    let parent = process::parent(&process::stat(pid).ok()?);
    let executable = fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let argv = fs::read(format!("/proc/{pid}/cmdline")).map_or(Vec::new(), |bytes| split_arguments(&bytes));
    Some(Process { parent, executable, argv, cgroup: process::cgroup2(Some(pid)), session: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pp_common::record::{RecordHeader, TaskRecord};

    fn task(tgid: u32, parent_tgid: u32) -> TaskRecord {
        let header = RecordHeader { tgid, session: 9, ..RecordHeader::default() };
        TaskRecord { header, parent_tgid, pad: 0 }
    }

    #[test]
    fn child_inherits_what_its_parent_runs_and_names_it() {
        let mut processes = Processes::default();
        let header = RecordHeader { tgid: 4_000_001, session: 9, ..RecordHeader::default() };
        let argv = vec!["claude".to_owned()];
        let exec = Exec { header, parent_tgid: 0, rule: 1, path: "/opt/claude".into(), argv };
        processes.learn(&Record::SessionStart(exec));
        processes.learn(&Record::Fork(task(4_000_002, 4_000_001)));
        let child = processes.find(4_000_002).unwrap();
        assert_eq!(child.executable, "/opt/claude");
        assert_eq!(processes.parents(&child)[0].executable, "/opt/claude");
    }

    #[test]
    fn session_ends_with_its_last_process() {
        let mut processes = Processes::default();
        processes.learn(&Record::Fork(task(4_000_001, 1)));
        processes.learn(&Record::Fork(task(4_000_002, 4_000_001)));
        assert_eq!(processes.learn(&Record::Exit(task(4_000_001, 0))), Change::None);
        assert_eq!(processes.learn(&Record::Exit(task(4_000_002, 0))), Change::SessionEnded(9));
    }

    #[test]
    fn own_process_is_read_from_proc() {
        let me = read(std::process::id()).unwrap();
        assert!(me.parent != 0 && !me.executable.is_empty() && !me.argv.is_empty());
    }
}
