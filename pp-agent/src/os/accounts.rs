//! Users and groups by name and number: first the host's own files, then `getent`, which asks its directory services (SSSD, LDAP, NIS).
//!
//! The C library's look-ups are not used. They load libraries that a session as root could replace, into the daemon. `getent` loads them into
//! a process that is nobody's.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;

/// The program that asks what `/etc/nsswitch.conf` names. Sessions may not change it.
pub(crate) const GETENT: &str = "/usr/bin/getent";
/// The user and group without rights, as the kernel has them (`overflowuid` and `overflowgid`).
const NOBODY: u32 = 65_534;
/// Its exit code if there is no such entry (getent(1)).
const NO_SUCH_ENTRY: i32 = 2;
/// The longest that a directory service is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// A database of passwd(5) or group(5). In both, an entry begins with its name, a password and its number.
#[derive(Clone, Copy)]
enum Database {
    Users,
    Groups,
}

impl Database {
    const fn name(self) -> &'static str {
        match self {
            Self::Users => "passwd",
            Self::Groups => "group",
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Users => "/etc/passwd",
            Self::Groups => "/etc/group",
        }
    }

    /// The entry that `wanted` accepts; `key` is what `getent` is asked for.
    fn find(self, key: &str, wanted: impl Fn(&Entry<'_>) -> bool) -> io::Result<Option<(String, u32)>> {
        let in_text =
            |text: &str| text.lines().filter_map(Entry::of).find(|entry| wanted(entry)).map(|entry| (entry.name.to_owned(), entry.number));
        match fs::read(self.file()) {
            Ok(bytes) => {
                if let Some(found) = in_text(&String::from_utf8_lossy(&bytes)) {
                    return Ok(Some(found));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", self.file()))),
        }
        // Of digits it finds the entry with this number, and of a name the one with this name. Both are checked.
        let answer = getent(Path::new(GETENT), &[self.name(), "--", key], PATIENCE)?;
        Ok(answer.as_deref().and_then(in_text))
    }
}

/// The beginning of an entry.
struct Entry<'a> {
    name: &'a str,
    number: u32,
}

impl<'a> Entry<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut parts = line.split(':');
        let (name, _password, number) = (parts.next()?, parts.next()?, parts.next()?);
        // Entries with a sign in front are instructions for NIS (nsswitch.conf(5), "compat").
        (!name.is_empty() && !name.starts_with(['+', '-', '#'])).then_some(Self { name, number: number.parse().ok()? })
    }
}

/// The uid of a user. `None`: this host knows none of this name.
///
/// # Errors
/// The databases of this host cannot be asked, or do not answer within five seconds.
pub(crate) fn uid_of(name: &str) -> io::Result<Option<u32>> {
    Ok(named(Database::Users, name)?.map(|(_, number)| number))
}

/// The gid of a group. `None`: this host knows none of this name.
///
/// # Errors
/// As [`uid_of`].
pub(crate) fn gid_of(name: &str) -> io::Result<Option<u32>> {
    Ok(named(Database::Groups, name)?.map(|(_, number)| number))
}

/// The name of a user. `None`: this host knows none with this uid.
///
/// # Errors
/// As [`uid_of`].
pub(crate) fn user_name(uid: u32) -> io::Result<Option<String>> {
    Ok(Database::Users.find(&uid.to_string(), |entry| entry.number == uid)?.map(|(name, _)| name))
}

fn named(database: Database, name: &str) -> io::Result<Option<(String, u32)>> {
    // No entry has such a name, and `getent` would read it as something else.
    if name.is_empty() || name.starts_with('-') || name.contains([':', '\n', '\0']) {
        return Ok(None);
    }
    database.find(name, |entry| entry.name == name)
}

/// What `getent` prints; `None`: it finds nothing, or is not there.
fn getent(program: &Path, arguments: &[&str], patience: Duration) -> io::Result<Option<String>> {
    let say = |text: String| io::Error::other(format!("{} {}: {text}", program.display(), arguments.join(" ")));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if geteuid().is_root() {
        // Other groups go with it.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(say(error.to_string())),
    };
    // A long entry does not fit into the pipe, so it is read meanwhile.
    let reading = child.stdout.take().map(|mut out| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            out.read_to_end(&mut bytes).map(|_| bytes)
        })
    });
    let until = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until {
            child.kill()?;
            let _status = child.wait()?;
            return Err(say(format!("no answer within {} s", patience.as_secs_f64())));
        }
        thread::sleep(PAUSE);
    };
    let bytes = match reading.map(thread::JoinHandle::join) {
        Some(Ok(bytes)) => bytes?,
        Some(Err(_)) | None => return Err(say("its output could not be read".to_owned())),
    };
    match status.code() {
        Some(0) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Some(NO_SUCH_ENTRY) => Ok(None),
        Some(_) | None => Err(say(status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_of_this_host_are_found_by_name_and_number() {
        assert_eq!(uid_of("root").unwrap(), Some(0));
        assert_eq!(gid_of("root").unwrap(), Some(0));
        assert_eq!(user_name(0).unwrap().as_deref(), Some("root"));
    }

    #[test]
    fn names_that_nobody_has_are_nobody() {
        for name in ["", "nobody-of-this-name", "--help", "0", "root:x:0", "+", "a\nb"] {
            assert_eq!(uid_of(name).unwrap(), None, "{name}");
            assert_eq!(gid_of(name).unwrap(), None, "{name}");
        }
        assert_eq!(user_name(u32::MAX - 1).unwrap(), None);
    }

    #[test]
    fn entries_are_read_as_the_host_reads_them() {
        let number = |line| Entry::of(line).map(|entry| (entry.name, entry.number));
        assert_eq!(number("ann:x:1000:1000:Ann:/home/ann:/bin/sh"), Some(("ann", 1000)));
        assert_eq!(number("operators:*:4000000000:ann,ben"), Some(("operators", 4_000_000_000)));
        for line in ["", "ann", "ann:x", "ann:x:", "ann:x:-1", "+ann:x:0:0", "-ann:x:0:0", "#ann:x:0:0", "+::::::"] {
            assert_eq!(number(line), None, "{line}");
        }
    }

    #[test]
    fn a_directory_that_answers_is_used_and_one_that_hangs_or_fails_is_an_error() {
        let say = |script: &str| getent(Path::new("/bin/sh"), &["-c", script], Duration::from_millis(300));
        assert_eq!(say("echo far:x:70000:").unwrap().as_deref(), Some("far:x:70000:\n"));
        assert_eq!(say("exit 2").unwrap(), None);
        assert!(say("exit 3").unwrap_err().to_string().contains("exit status: 3"));
        assert!(say("exec sleep 20").unwrap_err().to_string().contains("no answer within 0.3 s"));
        assert_eq!(getent(Path::new("/nonexistent/getent"), &[], PATIENCE).unwrap(), None);
        let nobody = if geteuid().is_root() { "65534 65534 65534\n" } else { "" };
        assert!(say("echo $(id -u) $(id -g) $(id -G)").unwrap().is_some_and(|ids| ids.ends_with(nobody)));
        // More than a pipe holds.
        assert_eq!(say("head -c 200000 /dev/zero").unwrap().map(|text| text.len()), Some(200_000));
    }
}
