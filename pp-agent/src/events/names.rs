//! The names of kinds, verdicts and reasons in events. Each is defined once, here or with the kernel's code for it.

use pp_common::behaviour::Rule;
use pp_common::decide::{self, Reason};
use pp_common::protect::Tamper;

macro_rules! names {
    ($($(#[$outer:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:expr;)* })*) => { $(
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// Every one of them.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name in events.
            #[must_use]
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The variant of this name.
            pub(crate) fn of_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    )* };
}

names! {
    /// What an event is about.
    Kind {
        /// An attempt was allowed by a receipt, blocked or observed.
        Verdict = "verdict";
        /// A session started.
        SessionStart = "session_start";
        /// The last process of a session ended, or it was released.
        SessionEnd = "session_end";
        /// A receipt was registered, or ended.
        Receipt = "receipt";
        /// A receipt was revoked.
        Revocation = "revocation";
        /// Events are missing; `count` says how many.
        Lost = "lost";
        /// What the gate can enforce changed.
        Posture = "posture";
        /// The policy was loaded, or refused.
        Policy = "policy";
        /// The daemon's own test attempt.
        Canary = "canary";
        /// An open flow was ended because its receipt was.
        FlowEnded = "flow_ended";
        /// A session ran, or was refused to run, a tool that a rule matches.
        Exec = "exec";
        /// A session tampered with its own gate, and was refused.
        Tamper = "tamper";
        /// An address that policy does not name joined a place, or a conflict kept one from it.
        Neighbour = "neighbour";
        /// Protection was switched off, or is on again.
        Protection = "protection";
    }

    /// What happened to an attempt.
    Verdict {
        /// It was allowed.
        Allow = decide::Verdict::Allow.name();
        /// It was refused.
        Block = decide::Verdict::Block.name();
        /// It was allowed, but would have been refused.
        Observe = decide::Verdict::Observe.name();
        /// It was allowed because protection is off, and would have been refused.
        Off = decide::Verdict::Off.name();
        /// A tool ran that a rule only reports.
        Report = "report";
        /// The record had the code of another build, or another version wrote the event.
        Unknown = UNKNOWN;
    }

    /// How the policy changed.
    PolicyChange {
        /// The daemon started with the files.
        Files = "files";
        /// The daemon started with the built-in policy.
        BuiltIn = "built_in";
        /// The daemon started with the last good policy: the files are refused.
        LastGood = "last_good";
        /// The files were read again.
        Reloaded = "reloaded";
        /// The files were read again and refused.
        Refused = "refused";
    }

    /// How the posture changed.
    PostureChange {
        /// Everything the canary tried was refused.
        Enforcing = "enforcing";
        /// Everything was refused except for known gaps of this kernel.
        Partial = "partial";
        /// Policy only observes.
        Observe = "observe";
        /// Something was not refused.
        Open = "open";
        /// A program was not at its hook any more.
        HookDetached = "hook_detached";
        /// Another program was in its place.
        HookReplaced = "hook_replaced";
        /// A program or table had lost its pin.
        HookUnpinned = "hook_unpinned";
        /// A hook could not be read.
        HookUnknown = "hook_unknown";
        /// A program of another owner runs after ours at a hook.
        ForeignProgram = "foreign_program";
        /// Receipts and revocations cannot be kept.
        StateUnavailable = "state_unavailable";
        /// They can be again.
        StateRestored = "state_restored";
        /// The daemon before this one did not end by itself.
        DaemonKilled = "daemon_killed";
        /// The state is an earlier copy, so that no receipt is in force.
        StateWentBack = "state_went_back";
        /// An operator accepted it.
        StateAccepted = "state_accepted";
    }

    /// What happened to protection.
    ProtectionChange {
        /// Somebody switched it off.
        Off = "off";
        /// Somebody switched it on.
        On = "on";
        /// It is on again, because its time is over.
        Over = "over";
    }

    /// What happened to an address that policy does not name.
    NeighbourChange {
        /// It joined a place.
        Learned = "learned";
        /// It was not seen for too long.
        Expired = "expired";
        /// An operator removed it.
        Forgotten = "forgotten";
        /// A conflict kept it from being learned.
        Conflict = "conflict";
        /// The table is full.
        Full = "full";
    }
}

/// The name for a code that this build does not know.
pub(crate) const UNKNOWN: &str = "unknown";
/// The reason of every event about a tool.
pub(super) const TOOL: &str = "tool";
/// The reason for the end of a session that an operator released.
pub(super) const RELEASED: &str = "released";
/// The reason for a loss of events that followers received but the store did not.
pub(super) const NOT_STORED: &str = "not_stored";

impl From<decide::Verdict> for Verdict {
    fn from(verdict: decide::Verdict) -> Self {
        match verdict {
            decide::Verdict::Allow => Self::Allow,
            decide::Verdict::Block => Self::Block,
            decide::Verdict::Observe => Self::Observe,
            decide::Verdict::Off => Self::Off,
        }
    }
}

impl Verdict {
    /// From its code in a record.
    #[must_use]
    pub(crate) fn of_code(code: u8) -> Self {
        decide::Verdict::from_code(code).map_or(Self::Unknown, Self::from)
    }

    /// The verdict of the gate; `None` for the other verdicts.
    #[must_use]
    pub(crate) const fn decided(self) -> Option<decide::Verdict> {
        match self {
            Self::Allow => Some(decide::Verdict::Allow),
            Self::Block => Some(decide::Verdict::Block),
            Self::Observe => Some(decide::Verdict::Observe),
            Self::Off => Some(decide::Verdict::Off),
            Self::Report | Self::Unknown => None,
        }
    }
}

/// Why an attempt was decided as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The decision's reason.
    Decided(Reason),
    /// How a session tampered with its own gate. A call to a delegate has the reason of a decision instead.
    Tried(Tamper),
    /// The record had the code of another build, or another version wrote the event.
    Unknown,
}

impl Why {
    /// The reason of this code in a record of an attempt at an address.
    #[must_use]
    pub(crate) fn of_code(code: u8) -> Self {
        Reason::from_code(code).map_or(Self::Unknown, Self::Decided)
    }

    /// Its name in events.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Decided(reason) => reason.name(),
            Self::Tried(what) => what.name(),
            Self::Unknown => UNKNOWN,
        }
    }

    /// The reason of this name.
    #[must_use]
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let decided = Reason::ALL.iter().copied().find(|reason| reason.name() == name).map(Self::Decided);
        let tried = || Tamper::ALL.iter().copied().find(|what| what.name() == name).map(Self::Tried);
        decided.or_else(tried).or_else(|| (name == UNKNOWN).then_some(Self::Unknown))
    }

    /// Whether a receipt could have helped, if the attempt was about an address.
    #[must_use]
    pub(crate) fn is_of_receipts(self) -> bool {
        match self {
            Self::Decided(
                Reason::SocketFamily
                | Reason::Malformed
                | Reason::GateError
                | Reason::TurnsExhausted
                | Reason::BytesExhausted
                | Reason::FlowRefused,
            ) => false,
            Self::Decided(reason) => Rule::of(reason).is_none(),
            Self::Tried(_) | Self::Unknown => true,
        }
    }
}

impl From<Tamper> for Why {
    fn from(what: Tamper) -> Self {
        match what {
            Tamper::Delegate => Self::Decided(Reason::Delegate),
            what => Self::Tried(what),
        }
    }
}

/// What happened to a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReceiptChange {
    /// It is in force.
    Registered,
    /// Its window is over.
    Expired,
    /// It was refused, for the reason of this code (`docs/receipts.md`).
    Refused(String),
}

impl ReceiptChange {
    /// Its name in events.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Registered => "registered",
            Self::Expired => Reason::ReceiptExpired.name(),
            Self::Refused(code) => code,
        }
    }

    /// The change of this name. Any other name is the code of a refusal.
    #[must_use]
    pub(crate) fn of_name(name: &str) -> Self {
        let known = [Self::Registered, Self::Expired];
        known.into_iter().find(|known| known.name() == name).unwrap_or_else(|| Self::Refused(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_as_it_is_written() {
        macro_rules! are_read_as_written {
            ($($type:ident),*) => { $(
                $type::ALL.iter().for_each(|one| assert_eq!($type::of_name(one.name()), Some(*one)));
                assert_eq!($type::of_name("tuesday"), None);
            )* };
        }
        are_read_as_written!(Kind, Verdict, PolicyChange, PostureChange, ProtectionChange, NeighbourChange);
        let decided = Reason::ALL.iter().copied().map(Why::Decided);
        for why in decided.chain(Tamper::ALL.iter().copied().map(Why::from)).chain([Why::Unknown]) {
            assert_eq!(Why::of_name(why.name()), Some(why));
        }
    }
}
