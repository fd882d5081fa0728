//! What a concurrency hunt is judged by: every call that went through must be explained by a receipt that was live, or by a policy that
//! protected nothing there, at some moment between its beginning and its end.
//!
//! All instants are boot time in nanoseconds, the clock that the kernel decides by. What the daemon does takes time, so each stretch is
//! kept twice: when something *may* have been in force (from the request's beginning to the answer of what ended it), and when it *must*
//! have been (from the answer to the next request's beginning).

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;

/// A stretch of boot time in nanoseconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first instant.
    pub from_ns: u64,
    /// Its last instant.
    pub until_ns: u64,
}

impl Span {
    /// A stretch; an empty one when it ends before it begins.
    #[must_use]
    pub const fn new(from_ns: u64, until_ns: u64) -> Self {
        Self { from_ns, until_ns }
    }

    /// What both have in common.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { from_ns: self.from_ns.max(other.from_ns), until_ns: self.until_ns.min(other.until_ns) }
    }

    /// True when there is no instant in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.from_ns > self.until_ns
    }

    /// True when all of the other is in it.
    #[must_use]
    pub const fn holds(self, other: Self) -> bool {
        self.from_ns <= other.from_ns && other.until_ns <= self.until_ns
    }
}

/// Boot time now, nanoseconds.
#[must_use]
pub fn boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        part(time.tv_sec()) * 1_000_000_000 + part(time.tv_nsec())
    })
}

/// When something may have been in force, and when it must have been.
#[derive(Clone, Copy, Debug)]
pub struct Force {
    /// May have been.
    pub may: Span,
    /// Must have been.
    pub must: Span,
}

/// One receipt that was registered.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its id.
    pub receipt: String,
    /// The one address and port that it opens.
    pub to: SocketAddr,
    /// For UDP, else TCP.
    pub udp: bool,
    /// It was revoked.
    pub revoked: bool,
    /// When.
    pub force: Force,
}

/// What a policy of the hunt says about the hunt's targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Protected; receipts open them.
    Receipts,
    /// Protected; no receipt holds.
    Nobody,
    /// Those of [`Chronicle::unprotected`] are not protected; receipts open the others.
    Unprotected,
}

/// One policy between two reloads.
#[derive(Clone, Copy, Debug)]
pub struct Reign {
    /// What it says.
    pub rule: Rule,
    /// When.
    pub force: Force,
}

/// One call of a session, as the workload wrote it down.
#[derive(Clone, Debug, Deserialize)]
pub struct Attempt {
    /// Before the call.
    pub begin_ns: u64,
    /// After its return.
    pub end_ns: u64,
    /// How it was made.
    pub how: String,
    /// Where to.
    pub to: SocketAddr,
    /// By UDP, else TCP.
    pub udp: bool,
    /// What the kernel answered; 0 for success.
    pub errno: i32,
    /// The process that made it.
    pub pid: i32,
    /// Made by a session that receipts of the hunt are for.
    #[serde(skip)]
    pub entitled: bool,
}

impl Attempt {
    /// A packet that arrived at this instant and was sent at most so long before.
    #[must_use]
    pub fn arrival(to: SocketAddr, udp: bool, at_ns: u64, lag_ns: u64) -> Self {
        let how = "a packet that arrived".to_owned();
        Self { begin_ns: at_ns.saturating_sub(lag_ns), end_ns: at_ns, how, to, udp, errno: 0, pid: 0, entitled: true }
    }

    const fn span(&self) -> Span {
        Span::new(self.begin_ns, self.end_ns)
    }

    /// What its answer says about the gate.
    #[must_use]
    pub const fn came(&self) -> Came {
        match self.errno {
            // The kernel acted on it: what the far end or the way there made of it is not the gate's doing.
            0 | libc::EINPROGRESS | libc::ECONNREFUSED | libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => {
                Came::Through
            }
            // The second where only egress, or the end of the flow, could refuse.
            libc::EPERM | libc::ECONNABORTED => Came::Refused,
            // Any other is this machine's own trouble (no ports, a signal): counted, and a hunt with many of them fails.
            _ => Came::Neither,
        }
    }
}

/// What an answer says about the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// The gate let it through.
    Through,
    /// The gate refused it.
    Refused,
    /// It does not tell.
    Neither,
}

/// All that was in force during a hunt.
#[derive(Debug, Default)]
pub struct Chronicle {
    /// Receipts.
    pub windows: Vec<Window>,
    /// Policies, one after the other.
    pub reigns: Vec<Reign>,
    /// Targets that [`Rule::Unprotected`] leaves alone.
    pub unprotected: Vec<SocketAddr>,
}

/// What a hunt came to.
#[derive(Debug, Default)]
pub struct Finding {
    /// Calls that went through.
    pub through: usize,
    /// Calls that were refused.
    pub refused: usize,
    /// Calls that tell nothing.
    pub neither: usize,
    /// What went through and should not have.
    pub unexplained: Vec<Attempt>,
    /// What was refused although something allowed it from its beginning to its end.
    pub denied: Vec<Attempt>,
}

impl Chronicle {
    fn windows_of(&self, attempt: &Attempt) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(move |window| attempt.entitled && window.to == attempt.to && window.udp == attempt.udp)
    }

    /// True when something may have allowed it at some moment of it.
    #[must_use]
    pub fn explains(&self, attempt: &Attempt) -> bool {
        self.reigns.iter().any(|reign| {
            let common = reign.force.may.and(attempt.span());
            let by_receipt = || self.windows_of(attempt).any(|window| !window.force.may.and(common).is_empty());
            !common.is_empty()
                && match reign.rule {
                    Rule::Receipts => by_receipt(),
                    Rule::Nobody => false,
                    Rule::Unprotected => self.unprotected.contains(&attempt.to) || by_receipt(),
                }
        })
    }

    /// True when something must have allowed it from its beginning to its end.
    #[must_use]
    pub fn demands(&self, attempt: &Attempt) -> bool {
        self.reigns.iter().filter(|reign| reign.force.must.holds(attempt.span())).any(|reign| {
            let by_receipt = || self.windows_of(attempt).any(|window| window.force.must.holds(attempt.span()));
            match reign.rule {
                Rule::Receipts => by_receipt(),
                Rule::Nobody => false,
                Rule::Unprotected => self.unprotected.contains(&attempt.to) || by_receipt(),
            }
        })
    }

    /// Judges every call.
    #[must_use]
    pub fn judge(&self, attempts: &[Attempt]) -> Finding {
        let mut finding = Finding::default();
        for attempt in attempts {
            match attempt.came() {
                Came::Through => {
                    finding.through += 1;
                    if !self.explains(attempt) {
                        finding.unexplained.push(attempt.clone());
                    }
                }
                Came::Refused => {
                    finding.refused += 1;
                    if attempt.errno == libc::EPERM && self.demands(attempt) {
                        finding.denied.push(attempt.clone());
                    }
                }
                Came::Neither => finding.neither += 1,
            }
        }
        finding
    }

    /// What was in force around an attempt, for a message: microseconds from its beginning.
    #[must_use]
    pub fn trace(&self, attempt: &Attempt) -> String {
        const AROUND_NS: u64 = 3_000_000_000;
        let near = Span::new(attempt.begin_ns.saturating_sub(AROUND_NS), attempt.end_ns + AROUND_NS);
        let us = |at_ns: u64| (i128::from(at_ns) - i128::from(attempt.begin_ns)) / 1_000;
        let told = |force: &Force| {
            let span = |span: Span| format!("{} to {}", us(span.from_ns), us(span.until_ns));
            format!("may {}, must {} us", span(force.may), span(force.must))
        };
        let mut lines = vec![format!(
            "{} by pid {} to {}{}, errno {}, {} us{}",
            attempt.how,
            attempt.pid,
            attempt.to,
            if attempt.udp { "/udp" } else { "/tcp" },
            attempt.errno,
            us(attempt.end_ns),
            if attempt.entitled { "" } else { ", of the agent that no receipt is for" },
        )];
        let windows = self.windows.iter().filter(|window| window.to == attempt.to && !window.force.may.and(near).is_empty());
        lines.extend(windows.map(|window| format!("  receipt {}: {}", window.receipt, told(&window.force))));
        let reigns = self.reigns.iter().filter(|reign| !reign.force.may.and(near).is_empty());
        lines.extend(reigns.map(|reign| format!("  policy {:?}: {}", reign.rule, told(&reign.force))));
        lines.join("\n")
    }
}

/// The calls that a session wrote down.
///
/// # Errors
/// The file cannot be read, or a whole line of it is none.
pub fn read(log: &Path, entitled: bool) -> Result<Vec<Attempt>> {
    let text = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    // The last line may be half written: its process was ended.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line: &str| -> Result<Attempt> {
        let attempt: Attempt = serde_json::from_str(line).with_context(|| format!("{}: {line}", log.display()))?;
        Ok(Attempt { entitled, ..attempt })
    };
    whole.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "10.20.64.1:6502";
    const OTHER: &str = "10.20.64.2:6502";

    fn to(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn attempt(target: &str, begin_ns: u64, end_ns: u64, errno: i32) -> Attempt {
        Attempt { begin_ns, end_ns, how: "connect".into(), to: to(target), udp: false, errno, pid: 1, entitled: true }
    }

    /// Requests begin at 100 and 200 and are answered 10 later; the policy that admits nobody comes at 300, the one that leaves the
    /// target alone at 400.
    fn chronicle() -> Chronicle {
        let force = |from: u64, until: u64| Force { may: Span::new(from, until + 10), must: Span::new(from + 10, until) };
        Chronicle {
            windows: vec![
                Window { receipt: "first".into(), to: to(OPEN), udp: false, revoked: false, force: force(100, 200) },
                Window { receipt: "second".into(), to: to(OPEN), udp: false, revoked: false, force: force(250, 900) },
            ],
            reigns: vec![
                Reign { rule: Rule::Receipts, force: force(0, 300) },
                Reign { rule: Rule::Nobody, force: force(300, 400) },
                Reign { rule: Rule::Unprotected, force: force(400, 1_000) },
            ],
            unprotected: vec![to(OPEN), to(OTHER)],
        }
    }

    #[test]
    fn planted_unexplained_allows_are_found() {
        let planted = [
            // Before the first receipt, between the two, and where no receipt holds.
            attempt(OPEN, 80, 99, 0),
            attempt(OPEN, 211, 249, 0),
            attempt(OPEN, 311, 399, 0),
            // At a target that no receipt names.
            attempt(OTHER, 120, 150, 0),
            // By the agent that no receipt is for, and by another transport.
            Attempt { entitled: false, ..attempt(OPEN, 120, 150, 0) },
            Attempt { udp: true, ..attempt(OPEN, 120, 150, 0) },
            // A connect that has only begun went through as well, and so did one that the far end refused.
            attempt(OPEN, 80, 99, libc::EINPROGRESS),
            attempt(OPEN, 80, 99, libc::ECONNREFUSED),
            Attempt::arrival(to(OTHER), false, 150, 50),
        ];
        let finding = chronicle().judge(&planted);
        assert_eq!((finding.through, finding.unexplained.len()), (planted.len(), planted.len()));
        for attempt in &planted {
            assert!(chronicle().trace(attempt).lines().count() > 1);
        }
    }

    #[test]
    fn what_a_receipt_or_a_policy_may_have_allowed_is_explained() {
        let allowed = [
            attempt(OPEN, 99, 100, 0),
            attempt(OPEN, 120, 150, 0),
            attempt(OPEN, 210, 220, 0),
            attempt(OPEN, 0, 1_000, 0),
            attempt(OTHER, 420, 430, 0),
            Attempt { entitled: false, ..attempt(OPEN, 420, 430, 0) },
        ];
        let finding = chronicle().judge(&allowed);
        assert!(finding.unexplained.is_empty(), "{:?}", finding.unexplained);
    }

    #[test]
    fn a_receipt_explains_nothing_while_the_policy_admits_none() {
        // Its stretch and the policy's meet the attempt, but never at one moment.
        let mut chronicle = chronicle();
        chronicle.windows[0].force.may = Span::new(312, 330);
        chronicle.windows.truncate(1);
        chronicle.unprotected.clear();
        assert!(!chronicle.explains(&attempt(OPEN, 305, 340, 0)));
    }

    #[test]
    fn only_refusals_of_what_was_allowed_throughout_are_held_against_the_gate() {
        let cases = [
            (attempt(OPEN, 120, 150, libc::EPERM), true),
            (attempt(OPEN, 420, 450, libc::EPERM), true),
            (attempt(OPEN, 105, 150, libc::EPERM), false),
            (attempt(OPEN, 320, 350, libc::EPERM), false),
            (attempt(OPEN, 120, 150, libc::ECONNABORTED), false),
            (attempt(OTHER, 120, 150, libc::EPERM), false),
        ];
        for (attempt, denied) in cases {
            assert_eq!(chronicle().judge(std::slice::from_ref(&attempt)).denied.len(), usize::from(denied), "{attempt:?}");
        }
        assert_eq!(chronicle().judge(&[attempt(OPEN, 120, 150, libc::EADDRNOTAVAIL)]).neither, 1);
    }
}
