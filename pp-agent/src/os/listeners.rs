//! Whether a process is a server: whether it holds a socket that accepts connections.

use std::collections::HashSet;
use std::fs;

/// Most descriptors of a process that are looked at.
const MAX_DESCRIPTORS: usize = 4_096;
/// `__SO_ACCEPTCON` in a line of `/proc/PID/net/unix`.
const ACCEPTS: &str = "00010000";
/// `TCP_LISTEN` in a line of `/proc/PID/net/tcp`.
const LISTENS: &str = "0A";

/// Whether the process accepts connections, over a unix socket or TCP. `false` also where it has ended.
pub(crate) fn accepts(pid: u32) -> bool {
    let own = sockets(pid);
    if own.is_empty() {
        return false;
    }
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    holds(&own, listening_unix(&table("unix"))) || ["tcp", "tcp6"].iter().any(|name| holds(&own, listening_tcp(&table(name))))
}

/// The inodes of its sockets.
fn sockets(pid: u32) -> HashSet<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let inode = |link: std::path::PathBuf| {
        let name = link.to_string_lossy().into_owned();
        name.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned)
    };
    entries.flatten().take(MAX_DESCRIPTORS).filter_map(|entry| fs::read_link(entry.path()).ok().and_then(inode)).collect()
}

fn holds<'a>(own: &HashSet<String>, mut listening: impl Iterator<Item = &'a str>) -> bool {
    listening.any(|inode| own.contains(inode))
}

/// The inodes of listening sockets in a table as `/proc/net/unix`: number, references, protocol, flags, type, state, inode, name.
fn listening_unix(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        (fields.next()? == ACCEPTS).then_some(())?;
        fields.nth(2)
    })
}

/// The same in a table as `/proc/net/tcp`: number, own end, far end, state, queues, timers, retransmissions, uid, timeout, inode.
fn listening_tcp(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        (fields.next()? == LISTENS).then_some(())?;
        fields.nth(5)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_others() {
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/a b\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 4712\n";
        assert_eq!(listening_unix(unix).collect::<Vec<_>>(), ["4711"]);
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                   \x20  0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3011 1 0000\n\
                   \x20  1: 0100007F:A2C4 0100007F:0016 01 00000000:00000000 00:00000000 00000000  1000        0 3012 1 0000\n";
        assert_eq!(listening_tcp(tcp).collect::<Vec<_>>(), ["3011"]);
    }

    #[test]
    fn own_process_is_a_server_while_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(accepts(std::process::id()));
        drop(listener);
        assert!(!accepts(u32::MAX));
    }
}
