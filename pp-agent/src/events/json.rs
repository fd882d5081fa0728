//! An event as one JSON object: the one list of its members, in their order, and how they become an [`Event`] again.

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
    ReceiptChange, Tool, Trip, Usage, Verdict, Who, Why,
};
use crate::clock::{parse_rfc3339, rfc3339};

/// A member that is left out where it says nothing.
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
        /// The members of an event, each as it is written.
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

/// An address as events write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// The address, IPv4 in its own form.
    pub(crate) address: String,
    /// The port; absent where the packet has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// `tcp`, `udp`, ... or the IP protocol number.
    pub(crate) transport: String,
}

/// The transport of an address that no attempt went to.
const ANY: &str = "any";

impl From<Destination> for Endpoint {
    fn from(to: Destination) -> Self {
        Self { address: to.address.to_string(), port: to.port, transport: transport_text(to.transport) }
    }
}

/// IPv4 in its own form, whoever wrote it.
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

/// What is wrong with a value of another version, in words.
pub(crate) fn not_known(what: &str, found: &str) -> String {
    let short: String = found.chars().take(64).collect();
    format!("is no event of this version: its {what} is `{short}`")
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Members::from(self).serialize(serializer)
    }
}

/// A value that this version does not know is no error: the event is kept as it was written.
impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut written = Members::deserialize(deserializer)?;
        let event = written.event();
        let told = Members::told(&event, written.time_of(&event), written.session_of(&event));
        written.lend(&told);
        if told == written {
            return Ok(event);
        }
        // Rare, so that a copy by way of a JSON value will do.
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
            None => Self::told(event, rfc3339(event.time_ms).into(), event.who.session.map(|session| session_text(session).into())),
        }
    }
}

impl<'a> Members<'a> {
    fn told(event: &'a Event, time: Cow<'a, str>, session: Option<Cow<'a, str>>) -> Self {
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

/// Whether a time that can be read is as [`rfc3339`] writes it. A leap second is read as the second before it.
fn is_plain(time: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000Z";
    let is_of_form = |(byte, form): (u8, &u8)| byte == *form || *form == b'0' && byte.is_ascii_digit();
    time.len() == FORM.len() && time.bytes().zip(FORM).all(is_of_form) && &time[17..19] != "60"
}

/// The reading side: what is not known is left out.
impl<'a> Members<'a> {
    /// The time of the event that was read from this. To write it anew takes longer than to see that it would be the same.
    fn time_of(&self, event: &Event) -> Cow<'a, str> {
        let is_same = event.time_ms != 0 && is_plain(&self.time);
        if is_same { self.time.clone() } else { rfc3339(event.time_ms).into() }
    }

    /// The same for its session, which has 16 hex digits.
    fn session_of(&self, event: &Event) -> Option<Cow<'a, str>> {
        let session = event.who.session?;
        let same = self.session.clone().filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()));
        Some(same.unwrap_or_else(|| session_text(session).into()))
    }

    /// Gets back what [`Self::event`] moved to the event instead of copying it.
    fn lend(&mut self, told: &Self) {
        for (list, told) in [(&mut self.argv, &told.argv), (&mut self.attack, &told.attack)] {
            if list.is_empty() {
                *list = told.clone();
            }
        }
        if self.parents.is_empty() {
            self.parents = told.parents.clone();
        }
        self.budget = self.budget.take().or_else(|| told.budget.clone());
        self.owner = self.owner.take().or_else(|| told.owner.clone());
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

    /// `None`: its kind or what changed is of another version.
    fn body(&mut self, kind: Kind) -> Option<Body> {
        let reason = &*self.reason.clone().unwrap_or_default();
        Some(match kind {
            Kind::Verdict => Body::Verdict(self.read_attempt()),
            Kind::Tamper => Body::Tamper(self.read_attempt()),
            Kind::FlowEnded => Body::FlowEnded(self.read_attempt()),
            Kind::Exec => self.read_tool(),
            Kind::Canary if reason == TOOL => self.read_tool(),
            Kind::Canary if self.verdict.is_some() || self.repeats > 0 => Body::Verdict(self.read_attempt()),
            // A session's end says no more than its start.
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
        Body::Exec(Tool { verdict, tool: owned(&self.tool), shape: owned(&self.shape), attack: taken(&mut self.attack) })
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

    /// Whether where an attempt went, when, and what else it was about can be read.
    ///
    /// # Errors
    /// The first of them that cannot, in words.
    pub(crate) fn check_attempt(&self) -> Result<(), String> {
        if let Some(to) = &self.destination {
            to.destination()?;
        }
        parse_rfc3339(&self.time).ok_or_else(|| not_known("time", &self.time))?;
        self.targets.iter().try_for_each(|text| target(text).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is stored, with one member of another version.
    fn line(event: &Event, member: &str, value: &str) -> String {
        let members = serde_json::to_value(event).unwrap();
        let mut members = members.as_object().unwrap().clone();
        members.insert(member.to_owned(), serde_json::from_str(value).unwrap());
        let written = Members::deserialize(serde_json::Value::from(members)).unwrap();
        serde_json::to_string(&written).unwrap()
    }

    fn refusal() -> Event {
        Event { id: 7, ..Event::of_attempt("block", "no_receipt", "10.20.4.7", 502) }
    }

    #[test]
    fn what_another_version_wrote_is_told_as_it_was_written() {
        let of = |body| Event::new(body, "h", 0);
        let to = "{\"address\":\"plc7\",\"transport\":\"tcp\"}";
        let tool = Tool { verdict: Verdict::Report, tool: Some("nmap".into()), shape: None, attack: vec!["T1046".into()] };
        let neighbour = Body::Neighbour { change: NeighbourChange::Full, address: [10, 0, 0, 1].into(), place: Place::default() };
        for (event, member, value) in [
            (refusal(), "kind", "\"teleport\""),
            (refusal(), "verdict", "\"maybe\""),
            (refusal(), "verdict", "\"report\""),
            (refusal(), "reason", "\"tuesday\""),
            (refusal(), "time", "\"yesterday\""),
            (refusal(), "time", "\"2026-11-18T11:06:60.999Z\""),
            (refusal(), "time", "\"2026-13-18T11:06:39.999Z\""),
            (refusal(), "session", "\"abc\""),
            (refusal(), "session", "\"0000000000000ABC\""),
            (refusal(), "request", "\"ask somebody\""),
            (refusal(), "rule", "\"claude-code exec\""),
            (refusal(), "tool", "\"nmap\""),
            (refusal(), "count", "9"),
            (refusal(), "destination", to),
            (refusal(), "destination", "{\"address\":\"10.0.0.1\",\"transport\":\"quic\"}"),
            (refusal(), "destination", "{\"address\":\"::ffff:10.0.0.1\",\"transport\":\"tcp\"}"),
            (refusal(), "targets", "[\"10.0.0.1:80\"]"),
            (of(Body::Exec(tool.clone())), "verdict", "\"maybe\""),
            (of(Body::Exec(tool.clone())), "reason", "\"tuesday\""),
            (of(Body::Exec(tool)), "hook", "\"connect\""),
            (of(Body::SessionStart(None)), "reason", "\"tuesday\""),
            (of(Body::SessionStart(None)), "executable", "\"/usr/bin/claude\""),
            (of(Body::SessionEnd { released: true }), "reason", "\"tuesday\""),
            (of(Body::Receipt(None, ReceiptChange::Registered)), "reason", "\"tuesday\""),
            (of(Body::Receipt(None, ReceiptChange::Registered)), "zone", "\"plant-7\""),
            (of(Body::Revocation(None)), "reason", "\"tuesday\""),
            (of(Body::Posture { change: PostureChange::Open, hook: None }), "reason", "\"tuesday\""),
            (of(Body::Policy(PolicyChange::Files)), "reason", "\"tuesday\""),
            (of(Body::Policy(PolicyChange::Files)), "repeats", "3"),
            (of(neighbour.clone()), "reason", "\"tuesday\""),
            (of(neighbour), "destination", to),
            (of(Body::Lost(Loss { count: 1, refusals: true, not_stored: true })), "reason", "\"tuesday\""),
            (of(Body::Lost(Loss { count: 1, refusals: true, not_stored: true })), "verdict", "\"allow\""),
        ] {
            let line = line(&event, member, value);
            let again: Event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(serde_json::to_string(&again).unwrap(), line);
            assert_ne!(again, event, "{line}");
        }
    }

    #[test]
    fn what_is_known_of_an_event_of_another_version_is_read() {
        let again = |member, value| serde_json::from_str::<Event>(&line(&refusal(), member, value)).unwrap();
        let kind = again("kind", "\"teleport\"");
        assert_eq!((kind.kind(), kind.kind_name(), kind.verdict()), (None, "teleport", Some(Verdict::Block)));
        assert_eq!(kind.who, refusal().who);
        let reason = again("reason", "\"tuesday\"");
        assert_eq!((reason.kind(), reason.verdict()), (Some(Kind::Verdict), Some(Verdict::Block)));
        assert_eq!(reason.attempt().unwrap().destination, refusal().attempt().unwrap().destination);
        assert!(super::super::journal::sentence(&reason).contains("10.20.4.7:502/tcp: tuesday agent claude-code"));
        let verdict = again("verdict", "\"maybe\"");
        assert_eq!((verdict.verdict(), verdict.verdict_name()), (Some(Verdict::Unknown), Some("maybe")));
    }

    #[test]
    fn what_this_version_wrote_is_not_kept_twice() {
        let again: Event = serde_json::from_str(&serde_json::to_string(&refusal()).unwrap()).unwrap();
        assert!(again.written.is_none());
        assert_eq!(again, refusal());
    }

    /// Every member of every kind: also those that a kind does not have.
    #[test]
    fn every_event_is_told_with_all_that_was_written() {
        let members = r#""session":"0000000000000abc","owner":{"uid":0,"name":"root"},"parents":[{"pid":7,"executable":"/bin/sh"}],
            "argv":["a"],"budget":{"connections":1,"attempts":2,"accounts":["b"]},"attack":["T1046"],"detail":"\"c\"""#;
        let reasons = ["tool", "released", "files", "open", "learned"].map(|name| format!("\"reason\":\"{name}\","));
        let reasons = reasons.iter().map(String::as_str).chain(["", "\"pid\":1,", "\"verdict\":\"block\","]);
        for kind in Kind::ALL.iter().map(|kind| kind.name()).chain(["teleport"]) {
            for more in reasons.clone() {
                let line = format!("{{\"id\":1,\"time\":\"2026-11-18T11:06:39.999Z\",\"host\":\"h\",\"kind\":\"{kind}\",{more}{members}}}");
                let wanted: serde_json::Value = serde_json::from_str(&line).unwrap();
                let text: Event = serde_json::from_str(&line).unwrap();
                let value: Event = serde_json::from_value(wanted.clone()).unwrap();
                assert_eq!(serde_json::to_value(&text).unwrap(), wanted);
                assert_eq!(text, value);
            }
        }
    }

    #[test]
    fn texts_are_not_copied_to_be_read() {
        let line = serde_json::to_string(&refusal()).unwrap();
        let members: Members<'_> = serde_json::from_str(&line).unwrap();
        let texts = [Some(&members.time), Some(&members.host), Some(&members.kind), members.verdict.as_ref(), members.agent.as_ref()];
        assert!(texts.iter().all(|text| matches!(text, Some(Cow::Borrowed(_)))), "{texts:?}");
    }

    proptest::proptest! {
        #[test]
        fn a_plain_time_is_written_as_it_was_read(time in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:(60|[0-5][0-9])\\.[0-9]{3}Z") {
            if let Some(time_ms) = parse_rfc3339(&time) {
                assert_eq!(rfc3339(time_ms) == time, is_plain(&time));
            }
        }
    }

    #[test]
    fn event_leaves_out_what_it_lacks() {
        let json = serde_json::to_string(&Event::of_attempt("block", "no_receipt", "10.20.4.7", 502)).unwrap();
        assert!(!json.contains("zone") && !json.contains("null"), "{json}");
    }
}
