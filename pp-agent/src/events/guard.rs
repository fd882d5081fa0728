//! Events of tampering and of delegates: what was tried, on what, in words.

use pp_common::protect::{GuardHook, GuardRecord, Tamper};

use super::build::at_backend;
use super::{Attempt, Verdict, Why};

/// The attempt of a record.
pub(super) fn attempt(record: &GuardRecord, backend: &str) -> Box<Attempt> {
    let what = Tamper::from_code(record.what);
    Box::new(Attempt {
        verdict: Some(Verdict::of_code(record.verdict)),
        reason: Some(what.map_or(Why::Unknown, Why::from)),
        hook: Some(hook_name(record.hook, backend)),
        repeats: record.repeats,
        object: object(what, record),
        ..Attempt::default()
    })
}

/// The name of a hook at this backend.
#[must_use]
pub(crate) fn hook_name(code: u8, backend: &str) -> String {
    at_backend(GuardHook::from_code(code).map_or("unknown", GuardHook::name), backend)
}

/// The object of the attempt, in a form for machines.
fn object(what: Option<Tamper>, record: &GuardRecord) -> Option<String> {
    let text = text(record);
    match what? {
        Tamper::Signal | Tamper::Trace | Tamper::CgroupMove | Tamper::Limits => {
            (record.target_tgid != 0).then(|| format!("pid {}", record.target_tgid))
        }
        Tamper::Bpf => Some(format!("command {}", record.number)),
        _ if text.is_empty() && record.target_tgid != 0 => Some(format!("pid {}", record.target_tgid)),
        _ => (!text.is_empty()).then_some(text),
    }
}

/// The attempt as a sentence.
pub(super) fn words(record: &GuardRecord) -> String {
    let pid = record.target_tgid;
    let text = text(record);
    match Tamper::from_code(record.what) {
        Some(Tamper::Signal) => format!("signal {} to the daemon", record.number),
        Some(Tamper::Trace) => format!("reaching into process {pid}, which is not of this session"),
        Some(Tamper::Bpf) => format!("bpf(2), command {}", record.number),
        Some(Tamper::Unmount) => "unmounting what holds the gate's files or pins".to_owned(),
        Some(Tamper::Mount) => "mounting over the gate's files or pins, or moving them away".to_owned(),
        Some(Tamper::OwnFile) => format!("changing the gate's own {text}"),
        Some(Tamper::LaterFile) => format!("changing {text}, by which others act later"),
        Some(Tamper::KernelCode) => "loading code into the kernel".to_owned(),
        Some(Tamper::KernelMemory) => format!("opening the host's memory or ports: {text}"),
        Some(Tamper::RawDisk) => format!("writing to a disk past its file system: {text}"),
        Some(Tamper::Tun) => "opening a tun device".to_owned(),
        Some(Tamper::KernelSetting) => format!("writing the kernel's {text}"),
        Some(Tamper::DaemonFile) => format!("writing {text} of the daemon's process or cgroup"),
        Some(Tamper::CgroupMove) => "moving the daemon to another cgroup: the process was ended, and the daemon goes back".to_owned(),
        Some(Tamper::Terminal) => format!("typing in a person's place: {text}"),
        Some(Tamper::Limits) => "changing the daemon's limits, priority, processors or memory nodes".to_owned(),
        Some(Tamper::Reopen) if pid == 0 => "opening again what a process that is not of this session has open".to_owned(),
        Some(Tamper::Reopen) => format!("opening what process {pid} has open, which is not of this session"),
        Some(Tamper::Delegate) if pid != 0 => format!("asking another process to act for the session: pid {pid} listens"),
        Some(Tamper::Delegate) => "asking another process to act for the session".to_owned(),
        Some(Tamper::UnknownDelegate) if pid != 0 => format!("calling a server of the same user that no list names: pid {pid} listens"),
        Some(Tamper::UnknownDelegate) => "calling a server of the same user that no list names".to_owned(),
        Some(Tamper::NetAdmin) => "administering the host's network".to_owned(),
        Some(Tamper::Unreadable) => "the kernel's own structures could not be read".to_owned(),
        None => "a record of another build".to_owned(),
    }
}

/// The text of a record: a file name, a bound path, or an abstract name with `@` for its NUL.
fn text(record: &GuardRecord) -> String {
    let bytes = &record.text;
    let (sign, rest) = match bytes {
        [0, rest @ ..] => ("@", &rest[..]),
        _ => ("", &bytes[..]),
    };
    let length = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    if length == 0 { String::new() } else { format!("{sign}{}", String::from_utf8_lossy(&rest[..length])) }
}

#[cfg(test)]
mod tests {
    use super::super::build::Builder;
    use super::super::record::Record;
    use super::super::record::tests::tamper_bytes;
    use super::super::{Event, Kind};
    use super::*;
    use crate::clock::Now;
    use pp_common::decide::Reason;
    use pp_common::record::kind;

    fn built(record_kind: u32, what: u8, text: &[u8]) -> Event {
        let record = Record::from_bytes(&tamper_bytes(record_kind, what, text)).unwrap();
        Builder::new("h", "lsm").build(&record, Now { boot_ns: 6_000_000, wall_ms: 1_000 }).unwrap()
    }

    #[test]
    fn tampering_says_what_was_tried_on_what() {
        let event = built(kind::TAMPER, 1, b"");
        assert_eq!((event.kind(), event.detail.as_deref()), (Some(Kind::Tamper), Some("signal 15 to the daemon")));
        let attempt = event.attempt().unwrap();
        assert_eq!((attempt.verdict, attempt.reason), (Some(Verdict::Block), Some(Why::Tried(Tamper::Signal))));
        assert_eq!(attempt.object.as_deref(), Some("pid 77"));
        let event = built(kind::TAMPER, 6, b"keys.json");
        let attempt = event.attempt().unwrap();
        assert_eq!((attempt.reason, attempt.object.as_deref()), (Some(Why::Tried(Tamper::OwnFile)), Some("keys.json")));
    }

    #[test]
    fn a_delegate_is_a_verdict_that_names_the_socket_and_no_destination() {
        let object = |text| built(kind::DELEGATE, 20, text).attempt().unwrap().object.clone();
        let event = built(kind::DELEGATE, 20, b"/run/docker.sock");
        assert_eq!((event.kind(), event.attempt().unwrap().reason), (Some(Kind::Verdict), Some(Why::Decided(Reason::Delegate))));
        assert!(event.attempt().unwrap().destination.is_none() && !event.is_requestable());
        assert_eq!(object(b"/run/docker.sock").as_deref(), Some("/run/docker.sock"));
        assert_eq!(object(b"\0abstract").as_deref(), Some("@abstract"));
    }

    #[test]
    fn unknown_codes_are_reported_as_unknown() {
        assert_eq!(built(kind::TAMPER, 99, b"").attempt().unwrap().reason, Some(Why::Unknown));
    }
}
