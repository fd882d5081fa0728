//! An event as one JSON object: the list of its members, in their order, and how they become an [`Event`] again.

use std::borrow::Cow;
use std::mem;
use std::net::{IpAddr, SocketAddr};

use pp_common::decide::Reason;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::build::{parse_session, session_text, transport_number, transport_text};
use super::names::{NOT_STORED, RELEASED, TOOL};
use super::{
    Attempt, Body, Destination, Event, Kind, Loss, NeighbourChange, Owner, Parent, Place, PolicyChange, PostureChange, Process,
    ProtectionChange, ReceiptChange, Tool, Trip, Usage, Verdict, Who, Why,
};
use crate::clock::{parse_rfc3339, rfc3339};

/// A member that is left out if it is empty.
trait Member {
    fn is_absent(&self) -> bool;
}

impl<T> Member for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Clone> Member for Cow<'_, [T]> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}

impl Member for u64 {
    fn is_absent(&self) -> bool {
        *self == 0
    }
}

/// Borrows a text from the input. With `borrow` alone, serde still copies each text in an `Option`.
fn borrowed<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'a>>::deserialize(deserializer)?.map(|Text(text)| text))
}

macro_rules! members {
    ($($name:ident: $type:ty $(= $read:literal)?,)*) => {
        /// The members of an event, each in its written form.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) struct Members<'a> {
            pub(crate) id: u64,
            #[serde(borrow)]
            pub(crate) time: Cow<'a, str>,
            #[serde(borrow)]
            pub(crate) host: Cow<'a, str>,
            #[serde(borrow)]
            pub(crate) kind: Cow<'a, str>,
            $(
                #[serde(default, skip_serializing_if = "Member::is_absent")]
                $(#[serde(borrow, deserialize_with = $read)])?
                pub(crate) $name: $type,
            )*
        }

        impl<'a> Members<'a> {
            fn new(event: &'a Event, time: Cow<'a, str>) -> Self {
                let (host, kind) = (event.host.as_str().into(), event.kind_name().into());
                Self { id: event.id, time, host, kind, $($name: Default::default(),)* }
            }
        }
    };
}

members! {
    verdict: Option<Cow<'a, str>> = "borrowed",
    reason: Option<Cow<'a, str>> = "borrowed",
    rule: Option<Cow<'a, str>> = "borrowed",
    receipt: Option<Cow<'a, str>> = "borrowed",
    budget: Option<Cow<'a, Usage>>,
    session: Option<Cow<'a, str>> = "borrowed",
    agent: Option<Cow<'a, str>> = "borrowed",
    owner: Option<Cow<'a, Owner>>,
    pid: Option<u32>,
    parents: Cow<'a, [Parent]>,
    executable: Option<Cow<'a, str>> = "borrowed",
    argv: Cow<'a, [String]>,
    command_line_account: Option<Cow<'a, str>> = "borrowed",
    tool: Option<Cow<'a, str>> = "borrowed",
    shape: Option<Cow<'a, str>> = "borrowed",
    cgroup: Option<Cow<'a, str>> = "borrowed",
    destination: Option<Endpoint>,
    object: Option<Cow<'a, str>> = "borrowed",
    service: Option<Cow<'a, str>> = "borrowed",
    zone: Option<Cow<'a, str>> = "borrowed",
    gateway: Option<Cow<'a, str>> = "borrowed",
    hook: Option<Cow<'a, str>> = "borrowed",
    backend: Option<Cow<'a, str>> = "borrowed",
    repeats: u64,
    attack: Cow<'a, [String]>,
    request: Option<Cow<'a, str>> = "borrowed",
    count: Option<u64>,
    limit: Option<u64>,
    window_s: Option<u64>,
    cool_down_s: Option<u64>,
    targets: Cow<'a, [String]>,
    exempt: Option<Cow<'a, str>> = "borrowed",
    detail: Option<Cow<'a, str>> = "borrowed",
}

/// An address in the form of events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// The address, IPv4 in its own form.
    pub(crate) address: String,
    /// The port; absent if the packet has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// `tcp`, `udp`, ... or the IP protocol number.
    pub(crate) transport: String,
}

/// The transport of an address that is not the destination of an attempt.
const ANY: &str = "any";

impl From<Destination> for Endpoint {
    fn from(to: Destination) -> Self {
        Self { address: to.address.to_string(), port: to.port, transport: transport_text(to.transport) }
    }
}

/// Makes a destination. An IPv4-mapped address becomes an IPv4 address.
fn destination(address: IpAddr, port: Option<u16>, transport: &str) -> Result<Destination, String> {
    let transport = transport_number(transport).ok_or_else(|| not_known("transport", transport))?;
    Ok(Destination { address: address.to_canonical(), port, transport })
}

/// Reads what [`Destination`] displays.
fn target(text: &str) -> Result<Destination, String> {
    let wrong = || not_known("target", text);
    let (to, transport) = text.rsplit_once('/').ok_or_else(wrong)?;
    match to.parse::<SocketAddr>() {
        Ok(to) => destination(to.ip(), Some(to.port()), transport),
        Err(_) => destination(to.parse().map_err(|_| wrong())?, None, transport).map_err(|_| wrong()),
    }
}

impl Endpoint {
    fn destination(&self) -> Result<Destination, String> {
        let address = self.address.parse().map_err(|_| not_known("address", &self.address))?;
        destination(address, self.port, &self.transport)
    }
}

/// The error for a value of another version, in words.
pub(crate) fn not_known(what: &str, found: &str) -> String {
    let short: String = found.chars().take(64).collect();
    format!("is no event of this version: its {what} is `{short}`")
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Members::from(self).serialize(serializer)
    }
}

/// A value that this version does not know is no error. The event is kept as it was written.
impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut written = Members::deserialize(deserializer)?;
        let event = written.event();
        let own = Members::of_event(&event, written.time_of(&event), written.session_of(&event));
        written.restore_moved(&own);
        if own == written {
            return Ok(event);
        }
        // This is rare, so a copy by way of a JSON value is fast enough.
        let written = serde_json::to_value(&written).and_then(Members::deserialize).map_err(D::Error::custom)?;
        Ok(Self { written: Some(Box::new(written)), ..event })
    }
}

fn text(value: &Option<String>) -> Option<Cow<'_, str>> {
    value.as_deref().map(Cow::from)
}

impl<'a> From<&'a Event> for Members<'a> {
    fn from(event: &'a Event) -> Self {
        match &event.written {
            Some(written) => (**written).clone(),
            None => Self::of_event(event, rfc3339(event.time_ms).into(), event.who.session.map(|session| session_text(session).into())),
        }
    }
}

impl<'a> Members<'a> {
    /// The members of an event of this version.
    fn of_event(event: &'a Event, time: Cow<'a, str>, session: Option<Cow<'a, str>>) -> Self {
        let who = &event.who;
        let line = Self {
            session,
            agent: text(&who.agent),
            owner: who.owner.as_ref().map(Cow::Borrowed),
            backend: text(&who.backend),
            request: event.request().map(Cow::from),
            detail: text(&event.detail),
            ..Self::new(event, time)
        };
        let line = match &who.process {
            Some(process) => Self {
                pid: Some(process.pid),
                parents: process.parents.as_slice().into(),
                executable: text(&process.executable),
                argv: process.argv.as_slice().into(),
                cgroup: text(&process.cgroup),
                ..line
            },
            None => line,
        };
        match &event.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) | Body::FlowEnded(attempt) => line.attempt(attempt),
            Body::SessionStart(rule) => Self { rule: text(rule), ..line },
            Body::SessionEnd { released } => Self { reason: released.then_some(RELEASED.into()), ..line },
            Body::Exec(tool) => Self {
                verdict: Some(tool.verdict.name().into()),
                reason: Some(TOOL.into()),
                tool: text(&tool.tool),
                shape: text(&tool.shape),
                hook: Some("exec".into()),
                attack: tool.attack.as_slice().into(),
                repeats: tool.repeats,
                ..line
            },
            Body::Receipt(receipt, change) => Self { reason: Some(change.name().into()), receipt: text(receipt), ..line },
            Body::Revocation(receipt) => Self { reason: Some(Reason::ReceiptRevoked.name().into()), receipt: text(receipt), ..line },
            Body::Lost(loss) => Self {
                verdict: loss.refusals.then_some(Verdict::Block.name().into()),
                reason: loss.not_stored.then_some(NOT_STORED.into()),
                count: Some(loss.count),
                ..line
            },
            Body::Posture { change, hook } => Self { reason: Some(change.name().into()), hook: text(hook), ..line },
            Body::Policy(change) => Self { reason: Some(change.name().into()), ..line },
            Body::Protection(change) => Self { reason: Some(change.name().into()), ..line },
            Body::Neighbour { change, address, place } => Self {
                reason: Some(change.name().into()),
                destination: Some(Endpoint { address: address.to_string(), port: None, transport: ANY.to_owned() }),
                ..line.at(place)
            },
            Body::Unknown => line,
        }
    }

    fn at(self, place: &'a Place) -> Self {
        Self { service: text(&place.service), zone: text(&place.zone), gateway: text(&place.gateway), ..self }
    }

    fn attempt(self, attempt: &'a Attempt) -> Self {
        let line = Self {
            verdict: attempt.verdict.map(|verdict| verdict.name().into()),
            reason: attempt.reason.map(|reason| reason.name().into()),
            receipt: text(&attempt.receipt),
            budget: attempt.budget.as_ref().map(Cow::Borrowed),
            command_line_account: text(&attempt.command_line_account),
            destination: attempt.destination.map(Endpoint::from),
            object: text(&attempt.object),
            hook: text(&attempt.hook),
            repeats: attempt.repeats,
            attack: attempt.attack.as_slice().into(),
            ..self.at(&attempt.place)
        };
        let Some(trip) = &attempt.trip else { return line };
        Self {
            count: Some(trip.count),
            limit: Some(trip.limit),
            window_s: Some(trip.window_s),
            cool_down_s: Some(trip.cool_down_s),
            targets: trip.targets.iter().map(ToString::to_string).collect(),
            exempt: text(&trip.exempt),
            ..line
        }
    }
}

fn owned(member: &Option<Cow<'_, str>>) -> Option<String> {
    member.as_deref().map(str::to_owned)
}

fn taken<T: Clone>(list: &mut Cow<'_, [T]>) -> Vec<T> {
    mem::take(list).into_owned()
}

/// Whether a readable time has the form that [`rfc3339`] writes. A leap second is read as the second before it.
fn is_plain(time: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000Z";
    let is_of_form = |(byte, form): (u8, &u8)| byte == *form || *form == b'0' && byte.is_ascii_digit();
    time.len() == FORM.len() && time.bytes().zip(FORM).all(is_of_form) && &time[17..19] != "60"
}

/// The reading side. Unknown values are left out.
impl<'a> Members<'a> {
    /// The time of the event that was read from these members. Formatting it again would be slower than this check that it is the same.
    fn time_of(&self, event: &Event) -> Cow<'a, str> {
        let is_same = event.time_ms != 0 && is_plain(&self.time);
        if is_same { self.time.clone() } else { rfc3339(event.time_ms).into() }
    }

    /// The session of the event, which has 16 hex digits.
    fn session_of(&self, event: &Event) -> Option<Cow<'a, str>> {
        let session = event.who.session?;
        let same = self.session.clone().filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()));
        Some(same.unwrap_or_else(|| session_text(session).into()))
    }

    /// Restores what [`Self::event`] moved to the event, from the members of that event.
    fn restore_moved(&mut self, own: &Self) {
        for (list, own) in [(&mut self.argv, &own.argv), (&mut self.attack, &own.attack)] {
            if list.is_empty() {
                *list = own.clone();
            }
        }
        if self.parents.is_empty() {
            self.parents = own.parents.clone();
        }
        self.budget = self.budget.take().or_else(|| own.budget.clone());
        self.owner = self.owner.take().or_else(|| own.owner.clone());
    }

    /// Moves lists, the owner and the budget to the event, if its kind has them.
    fn event(&mut self) -> Event {
        let process = self.pid.map(|pid| Process {
            pid,
            parents: taken(&mut self.parents),
            executable: owned(&self.executable),
            argv: taken(&mut self.argv),
            cgroup: owned(&self.cgroup),
        });
        let who = Who {
            session: self.session.as_deref().and_then(parse_session),
            agent: owned(&self.agent),
            owner: self.owner.take().map(Cow::into_owned),
            process,
            backend: owned(&self.backend),
        };
        let kind = Kind::of_name(&self.kind);
        let body = kind.and_then(|kind| self.body(kind)).unwrap_or(Body::Unknown);
        let time_ms = parse_rfc3339(&self.time).unwrap_or_default();
        let event =
            Event { id: self.id, canary: kind == Some(Kind::Canary), detail: owned(&self.detail), ..Event::new(body, &self.host, time_ms) };
        event.about(who)
    }

    /// `None`: its kind, or the name of its change, is from another version.
    fn body(&mut self, kind: Kind) -> Option<Body> {
        let reason = &*self.reason.clone().unwrap_or_default();
        Some(match kind {
            Kind::Verdict => Body::Verdict(self.read_attempt()),
            Kind::Tamper => Body::Tamper(self.read_attempt()),
            Kind::FlowEnded => Body::FlowEnded(self.read_attempt()),
            Kind::Exec => self.read_tool(),
            Kind::Canary if reason == TOOL => self.read_tool(),
            Kind::Canary if self.verdict.is_some() || self.repeats > 0 => Body::Verdict(self.read_attempt()),
            // The end of a canary's session is read like its start.
            Kind::Canary | Kind::SessionStart => Body::SessionStart(owned(&self.rule)),
            Kind::SessionEnd => Body::SessionEnd { released: reason == RELEASED },
            Kind::Receipt => Body::Receipt(owned(&self.receipt), ReceiptChange::of_name(reason)),
            Kind::Revocation => Body::Revocation(owned(&self.receipt)),
            Kind::Lost => Body::Lost(Loss {
                count: self.count.unwrap_or(1),
                refusals: self.read_verdict() == Some(Verdict::Block),
                not_stored: reason == NOT_STORED,
            }),
            Kind::Posture => Body::Posture { change: PostureChange::of_name(reason)?, hook: owned(&self.hook) },
            Kind::Policy => Body::Policy(PolicyChange::of_name(reason)?),
            Kind::Protection => Body::Protection(ProtectionChange::of_name(reason)?),
            Kind::Neighbour => Body::Neighbour {
                change: NeighbourChange::of_name(reason)?,
                address: self.destination.as_ref()?.address.parse().ok()?,
                place: self.read_place(),
            },
        })
    }

    pub(super) fn read_verdict(&self) -> Option<Verdict> {
        self.verdict.as_deref().map(|name| Verdict::of_name(name).unwrap_or(Verdict::Unknown))
    }

    fn read_place(&self) -> Place {
        Place { zone: owned(&self.zone), gateway: owned(&self.gateway), service: owned(&self.service) }
    }

    fn read_tool(&mut self) -> Body {
        let verdict = self.read_verdict().unwrap_or(Verdict::Unknown);
        Body::Exec(Tool {
            verdict,
            tool: owned(&self.tool),
            shape: owned(&self.shape),
            attack: taken(&mut self.attack),
            repeats: self.repeats,
        })
    }

    fn read_attempt(&mut self) -> Box<Attempt> {
        let trip = self.count.zip(self.window_s).map(|(count, window_s)| Trip {
            count,
            limit: self.limit.unwrap_or_default(),
            window_s,
            cool_down_s: self.cool_down_s.unwrap_or_default(),
            targets: self.targets.iter().filter_map(|text| target(text).ok()).collect(),
            exempt: owned(&self.exempt),
        });
        Box::new(Attempt {
            verdict: self.read_verdict(),
            reason: self.reason.as_deref().map(|name| Why::of_name(name).unwrap_or(Why::Unknown)),
            destination: self.destination.as_ref().and_then(|to| to.destination().ok()),
            object: owned(&self.object),
            place: self.read_place(),
            receipt: owned(&self.receipt),
            budget: self.budget.take().map(Cow::into_owned),
            command_line_account: owned(&self.command_line_account),
            hook: owned(&self.hook),
            repeats: self.repeats,
            attack: taken(&mut self.attack),
            trip,
        })
    }

    /// Checks that the destination, the time and the targets of an attempt can be read.
    ///
    /// # Errors
    /// The first of them that cannot be read, in words.
    pub(crate) fn check_attempt(&self) -> Result<(), String> {
        if let Some(to) = &self.destination {
            to.destination()?;
        }
        parse_rfc3339(&self.time).ok_or_else(|| not_known("time", &self.time))?;
        self.targets.iter().try_for_each(|text| target(text).map(drop))
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
