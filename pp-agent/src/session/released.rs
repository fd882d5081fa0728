//! Processes that an operator released. They keep running, and no later walk marks them or their children again. An exec that a rule
//! recognises still starts a session.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::os::process;

/// Most ancestors to look at.
const MAX_ANCESTORS: usize = 64;

/// One process. The start time tells it from other processes that had or get the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Life {
    pid: u32,
    /// Clock ticks from boot to its start, field 22 of `/proc/PID/stat` (proc(5)).
    start_ticks: u64,
}

/// Every process that was released since this boot and still runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Released {
    boot_id: String,
    lives: BTreeSet<Life>,
}

impl Released {
    /// The stored processes, unless they are from another boot.
    #[must_use]
    pub(crate) fn of_boot(kept: Option<Self>, boot_id: &str) -> Self {
        kept.filter(|kept| kept.boot_id == boot_id).unwrap_or_else(|| Self { boot_id: boot_id.to_owned(), lives: BTreeSet::new() })
    }

    /// Adds processes, and removes those that have ended.
    pub(crate) fn add(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.lives.retain(|life| read(life.pid).is_some_and(|(now, _)| now == *life));
        self.lives.extend(pids.into_iter().filter_map(|pid| Some(read(pid)?.0)));
    }

    /// Removes a process that was adopted again.
    pub(crate) fn remove(&mut self, pid: u32) {
        self.lives.retain(|life| life.pid != pid);
    }

    /// Whether nothing was released.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// Whether the process was released, or descends from one that was.
    #[must_use]
    pub(crate) fn covers(&self, pid: u32) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut pid = pid;
        for _ in 0..MAX_ANCESTORS {
            let Some((life, parent)) = read(pid) else { return false };
            if self.lives.contains(&life) {
                return true;
            }
            if parent == 0 {
                return false;
            }
            pid = parent;
        }
        false
    }
}

/// The process that has this pid now, and its parent.
fn read(pid: u32) -> Option<(Life, u32)> {
    let stat = process::stat(pid).ok()?;
    Some((Life { pid, start_ticks: stat.starttime }, process::parent(&stat)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_process_and_its_children_are_covered_and_no_other() {
        let own = std::process::id();
        let mut released = Released::of_boot(None, "b");
        assert!(!released.covers(own));
        let parent = read(own).unwrap().1;
        released.add([parent]);
        assert!(released.covers(parent) && released.covers(own));
        released.remove(parent);
        assert!(!released.covers(own));
    }

    #[test]
    fn another_life_of_the_same_pid_is_not_covered() {
        let own = std::process::id();
        let mut released = Released::of_boot(None, "b");
        released.lives.insert(Life { pid: own, start_ticks: 1 });
        assert!(!released.covers(own));
        released.add([]);
        assert!(released.is_empty(), "an ended life is kept");
    }

    #[test]
    fn what_another_boot_released_is_forgotten() {
        let mut released = Released::of_boot(None, "one");
        released.add([std::process::id()]);
        assert!(Released::of_boot(Some(released.clone()), "two").is_empty());
        assert_eq!(Released::of_boot(Some(released.clone()), "one"), released);
    }
}
