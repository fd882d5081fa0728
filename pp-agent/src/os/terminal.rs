//! Who shares this process's terminal: whoever does can type into it.

use std::collections::{BTreeSet, HashMap};
use std::{fs, io};

use super::process;

/// A process, as far as terminals go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    parent: u32,
    session: u32,
    has_terminal: bool,
}

/// The processes of the terminals that this one hangs on: of each, the session, and all that its leader has started. `sudo` gives its command
/// a terminal of its own, so those of the ancestors count. Empty: it has none.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn companions() -> io::Result<BTreeSet<u32>> {
    let own = std::process::id();
    let mut places = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Those that have ended meanwhile type nothing.
        let Ok(stat) = process::stat(pid) else { continue };
        let session = u32::try_from(stat.session).unwrap_or(0);
        places.insert(pid, Place { parent: process::parent(&stat), session, has_terminal: stat.tty_nr != 0 });
    }
    Ok(around(own, &places))
}

fn around(own: u32, places: &HashMap<u32, Place>) -> BTreeSet<u32> {
    let leaders: BTreeSet<u32> = lineage(own, places).map_while(|(_, place)| place.has_terminal.then_some(place.session)).collect();
    let belongs = |pid: u32| lineage(pid, places).any(|(pid, place)| leaders.contains(&pid) || leaders.contains(&place.session));
    places.keys().copied().filter(|pid| belongs(*pid)).collect()
}

/// A process and its ancestors.
fn lineage(pid: u32, places: &HashMap<u32, Place>) -> impl Iterator<Item = (u32, Place)> {
    // Processes come and go while they are read, so that parents could form a circle.
    let mut left = places.len();
    let mut next = Some(pid);
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let pid = next?;
        let place = *places.get(&pid)?;
        next = (place.parent != 0).then_some(place.parent);
        Some((pid, place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(rows: &[(u32, u32, u32, bool)]) -> HashMap<u32, Place> {
        let place = |(pid, parent, session, has_terminal): &(u32, u32, u32, bool)| {
            (*pid, Place { parent: *parent, session: *session, has_terminal: *has_terminal })
        };
        rows.iter().map(place).collect()
    }

    /// Two logins by ssh: a shell (20) that runs an agent (21, with a child 22 in a session of its own), and another shell (40).
    const LOGINS: [(u32, u32, u32, bool); 7] = [
        (1, 0, 1, false),
        (10, 1, 10, false),
        (20, 10, 20, true),
        (21, 20, 20, true),
        (22, 21, 22, false),
        (30, 1, 30, false),
        (40, 30, 40, true),
    ];

    #[test]
    fn everything_that_the_leader_of_the_terminal_has_started_counts() {
        let mut rows = LOGINS.to_vec();
        rows.push((50, 20, 20, true));
        assert_eq!(around(50, &places(&rows)), [20, 21, 22, 50].into());
    }

    #[test]
    fn terminal_that_sudo_made_does_not_hide_the_one_it_was_typed_in() {
        let mut rows = LOGINS.to_vec();
        rows.extend([(50, 20, 20, true), (51, 50, 51, true), (52, 51, 51, true)]);
        assert_eq!(around(52, &places(&rows)), [20, 21, 22, 50, 51, 52].into());
    }

    #[test]
    fn other_terminals_and_what_has_none_do_not_count() {
        let mut rows = LOGINS.to_vec();
        rows.push((50, 40, 40, true));
        assert_eq!(around(50, &places(&rows)), [40, 50].into());
        rows.push((60, 1, 60, false));
        assert_eq!(around(60, &places(&rows)), BTreeSet::new());
    }

    #[test]
    fn circle_of_parents_ends() {
        assert_eq!(around(5, &places(&[(5, 6, 5, true), (6, 5, 5, true)])), [5, 6].into());
    }

    #[test]
    fn leader_that_has_ended_leaves_its_session() {
        assert_eq!(around(5, &places(&[(5, 1, 3, true), (6, 1, 3, true), (7, 1, 7, true)])), [5, 6].into());
    }
}
